"""Stages as data: what a stage depends on, and whether its outcome is up to date."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.files import digest_json, read_manifest
from defectory.folders import WORK_NAME, read_marker

CODE_VERSION = 3
"""Raised whenever a stage's outcome changes for equal inputs."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """A stage is at `done` of `total`; `note` is for people."""

    stage: str
    done: int
    total: int
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that people should know of a stage, one line."""

    stage: str
    text: str


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage is done, or was up to date; `summary` is one line for people."""

    stage: str
    seconds: float
    skipped: bool
    summary: str


Event = Progress | Notice | StageEnded


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project: resolved configuration, run folder, and the folder its relative paths start from.

    Attributes:
        config: resolved configuration.
        folder: of the run.
        source_folder: relative paths of the configuration start here.
        writing: folder of the stage that is being made, relative to the run; its files go to the stage's work folder,
            and the old outcome stays until the new one is whole.
    """

    config: ProjectConfig
    folder: Path
    source_folder: Path
    writing: str | None = None

    def path(self, *parts: str) -> Path:
        """Return a path in the run folder; those of the stage that is being made lie in its work folder."""
        relative = Path(*parts)
        if self.writing is not None and relative.is_relative_to(self.writing):
            return self.folder / WORK_NAME / relative
        return self.folder / relative


@dataclass(frozen=True, kw_only=True)
class MissingSource:
    """What a setting is where a source of the user's cannot be read, a disk that is not mounted for example: not known,
    so not changed.
    """

    path: Path


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage: its folder, the configuration and stages it depends on, and how it runs.

    `run` yields Progress and Notice, and a one-line summary (str) last; it writes into the stage's folder alone.
    """

    name: str
    folder: str
    needs: tuple[str, ...]
    settings: Callable[[Project], object]
    """Values of a mapping may be `MissingSource`."""
    run: Callable[[Project], Iterator[Progress | Notice | str]]
    resumable: bool = False
    """Keeps partial work while its inputs stay the same."""
    mendable: bool = False
    """Draws what is missing of a damaged outcome, and keeps what is whole."""
    copies: Mapping[str, str] = field(default_factory=lambda: dict[str, str]())
    """Files of the outcome that the run folder holds a copy of, and the names of the copies."""


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage depends on: the digest of each thing by name, and those that cannot be read at present."""

    parts: Mapping[str, str]
    missing: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """Return the digest of all of it."""
        return digest_json(dict(self.parts))

    def describe(self, manifest: Mapping[str, Any] | None) -> bool:
        """Tell whether a manifest's outcome was made from these inputs; what cannot be read counts as unchanged."""
        if manifest is None:
            return False
        if manifest["inputs_digest"] == self.digest:
            return True
        known = {name: digest for name, digest in self.parts.items() if name not in self.missing}
        recorded = {name: digest for name, digest in manifest["inputs"].items() if name not in self.missing}
        return bool(self.missing) and known == recorded and set(self.missing) <= set(manifest["inputs"])


def output_digest(project: Project, stage: Stage) -> str:
    """Return the digest of a finished stage's outcome.

    Raises:
        ConfigError: the stage has not been run, or its manifest is damaged.
    """
    folder = project.path(stage.folder)
    manifest = read_manifest(folder)
    if manifest is None:
        found = "has a damaged manifest" if (folder / "stage.json").is_file() else "has not been run"
        raise ConfigError(folder, f"stage {stage.name} {found}", "run it first, or `defectory run`")
    return str(manifest["info"]["output_digest"])


def inputs_of(project: Project, stage: Stage, stages: Sequence[Stage]) -> Inputs:
    """Return everything a stage depends on.

    Raises:
        ConfigError: a stage that it needs has not been run.
    """
    by_name = {s.name: s for s in stages}
    settings = stage.settings(project)
    values: Mapping[str, object] = settings if isinstance(settings, Mapping) else {"all": settings}
    missing = {f"settings.{name}": value.path for name, value in values.items() if isinstance(value, MissingSource)}
    parts = {"code": digest_json(CODE_VERSION)}
    for name, value in values.items():
        parts[f"settings.{name}"] = digest_json(
            {"missing": value.path.name} if isinstance(value, MissingSource) else value
        )
    parts |= {f"needs.{name}": output_digest(project, by_name[name]) for name in stage.needs}
    return Inputs(parts=parts, missing=missing)


def states_of(project: Project, stages: Sequence[Stage]) -> dict[str, str]:
    """Tell of each stage whether it is up to date, can go on from partial work, or has to run (again); files are not
    read for it.
    """
    states: dict[str, str] = {}
    for stage in stages:
        manifest = read_manifest(project.path(stage.folder))
        if any(states.get(name, "up to date") != "up to date" for name in stage.needs):
            states[stage.name] = "to be run" if manifest is None else "to be run again"
            if manifest is None and _partial_inputs(project, stage) is not None:
                states[stage.name] = "to be resumed"
        else:
            inputs = inputs_of(project, stage, stages)
            if inputs.describe(manifest):
                states[stage.name] = "up to date"
            elif _partial_inputs(project, stage) == inputs.digest:
                states[stage.name] = "to be resumed"
            else:
                states[stage.name] = "to be run" if manifest is None else "to be run again"
    return states


def _partial_inputs(project: Project, stage: Stage) -> str | None:
    """Return the digest of the inputs that the partial work of a resumable stage was made from, None where there is
    none.
    """
    marker = read_marker(work_folder(project, stage)) if stage.resumable else None
    return None if marker is None or marker.maker is None else str(marker.maker.get("inputs"))


def work_folder(project: Project, stage: Stage) -> Path:
    """Return the folder in which a stage makes its outcome."""
    return project.folder / WORK_NAME / stage.folder
