"""Defines what a stage is: its name, its inputs, its cache key, and how it makes its result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.events import Work
from defectory.files import digest_json, read_manifest
from defectory.folders.swap import WORK_NAME
from defectory.runs.sources import MissingSource, Sources
from defectory.runs.store import RunStore

SHARED_CACHE = ".cache"
"""Folder of the cache of sibling runs, beside them."""
CODE_VERSION = 4
"""Increment this when the results of all stages change for equal inputs."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run: its resolved configuration, its folder, and the user's files.

    Attributes:
        config: resolved configuration.
        folder: of the run.
        sources: paths of the configuration, relative to the project file.
        siblings: folder of runs that share results, this one among them; None for a run of its own.
    """

    config: ProjectConfig
    folder: Path
    sources: Sources
    siblings: Path | None = None

    def store(self) -> RunStore:
        """Return the results of the run's stages, all readable; what is parsed is kept."""
        return self._store

    @cached_property
    def _store(self) -> RunStore:
        cache = None if self.siblings is None else self.siblings / SHARED_CACHE
        return RunStore(self.folder, sources=self.sources, cache=cache, num_rounds=self.config.synthesis.rounds)


class Stage(ABC):
    """One step of a run. It reads the results of the stages named by `inputs`, and writes only to its own folder.

    Its result is up to date while `VERSION`, `cache_key` and the digests of its inputs stay the same.
    """

    VERSION: ClassVar[int] = 1
    """Increment this when the same inputs and settings make a different result."""
    name: str
    """Name for `--only` and messages, in lower case with hyphens."""
    folder: str
    """Folder of its result, relative to the run."""
    group: str = ""
    """Stages of one group are independent and may run side by side. The group's name selects all of them."""
    is_resumable: bool = False
    """Whether partial work is kept while the inputs stay the same."""
    is_mendable: bool = False
    """Whether only the missing files of a damaged result are made again."""
    is_preparation: bool = False
    """Whether it runs before the check for dead ends. Such a stage trains nothing and draws nothing."""
    trains_together: bool = False
    """Whether several processes may run it at once and train together, see `engine.training.team`. All return the
    same summary; only the main one writes.
    """
    reads_base: bool = False
    """Whether it reads the base's files."""
    copies: Mapping[str, str] = MappingProxyType({})
    """Files of the result that are copied to the run folder, and the names of the copies."""

    @abstractmethod
    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Return the names of the stages whose results it reads."""

    @abstractmethod
    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Return the settings and the state of the user's files that the result depends on.

        A `MissingSource` counts as unchanged.
        """

    @abstractmethod
    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Make the result in `out`, and return a one-line summary.

        Args:
            inputs: results of the stages named by `inputs`; reading anything else is an error.
            config: resolved configuration.
            out: empty folder, or partial work of the same inputs if the stage is resumable.
        """


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What a stage depends on.

    Attributes:
        parts: digest of each thing by name.
        settings: value of each setting by dotted name, and of each source what is known of its files.
        missing: the sources that cannot be read at present, by the name of their part.
    """

    parts: Mapping[str, str]
    settings: Mapping[str, object]
    missing: Mapping[str, Path]

    @property
    def digest(self) -> str:
        """Return the digest of all inputs."""
        return digest_json(dict(self.parts))

    def describe(self, manifest: Mapping[str, Any] | None) -> bool:
        """Check whether a manifest's result was made from these inputs; unreadable sources count as unchanged."""
        if manifest is None:
            return False
        if manifest["inputs_digest"] == self.digest:
            return True
        known = {name: digest for name, digest in self.parts.items() if name not in self.missing}
        recorded = {name: digest for name, digest in manifest["inputs"].items() if name not in self.missing}
        return bool(self.missing) and known == recorded and set(self.missing) <= set(manifest["inputs"])

    def changes_from(self, manifest: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the sorted names of the inputs that differ from a manifest's."""
        recorded: Mapping[str, str] = manifest["inputs"]
        names = {*self.parts, *recorded} - set(self.missing)
        return tuple(sorted(name for name in names if self.parts.get(name) != recorded.get(name)))


def output_digest(run: Run, stage: Stage) -> str:
    """Return the digest of a finished stage's result.

    Raises:
        ConfigError: the stage has not been run, or its manifest is damaged.
    """
    folder = run.folder / stage.folder
    manifest = read_manifest(folder)
    if manifest is None:
        found = "has a damaged manifest" if (folder / "stage.json").is_file() else "has not been run"
        raise ConfigError(folder, f"stage {stage.name} {found}", "run it first, or `defectory run`")
    return str(manifest["info"]["output_digest"])


def inputs_of(run: Run, stage: Stage, stages: Mapping[str, Stage]) -> Inputs:
    """Return everything a stage depends on.

    Raises:
        ConfigError: a stage that it reads has not been run.
    """
    values = leaves_of(stage.cache_key(run.config, run.sources))
    missing = {f"settings.{name}": value.path for name, value in values.items() if isinstance(value, MissingSource)}
    parts = {"code": digest_json([CODE_VERSION, stage.VERSION])}
    for name, value in values.items():
        known = {"missing": value.path.name} if isinstance(value, MissingSource) else value
        parts[f"settings.{name}"] = digest_json(known)
    parts |= {f"stage.{name}": output_digest(run, stages[name]) for name in stage.inputs(run.config)}
    return Inputs(parts=parts, settings=values, missing=missing)


def leaves_of(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Flatten nested settings by dotted name, so that changed settings can be named."""
    found: dict[str, object] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= leaves_of(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def work_folder(run: Run, stage: Stage) -> Path:
    """Return the folder in which a stage makes its result."""
    return run.folder / WORK_NAME / stage.folder
