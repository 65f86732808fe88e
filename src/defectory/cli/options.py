"""Defines the options that verbs share, and opens and runs a project from them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from defectory.api.project import Project
    from defectory.stages.parts.estimate.estimate import Estimate

PROJECT_FILE = Path("project.toml")
ProjectArgument = Annotated[Path, typer.Argument(help="Project file.", metavar="[PROJECT]")]
OverrideOption = Annotated[
    list[str] | None,
    typer.Option("--override", "-o", metavar="KEY=VALUE", help="Set any setting, for example synthesis.num_images=50."),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset", help="demo, demo-short, demo-full, cpu, gpu-8gb, gpu-12gb, gpu-16gb, gpu-24gb or gpu-80gb."
    ),
]
SeedOption = Annotated[int | None, typer.Option("--seed", min=0, help="Seed of the whole project.")]
DeviceOption = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 ...")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Show what would be done and why, do nothing.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of text.")]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Replace finished training whose settings changed without asking.")
]
ASK_FROM_SECONDS = 60.0
"""A stage that took longer is only replaced after a question."""


def open_project(
    file: Path,
    *,
    overrides: Sequence[str] | None = None,
    preset: str | None = None,
    seed: int | None = None,
    device: str | None = None,
) -> Project:
    """Open a project file with the settings of the command line and the environment."""
    from defectory.api.project import Project
    from defectory.errors import ConfigError
    from defectory.images.header import IMAGE_SUFFIXES

    if file.suffix.lower() in IMAGE_SUFFIXES:
        raise ConfigError(file, "is an image, but a project file is expected here", "give images with --image")
    return Project.open(file, overrides=overrides or (), preset=preset, seed=seed, device=device)


def run_until(project: Project, *stages: str, as_json: bool = False) -> None:
    """Run stages and everything they need, and show their events."""
    from defectory.cli.show import show_events

    show_events(project.events(until=list(stages)), as_json=as_json)


def run_project(
    project: Project,
    *,
    until: Sequence[str] | None = None,
    only: Sequence[str] | None = None,
    dry_run: bool = False,
    yes: bool = False,
    as_json: bool = False,
) -> None:
    """Run stages of a project and show their events, or show what would be run."""
    from defectory.cli.show import format_seconds, say, show_events
    from defectory.memory import PeakMemory

    names = project.stages(until=until, only=only)
    if dry_run:
        _show_states(project, names, as_json=as_json)
        return
    project.check(only=names)
    _show_estimate(project.estimate(only=names), as_json=as_json)
    if not yes:
        _ask_before_replacing(project, names)
    began = time.monotonic()
    with PeakMemory() as peak:
        show_events(project.events(until=until, only=only), as_json=as_json)
    if as_json:
        return
    say(f"done in {format_seconds(time.monotonic() - began)}, at most {peak.gb:.1f} GB of memory")
    if "best-segmenter" in names:
        card = project.segmenter_card
        told = "no segmenter was trained" if card is None else f"{project.best_segmenter} ({card.words})"
        say(f"best segmenter: {told}")
    if "report" in names:
        say(f"report: {project.report}")
        for step in project.next_steps[:1]:
            say(f"next: {step.title}")
            say(f"  {step.command}")


def _show_states(project: Project, names: Sequence[str], *, as_json: bool) -> None:
    from dataclasses import asdict

    from defectory.cli.estimates import seconds_of
    from defectory.cli.show import say_json, show_table

    states, estimate = project.states(), project.estimate(only=names)
    rows: list[tuple[Any, ...]] = []
    for name, estimated in zip(names, estimate.stages, strict=True):
        state, folder = states[name], project.folder_of(name)
        if as_json:
            say_json({"event": "StageState", **asdict(state), "folder": str(folder)})
        rows.append((name, state.state, state.why, seconds_of(estimated), folder.relative_to(project.run_folder)))
    if not as_json:
        # folders are shown relative to the run folder, which the title names, to keep the table narrow
        title = f"{project.config.name}: what would be done in {project.run_folder}"
        show_table(title, ("stage", "state", "why", "takes", "folder"), rows)
    _show_estimate(estimate, as_json=as_json)


def _show_estimate(estimate: Estimate, *, as_json: bool) -> None:
    from defectory.cli.estimates import line_of, values_of
    from defectory.cli.show import say, say_json

    if as_json:
        say_json({"event": "Estimate", **values_of(estimate)})
    elif (line := line_of(estimate)) is not None:
        say(line)


def _ask_before_replacing(project: Project, names: Sequence[str]) -> None:
    """Ask before finished stages that took long are run again.

    Raises:
        ConfigError: standard input is not a terminal, so nobody can answer.
        InterruptedRun: the answer is no.
    """
    from defectory.cli.show import format_seconds, say
    from defectory.errors import ConfigError, InterruptedRun

    lost = project.to_run_again(names, min_seconds=ASK_FROM_SECONDS)
    if not lost:
        return
    told = "; ".join(f"{state.stage} ({format_seconds(state.seconds)}): {state.why}" for state in lost)
    if not sys.stdin.isatty():
        raise ConfigError(
            project.run_folder, f"finished stages would run again: {told}", "pass --yes, or set another `out`"
        )
    say(f"finished stages will run again: {told}")
    if not typer.confirm("Continue?"):
        raise InterruptedRun("stopped; nothing was changed")
