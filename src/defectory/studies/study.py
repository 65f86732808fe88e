"""Runs the cells of a study side by side, resumes what was stopped, and gathers what came of them."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from defectory.api.project import Project
from defectory.artifacts.study import StudyOutcome
from defectory.config.recipes import RECIPES
from defectory.errors import ConfigError, DefectoryError, StageError
from defectory.events import Event, Notice, StageEnded
from defectory.folders.claims import claim_folder, require_claimable
from defectory.folders.swap import remove_ours
from defectory.lock import run_lock
from defectory.runs.executors import MAX_PROCESSES
from defectory.runs.graph import by_name
from defectory.runs.served import event_of, side_by_side
from defectory.runs.stage import Run, Stage
from defectory.stages.all import stages_of
from defectory.studies.cells import Cell, cells_of, overrides_of
from defectory.studies.gather import gather
from defectory.studies.results import has_result, keep_result, key_of, load_result
from defectory.studies.writing import write_outcome

KIND = "study"
CELLS, RESULTS = "cells", "results"
LAST_STAGE = "evaluate"
SERVE = "from defectory.studies.serve import serve; serve()"
ANOTHER_FOLDER = 'set `study.out` to a new folder, for example study.out = "runs/second-study"'


@dataclass(frozen=True, kw_only=True)
class CellChanged:
    """A cell of a study begins, goes on, or ends.

    Attributes:
        cell: its name.
        state: `running`, `finished`, `finished before` or `failed`.
        note: the stage it is in, its scores, or why it failed.
        share: how much of it is done, 0 to 1, by the number of its stages.
        num_finished: cells of the study that are finished.
        num_cells: cells of the study.
        seconds_left: until all are finished; None before one is.
    """

    cell: str
    state: str
    note: str = ""
    share: float = 0.0
    num_finished: int = 0
    num_cells: int = 0
    seconds_left: float | None = None


@dataclass(frozen=True, kw_only=True)
class Study:
    """A project and the cells of its study. Make one with `Study.open`.

    Attributes:
        project: the project that cells vary.
        overrides: settings of the command line, as texts.
        device: of the command line; None for the project's.
        preset: of the command line; None for the project's.
    """

    project: Project
    overrides: tuple[str, ...] = ()
    device: str | None = None
    preset: str | None = None

    @classmethod
    def open(
        cls,
        file: Path | str = "project.toml",
        *,
        overrides: Mapping[str, Any] | Sequence[str] = (),
        preset: str | None = None,
        seed: int | None = None,
        device: str | None = None,
    ) -> Study:
        """Open a project file with the section `study`; nothing is written.

        Args:
            file: project file (TOML).
            overrides: settings that win over the file, as for `Project.open`.
            preset: in place of the file's.
            seed: of the test images; `study.seeds` are those of everything else.
            device: `auto`, `cpu`, `cuda`, ...

        Raises:
            ConfigError: a setting, or a variant's, is unknown or wrong.
        """
        from defectory.config.resolve import texts_of

        texts = [*texts_of(overrides), *([f"seed={seed}"] if seed is not None else [])]
        project = Project.open(file, overrides=texts, preset=preset, device=device)
        study = cls(project=project, overrides=tuple(texts), device=device, preset=preset)
        for cell in study.cells:
            study.project_of(cell)
        return study

    @property
    def folder(self) -> Path:
        """Return the study's folder."""
        return self.project.file.resolve().parent / self.project.config.study.out

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Return all cells, in the order in which they are run."""
        return tuple(cells_of(self.project.config))

    def project_of(self, cell: Cell) -> Project:
        """Open the project of one cell; nothing is written.

        Raises:
            ConfigError: a setting of its variant is unknown or wrong.
        """
        return Project.open(
            self.project.file, overrides=self.overrides_of_cell(cell), preset=self.preset, device=self.device
        )

    def run_of(self, cell: Cell) -> Run:
        """Return the run of one cell, with its siblings."""
        return replace(self.project_of(cell).run_values, siblings=self.folder / CELLS)

    def overrides_of_cell(self, cell: Cell) -> list[str]:
        """Return the settings of a cell, as texts of the command line."""
        own: dict[str, object] = {"out": f"{self.project.config.study.out}/{CELLS}/{cell.folder_name}"}
        if self.num_processes > 1:
            own |= {"threads": self._threads_of_one, "executor": "in-process"}
        return [*self.overrides, *overrides_of({**cell.settings, **own})]

    @cached_property
    def num_processes(self) -> int:
        """Return how many cells run side by side."""
        wanted = self.project.config.study.num_processes
        return min(wanted or (MAX_PROCESSES if self._on_cpu else 1), self._num_threads, max(1, len(self.cells)))

    @cached_property
    def _on_cpu(self) -> bool:
        from defectory.engine.devices import device_of

        return device_of(self.project.config.device, threads=self.project.config.threads) == "cpu"

    @cached_property
    def _num_threads(self) -> int:
        import torch

        return self.project.config.threads or torch.get_num_threads()

    @property
    def _threads_of_one(self) -> int:
        return max(1, self._num_threads // self.num_processes)

    def result_folder(self, cell: Cell) -> Path:
        """Return the folder of a cell's result, which is named after everything that decides it."""
        run = self.run_of(cell)
        return self.folder / RESULTS / key_of(run, _stages(run))

    def finished(self) -> list[Cell]:
        """Return the cells with a result, in order."""
        return [cell for cell in self.cells if has_result(self.result_folder(cell))]

    def check(self) -> tuple[str, ...]:
        """Check what can be known before the first cell, and return remarks. Nothing is written.

        Raises:
            ConfigError: a setting, a source or a device that cannot work.
            OutputError: the study's folder holds files that Defectory did not write.
        """
        require_claimable(self.folder, kind=KIND, todo=ANOTHER_FOLDER)
        return self.project_of(self.cells[0]).check(until=LAST_STAGE)

    def events(self) -> Iterator[Event | CellChanged]:
        """Run every cell without a result, several at a time; yield what changes, and the notices of cells.

        Leaving the loop stops the study; the next call resumes it. A cell that fails is told and left out; the others
        go on.

        Raises:
            ConfigError: nothing can be run.
            OutputError: the study's folder holds files that Defectory did not write, or cannot be written.
            StageError: another process runs a study in this folder, or every cell failed.
        """
        self.check()
        claim_folder(self.folder, kind=KIND, todo=ANOTHER_FOLDER)
        with run_lock(self.folder):
            yield from _Running(self).events()
        self.write()

    def outcome(self) -> StudyOutcome:
        """Return what is known from the finished cells.

        Raises:
            StageError: a result is damaged.
        """
        config = self.project.config
        found = {cell: load_result(folder) for cell in self.cells if has_result(folder := self.result_folder(cell))}
        return gather(
            self.cells,
            found,
            project=config.name,
            recipe=config.study.recipe,
            summary=RECIPES.get(config.study.recipe).summary,
            seeds=config.study.seeds,
        )

    def write(self) -> StudyOutcome:
        """Write what is known from the finished cells, as JSON, CSV, SVG and a page, and return it."""
        outcome = self.outcome()
        write_outcome(outcome, self.folder, name=self.project.config.study.recipe)
        return outcome

    @property
    def page(self) -> Path:
        """Return the page of the study."""
        return self.folder / f"{self.project.config.study.recipe}.html"


def _stages(run: Run) -> list[Stage]:
    """Return the stages of a cell, up to the scores."""
    from defectory.runs.graph import needed_for

    stages = stages_of(run.config)
    named = by_name(stages)
    return [named[name] for name in needed_for(stages, [LAST_STAGE], run.config)]


class _Running:
    """The cells that are left to run."""

    def __init__(self, study: Study) -> None:
        self._study = study
        self._began = time.monotonic()
        self._num_run = 0
        self._failed: dict[str, str] = {}
        self._finished = 0
        self._done: dict[str, float] = {}

    def events(self) -> Iterator[Event | CellChanged]:
        study, left = self._study, dict[str, Cell]()
        for cell in study.cells:
            if has_result(study.result_folder(cell)):
                self._finished += 1
                yield self._changed(cell.name, "finished before", share=1.0)
            else:
                left[cell.name] = cell
        jobs = [self._job(cell) for cell in left.values()]
        self._left = len(jobs)
        with closing(self._messages(jobs)) as messages:
            for name, event in messages:
                if event is None:
                    yield from self._ended(left[name])
                else:
                    yield from self._told(left[name], event)
        if self._failed and not self._finished:
            name, why = next(iter(self._failed.items()))
            raise StageError(f"every cell failed; {name}: {why}")

    def _job(self, cell: Cell) -> dict[str, Any]:
        study = self._study
        return {
            "stage": cell.name,
            "file": str(study.project.file.resolve()),
            "overrides": study.overrides_of_cell(cell),
            "preset": study.preset,
            "device": study.device,
            "siblings": str(study.folder / CELLS),
            "until": LAST_STAGE,
        }

    def _messages(self, jobs: Sequence[Mapping[str, Any]]) -> Generator[tuple[str, Event | DefectoryError | None]]:
        with closing(side_by_side(jobs, SERVE, num_processes=self._study.num_processes)) as messages:
            for name, message in messages:
                try:
                    yield name, None if message is None else event_of(message)
                except DefectoryError as error:
                    yield name, error

    def _told(self, cell: Cell, event: Event | DefectoryError) -> Iterator[Event | CellChanged]:
        names = [stage.name for stage in _stages(self._study.run_of(cell))] if cell.name not in self._done else []
        if names:
            self._done[cell.name], self._num_stages = 0.0, len(names)
        if isinstance(event, DefectoryError):
            self._failed[cell.name] = str(event)
        elif isinstance(event, Notice):
            yield Notice(stage=f"{cell.name}, {event.stage}", text=event.text)
        elif isinstance(event, StageEnded):
            self._done[cell.name] += 1
            yield self._changed(cell.name, "running", note=event.stage, share=self._done[cell.name] / self._num_stages)
        else:
            within = event.done / max(1, event.total)
            share = min(1.0, (self._done[cell.name] + within) / self._num_stages)
            note = f"{event.stage} {event.done}/{event.total}"
            yield self._changed(cell.name, "running", note=note, share=share)

    def _ended(self, cell: Cell) -> Iterator[CellChanged]:
        study = self._study
        self._num_run += 1
        if cell.name in self._failed:
            yield self._changed(cell.name, "failed", note=self._failed[cell.name])
            return
        run = study.run_of(cell)
        seconds = sum(float(of["info"]["seconds"]) for of in run.store().manifests().values())
        keep_result(run, study.result_folder(cell), name=cell.name, seconds=seconds)
        if study.project.config.study.keep == "results":
            for stage in reversed(_stages(run)):
                remove_ours(run.folder / stage.folder)
        self._finished += 1
        arms = run.store().scores["arms"] if study.project.config.study.keep == "runs" else {}
        told = ", ".join(f"{arm} {scores['segm_map']:.3f}" for arm, scores in arms.items())
        yield self._changed(cell.name, "finished", note=told, share=1.0)

    def _changed(self, name: str, state: str, *, note: str = "", share: float = 0.0) -> CellChanged:
        left = None
        if self._num_run:
            left = (time.monotonic() - self._began) / self._num_run * (self._left - self._num_run)
        return CellChanged(
            cell=name,
            state=state,
            note=note,
            share=share,
            num_finished=self._finished,
            num_cells=len(self._study.cells),
            seconds_left=left,
        )


def require_cells(study: Study) -> None:
    """Require that a study has something to compare.

    Raises:
        ConfigError: it has a single arm and a single variant.
    """
    if len({(cell.variant.name, arm) for cell in study.cells for arm in cell.arms}) < 2:
        raise ConfigError("study.arms", "a single arm of a single variant", "name at least two arms to compare")
