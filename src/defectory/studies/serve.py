"""Runs one cell in a process of its own."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from defectory import __version__
from defectory.api.project import Project
from defectory.events import Event
from defectory.runs import layout
from defectory.runs.served import serve_events
from defectory.stages.all import run_all
from defectory.studies.elsewhere import score_others, score_transfer


def serve() -> None:
    """Run the cell requested on standard input, and write its events to standard output as JSON lines."""
    serve_events(_events)


def _events(job: Mapping[str, Any]) -> Generator[Event]:
    project = Project.open(Path(job["file"]), overrides=job["overrides"], preset=job["preset"], device=job["device"])
    run = replace(project.run_values, siblings=Path(job["siblings"]))
    run.folder.parent.mkdir(parents=True, exist_ok=True)

    def save_settings() -> None:
        project.resolved.save(run.folder / layout.SETTINGS, version=__version__)

    yield from run_all(run, only=project.stages(until=job["until"]), claimed=save_settings)
    if job["transfer_to"] is not None:
        yield from score_transfer(run, Path(job["transfer_to"]))
    if job["others"]:
        yield from score_others(run, {name: Path(folder) for name, folder in job["others"].items()})
