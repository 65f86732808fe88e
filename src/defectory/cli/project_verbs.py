"""Defines the verbs that run a project or some of its stages."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    YesOption,
    open_project,
    run_project,
)
from defectory.errors import ConfigError

STAGE_VERBS = {
    "learn-concept": "Phase 1: teach the base what your parts look like (DreamBooth with prior preservation).",
    "learn-condition": "Phase 2: teach a control network to obey drivers.",
    "plan": "Write the synthesis plan: pool image, augmentation, masks, prompt and seed of every draft.",
    "calibrate": "Choose how strongly the masks of each class are drawn: as much as in train tiles.",
    "synthesize": "Draw the drafts of the plan, each with its counterfactual half.",
    "curate": "Compare each draft with its label and with real tiles; accept or reject it.",
    "segment": "Train the segmenter in all its arms.",
    "evaluate": "Score every segmenter on test images, and the drafts.",
    "report": "Write the report, one self-contained HTML file.",
    "finalize": "Write the finished pipeline, which plain diffusers loads.",
}
"""Maps a verb, which names a stage or a group of stages, to its help."""
NEEDS = "Stages that it needs are run first where they are not up to date."


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    app.command("demo")(demo)
    app.command("init")(init)
    app.command("run")(run)
    for verb, text in STAGE_VERBS.items():
        function = synthesize if verb == "synthesize" else _stage_verb(verb)
        app.command(verb, help=f"{text} {NEEDS}")(function)


def demo(
    full: Annotated[
        bool, typer.Option("--full", help="Longer phases, then a study: three seeds, four amounts of labels; hours.")
    ] = False,
    short: Annotated[
        bool | None,
        typer.Option(
            "--short/--no-short", help="Shorter phases; chosen by itself where the demo would take over 15 minutes."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; runs/demo, or runs/demo-full.")] = None,
    override: OverrideOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run everything on a procedural borescope data set: data, both phases, synthesis, curation, segmenters, report."""
    from defectory.api.demo import Preset, is_short, open_demo
    from defectory.cli.show import say

    if full and short:
        raise ConfigError("option --short", "is given beside --full", "the demo has one length: leave one of them out")
    lengths: dict[bool | None, Preset | None] = {None: None, True: "demo-short", False: "demo"}
    preset = "demo-full" if full else lengths[short]
    project = open_demo(out, preset, overrides=override or [], seed=seed, device=device)
    if preset is None and is_short(project) and not as_json:
        say("the demo is shortened, as this machine would take more than 15 minutes for it; --no-short runs it whole")
    run_project(project, dry_run=dry_run, yes=yes, as_json=as_json)
    if full:
        from defectory.cli.study_verb import run_study
        from defectory.studies.study import Study

        study = Study.open(project.file, overrides=override or [], seed=seed, device=device)
        run_study(study, dry_run=dry_run, as_json=as_json)


def init(
    project: Annotated[Path, typer.Argument(help="Project file to write.", metavar="[PROJECT]")] = PROJECT_FILE,
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="Annotation file or folder of a data set, as `defectory import` takes it, from the current folder.",
        ),
    ] = Path("annotations.json"),
    defect_free: Annotated[
        Path | None, typer.Option("--defect-free", help="Folder of further images, all without defects.")
    ] = None,
    preset: PresetOption = "cpu",
    every_setting: Annotated[
        bool, typer.Option("--all", help="Write every setting, not only those that matter most.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a project file that is there.")] = False,
) -> None:
    """Write a commented project file."""
    from defectory.api.project import Project
    from defectory.cli.show import say

    made = Project.create(
        project, data=data, defect_free=defect_free, preset=preset, every_setting=every_setting, force=force
    )
    for option, path in (("--data", data), ("--defect-free", defect_free)):
        if path is not None and not path.expanduser().exists():
            say(
                f"remark: {option} {path}: no such file or folder yet; `run` looks for it at "
                f"{made.path_from(path)}, seen from {project}"
            )
    say(f"{project} written; `defectory run {project}` does every stage")


def run(
    project: ProjectArgument = PROJECT_FILE,
    only: Annotated[
        list[str] | None, typer.Option("--only", help="Run this stage alone (repeatable); its inputs must exist.")
    ] = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run every stage of a project. Stages with unchanged inputs are not run again."""
    opened = open_project(project, overrides=override, preset=preset, seed=seed, device=device)
    run_project(opened, only=only, dry_run=dry_run, yes=yes, as_json=as_json)


def synthesize(
    project: ProjectArgument = PROJECT_FILE,
    focus: Annotated[
        str | None,
        typer.Option(
            "--focus", help="uniform, or segmenter: more of what a segmenter misses on train images it has not seen."
        ),
    ] = None,
    override: OverrideOption = None,
    preset: PresetOption = None,
    seed: SeedOption = None,
    device: DeviceOption = None,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
    as_json: JsonOption = False,
) -> None:
    """Run the stage synthesize, optionally with another focus."""
    wanted = [*(override or []), *([f'synthesis.focus="{focus}"'] if focus is not None else [])]
    opened = open_project(project, overrides=wanted, preset=preset, seed=seed, device=device)
    run_project(opened, until=["synthesize"], dry_run=dry_run, yes=yes, as_json=as_json)


def _stage_verb(stage: str):  # typer reads the signature
    def verb(
        project: ProjectArgument = PROJECT_FILE,
        override: OverrideOption = None,
        preset: PresetOption = None,
        seed: SeedOption = None,
        device: DeviceOption = None,
        dry_run: DryRunOption = False,
        yes: YesOption = False,
        as_json: JsonOption = False,
    ) -> None:
        opened = open_project(project, overrides=override, preset=preset, seed=seed, device=device)
        run_project(opened, until=[stage], dry_run=dry_run, yes=yes, as_json=as_json)

    return verb
