"""Stages as data: what a stage depends on, whether it is up to date, and the running of it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from defectory.errors import ConfigError
from defectory.recipes.project import ProjectConfig
from defectory.run import digest_folder, digest_json, finish_stage, read_manifest, remove_leftovers, stage_is_done, write_text

CODE_VERSION = 2
"""Raised whenever a stage's outcome changes for equal inputs."""
INPUTS_NAME = "inputs.txt"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A stage is at `done` of `total`; `note` is for people."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage is done, or was up to date; `summary` is one line for people."""

    stage: str
    seconds: float
    skipped: bool
    summary: str


Event = Progress | StageEnded


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project: resolved configuration, run folder, and the folder its relative paths start from."""

    config: ProjectConfig
    folder: Path
    source_folder: Path

    def path(self, *parts: str) -> Path:
        """Give a path in the run folder."""
        return self.folder.joinpath(*parts)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: its folder, the configuration and stages it depends on, and how it runs.

    `run` yields Progress and a one-line summary (str) last; it writes into the stage's folder alone.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    settings: Callable[[Project], object]
    run: Callable[[Project], Iterator[Progress | str]]
    resumable: bool = False
    """Keeps partial work in its folder while its inputs stay the same."""


def output_digest(project: Project, stage: Stage) -> str:
    """Give the digest of a finished stage's outcome.

    Raises:
        ConfigError: the stage has not been run.
    """
    manifest = read_manifest(project.path(stage.folder))
    if manifest is None:
        raise ConfigError(project.path(stage.folder), f"stage {stage.name} has not been run", "run it first, or `defectory run`")
    return str(manifest["info"]["output_digest"])


def inputs_digest(project: Project, stage: Stage, stages: Sequence[Stage]) -> str:
    """Give the digest of everything a stage depends on."""
    by_name = {s.name: s for s in stages}
    return digest_json(
        {
            "code": CODE_VERSION,
            "settings": stage.settings(project),
            "needs": {name: output_digest(project, by_name[name]) for name in stage.needs},
        }
    )


def states_of(project: Project, stages: Sequence[Stage]) -> dict[str, str]:
    """Tell of each stage whether it is up to date, can go on from partial work, or has to run (again)."""
    states: dict[str, str] = {}
    for stage in stages:
        folder = project.path(stage.folder)
        if read_manifest(folder) is None:
            states[stage.name] = "to be resumed" if stage.resumable and (folder / INPUTS_NAME).is_file() else "to be run"
        elif any(states[name] != "up to date" for name in stage.needs) or not stage_is_done(folder, inputs_digest(project, stage, stages)):
            states[stage.name] = "to be run again"
        else:
            states[stage.name] = "up to date"
    return states


def run_stage(project: Project, stage: Stage, stages: Sequence[Stage]) -> Iterator[Event]:
    """Run one stage unless it is up to date; its manifest is written last."""
    folder = project.path(stage.folder)
    began = time.monotonic()
    digest = inputs_digest(project, stage, stages)
    if stage_is_done(folder, digest):
        manifest = read_manifest(folder) or {}
        yield StageEnded(stage=stage.name, seconds=0.0, skipped=True, summary=str(manifest.get("info", {}).get("summary", "")))
        return
    marker = folder / INPUTS_NAME
    if folder.exists() and not (stage.resumable and marker.is_file() and marker.read_text() == digest and read_manifest(folder) is None):
        shutil.rmtree(folder)
    if stage.resumable:
        remove_leftovers(folder)
        write_text(marker, digest)
    summary = ""
    for event in stage.run(project):
        if isinstance(event, str):
            summary = event
        else:
            yield event
    seconds = time.monotonic() - began
    output = digest_folder(folder, exclude=("stage.json", INPUTS_NAME))
    finish_stage(folder, inputs_digest=digest, info={"summary": summary, "output_digest": output, "seconds": round(seconds, 1)})
    yield StageEnded(stage=stage.name, seconds=seconds, skipped=False, summary=summary)
