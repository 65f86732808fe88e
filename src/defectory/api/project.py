"""A project: a project file, and the run folder that it fills."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectory import __version__
from defectory.artifacts.dataset import Dataset
from defectory.artifacts.next_step import NextStep
from defectory.artifacts.plan import Decisions, Plan
from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.config.project import ProjectConfig
from defectory.config.resolve import Resolved, resolve, texts_of
from defectory.config.template import path_from, write_project_file
from defectory.errors import ConfigError
from defectory.events import Event
from defectory.runs import layout
from defectory.runs.graph import State, needed_for, select, states_of
from defectory.runs.sources import Sources
from defectory.runs.stage import Run, Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import DraftFolder
from defectory.runs.verify import Finding, verify_run

if TYPE_CHECKING:
    from defectory.stages.parts.certificate_check import CertificateCheck
    from defectory.stages.parts.estimate.estimate import Estimate

RESERVED = ("DEFECTORY_BASES", "DEFECTORY_DEBUG")
"""Variables with the prefix `DEFECTORY_` that are not settings."""


@dataclass(frozen=True, kw_only=True)
class Project:
    """A project file and its run. Make one with `Project.open` or `Project.create`.

    Attributes:
        file: the project file.
        resolved: every setting with its origin.
        run_folder: what the stages fill.
    """

    file: Path
    resolved: Resolved
    run_folder: Path
    _stages: tuple[Stage, ...] = field(default=(), repr=False)

    @classmethod
    def open(
        cls,
        file: Path | str = "project.toml",
        *,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        preset: str | None = None,
        seed: int | None = None,
        device: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Project:
        """Open a project file; nothing is written.

        Args:
            file: project file (TOML).
            overrides: settings that win over the file, as a mapping of dotted keys or as `key=value` texts.
            preset: in place of the file's.
            seed: of the whole project.
            device: `auto`, `cpu`, `cuda`, `cuda:1`, ...
            environment: variables `DEFECTORY_SECTION__KEY` that win over the file; None takes those of the process.

        Raises:
            ConfigError: the file is missing, or a setting is unknown or wrong.
        """
        file = Path(file)
        given = os.environ if environment is None else environment
        resolved = resolve(
            project_file=file,
            preset=preset,
            environment={name: value for name, value in given.items() if name not in RESERVED},
            overrides=_texts(overrides, seed=seed, device=device),
        )
        resolved, folder = _with_paths(resolved, file)
        from defectory.stages.all import stages_of

        return cls(file=file, resolved=resolved, run_folder=folder, _stages=stages_of(resolved.config))

    @classmethod
    def create(
        cls,
        file: Path | str = "project.toml",
        *,
        data: Path | str,
        defect_free: Path | str | None = None,
        preset: str | None = "cpu",
        every_setting: bool = False,
        settings: Mapping[str, Any] | None = None,
        force: bool = False,
    ) -> Project:
        """Write a commented project file and open it.

        Args:
            file: to write.
            data: annotation file or folder of a data set; it may not be there yet.
            defect_free: folder of further images, all without defects.
            preset: settings measured for a machine or purpose.
            every_setting: write all settings, not only those that matter most.
            settings: further values to write, for example `{"synthesis.num_images": 50}`.
            force: replace a project file that is there.

        Raises:
            ConfigError: the file is there, a setting is unknown or wrong, or a name cannot stand in the file.
        """
        write_project_file(
            Path(file),
            data=Path(data),
            defect_free=None if defect_free is None else Path(defect_free),
            preset=preset,
            every_setting=every_setting,
            settings=settings or {},
            force=force,
        )
        return cls.open(file, environment={})

    @property
    def config(self) -> ProjectConfig:
        """Return the resolved configuration."""
        return self.resolved.config

    @cached_property
    def run_values(self) -> Run:
        """Return the project as a value for the run machinery."""
        sources = Sources(folder=self.file.resolve().parent, command=self.resolved.command)
        return Run(config=self.config, folder=self.run_folder, sources=sources)

    @property
    def store(self) -> RunStore:
        """Return the results of all stages, by name."""
        return self.run_values.store()

    def stages(self, *, until: str | Sequence[str] | None = None, only: str | Sequence[str] | None = None) -> list[str]:
        """Return the names of stages in order: all, those up to some, or only some.

        Args:
            until: these stages and all that they need; the name of a group (`segment`) selects all its stages.
            only: these stages without what they need.

        Raises:
            ConfigError: an unknown stage.
        """
        if until is not None:
            return needed_for(self._stages, _names(until), self.config)
        if only is not None:
            return [stage.name for stage in select(self._stages, _names(only))]
        return [stage.name for stage in self._stages]

    def states(self) -> dict[str, State]:
        """Return for each stage whether it has to run, and what changed if it has to run again."""
        return states_of(self.run_values, self._stages)

    def to_run_again(self, stages: Sequence[str], *, min_seconds: float = 0.0) -> list[State]:
        """Return the finished stages, among some, whose results would be replaced if these were run.

        Args:
            stages: names of stages.
            min_seconds: stages that took less are left out.
        """
        try:
            states = self.states()
        except ConfigError:  # running them will say what is wrong before anything is replaced
            return []
        return [states[name] for name in stages if states[name].why and states[name].seconds >= min_seconds]

    def folder_of(self, stage: str) -> Path:
        """Return the folder of a stage's result."""
        return self.run_folder / next(of.folder for of in self._stages if of.name == stage)

    def path_from(self, path: Path | str) -> str:
        """Convert a path from the current folder to one that the project file can hold: relative to the file."""
        return path_from(self.file, Path(path))

    def events(
        self, *, until: str | Sequence[str] | None = None, only: str | Sequence[str] | None = None
    ) -> Iterator[Event]:
        """Run stages that are not up to date, and yield Progress, Notice and StageEnded.

        Leaving the loop stops the run; the next one resumes it.

        Args:
            until: as for `stages`.
            only: as for `stages`.

        Raises:
            ConfigError: a setting, source or device that cannot work, a disk that is too small, or a stage without its
                inputs.
            WeightsError: the base cannot be used.
            OutputError: the run folder holds files that Defectory did not write, or cannot be written.
            StageError: a stage failed, or another process writes into the run.
        """
        from defectory.stages.all import run_all

        def save_settings() -> None:
            self.resolved.save(self.run_folder / layout.SETTINGS, version=__version__)

        yield from run_all(self.run_values, only=self._selected(until, only), claimed=save_settings)

    def check(
        self, *, until: str | Sequence[str] | None = None, only: str | Sequence[str] | None = None
    ) -> tuple[str, ...]:
        """Check what can be known before the first stage, and return remarks; `events` does so too. Nothing is written.

        Args:
            until: as for `stages`.
            only: as for `stages`.

        Raises:
            ConfigError: a setting, a source or a device that cannot work, or a disk that is too small.
            WeightsError: the base cannot be used.
            OutputError: the run folder holds files that Defectory did not write, or cannot be written.
        """
        from defectory.runs.runner import check_stages
        from defectory.stages.all import CHECKS

        return check_stages(self.run_values, self._stages, checks=CHECKS, only=self._selected(until, only))

    def estimate(
        self, *, until: str | Sequence[str] | None = None, only: str | Sequence[str] | None = None
    ) -> Estimate:
        """Estimate seconds, memory and disk of the stages that would run; the others count as nothing.

        Times this machine for about a quarter of a second, unless nothing has to run.

        Args:
            until: as for `stages`.
            only: as for `stages`.

        Raises:
            ConfigError: an unknown stage, or a device that cannot be used.
        """
        from defectory.stages.parts.estimate.estimate import estimate_run

        return estimate_run(self.run_values, self._stages, only=self._selected(until, only))

    def _selected(self, until: str | Sequence[str] | None, only: str | Sequence[str] | None) -> list[str] | None:
        return None if until is None and only is None else self.stages(until=until, only=only)

    def run(self, *, until: str | Sequence[str] | None = None, only: str | Sequence[str] | None = None) -> Project:
        """Run stages that are not up to date, silently, and return the project; errors as for `events`."""
        for _ in self.events(until=until, only=only):
            pass
        return self

    def verify(self) -> list[Finding]:
        """Compare every file of the run with its digest, and return the finding of each stage."""
        return list(verify_run(self.run_values, self._stages))

    def check_certificate(self) -> CertificateCheck | None:
        """Check the split certificate from the files of the run; None if the run has none yet. Nothing is written."""
        from defectory.stages.parts.certificate_check import check_certificate

        return check_certificate(self.run_values)

    @property
    def dataset(self) -> Dataset:
        """Return the imported data set."""
        return self.store.data.dataset

    @property
    def split(self) -> Split:
        """Return the split."""
        return self.store.split

    @property
    def tiles(self) -> TileSet:
        """Return the tiles of train, pool and val."""
        return self.store.tiles.tileset

    @property
    def plan(self) -> Plan:
        """Return the synthesis plan."""
        return self.store.plan

    @property
    def drafts(self) -> DraftFolder:
        """Return the drafts: images, counterfactual halves and drivers by job."""
        return self.store.drafts

    @property
    def decisions(self) -> Decisions:
        """Return the decision on each draft."""
        return self.store.decisions

    @property
    def synthetic(self) -> Path:
        """Return the folder of the synthetic set: images, COCO annotations and provenance."""
        return self.store.synthetic

    @property
    def scores(self) -> dict[str, Any]:
        """Return all scores of the evaluation."""
        return self.store.scores

    @property
    def best_segmenter(self) -> Path:
        """Return the folder of the best segmenter, for `Segmenter.load`; `segmenter_card` says what it does."""
        return self.run_folder / layout.BEST_SEGMENTER

    @property
    def segmenter_card(self) -> SegmenterCard | None:
        """Return what is known of the best segmenter; None if no segmenter was trained."""
        return self.store.segmenter_card

    @property
    def report(self) -> Path:
        """Return the report page."""
        return self.run_folder / layout.RUN_REPORT

    @property
    def next_steps(self) -> tuple[NextStep, ...]:
        """Return what the report suggests to do next, the most useful first; commands work in the current folder."""
        command = replace(self.resolved.command, file=str(self.file))
        return tuple(
            step.model_copy(
                update={"command": command.text(step.verb, settings=step.settings, arguments=step.arguments)}
            )
            for step in self.store.next_steps
        )


def _names(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _texts(overrides: Mapping[str, Any] | Sequence[str], *, seed: int | None, device: str | None) -> list[str]:
    import json

    texts = texts_of(overrides)
    texts += [f"seed={seed}"] if seed is not None else []
    return texts + ([f"device={json.dumps(device)}"] if device is not None else [])


def _with_paths(resolved: Resolved, file: Path) -> tuple[Resolved, Path]:
    """Return the configuration with the base's path made absolute, and the run folder."""
    from defectory.engine.backbones.known import is_known

    try:
        source = file.resolve().parent
        base = resolved.config.base
        if not is_known(base):
            resolved = resolved.with_value("base", str(source / Path(base).expanduser()))
        return resolved, source / resolved.config.out
    except (OSError, RuntimeError, ValueError) as error:  # `~nobody`, a link to itself
        raise ConfigError(file, f"names a path that cannot be looked up ({error})", "correct `base` or `out`") from None
