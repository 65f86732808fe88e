"""Defines the verb `study`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from defectory.cli.options import (
    PROJECT_FILE,
    DeviceOption,
    DryRunOption,
    JsonOption,
    OverrideOption,
    PresetOption,
    ProjectArgument,
    SeedOption,
)

if TYPE_CHECKING:
    from defectory.studies.study import Study

RecipeOption = Annotated[
    str | None, typer.Option("--recipe", help="ladder, scarcity, ratio, ablation, concepts, ...; see study.recipe.")
]


def register(app: typer.Typer) -> None:
    """Add the verb."""
    app.command("study")(study)


def study(
    project: ProjectArgument = PROJECT_FILE,
    recipe: RecipeOption = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run a project many times, with other amounts of labelled images, seeds and settings, and say what helps.

    Stop it at any time; the same command goes on. What a study of the same folder has trained is not trained again.
    """
    from defectory.studies.study import Study

    overrides = [*(override or []), *([f"study.recipe={recipe}"] if recipe is not None else [])]
    opened = Study.open(project, overrides=overrides, preset=preset, seed=seed, device=device)
    run_study(opened, dry_run=dry_run, as_json=as_json)


def run_study(opened: Study, *, dry_run: bool = False, as_json: bool = False) -> None:
    """Run a study and show its outcome, or show its cells; exit code 1 if one fails."""
    from defectory.cli.show import say, say_json
    from defectory.cli.study_show import show_outcome, show_study

    if dry_run:
        _show_cells(opened, as_json=as_json)
        return
    failed = show_study(opened, as_json=as_json)
    outcome = opened.outcome()
    if as_json:
        say_json(outcome.model_dump(mode="json"))
    else:
        show_outcome(outcome)
        say(f"page: {opened.page}")
    if failed:
        raise typer.Exit(1)


def _show_cells(opened: Study, *, as_json: bool) -> None:
    from defectory.cli.show import say, say_json, show_table

    remarks = opened.check()
    finished = opened.finished()
    rows = [(cell.name, ", ".join(cell.arms), "finished" if cell in finished else "to be run") for cell in opened.cells]
    if as_json:
        for name, arms, state in rows:
            say_json({"event": "CellState", "cell": name, "arms": arms, "state": state})
        return
    for remark in remarks:
        say(remark)
    show_table(f"study in {opened.folder}", ("cell", "arms", "state"), rows)
    left = len(rows) - len(finished)
    say(f"{left} of {len(rows)} cells to be run, {opened.num_parallel} at a time")
