"""Runs the cells of a study in processes of their own, and keeps what each has found."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from defectory.errors import DefectoryError, StageError
from defectory.events import Event, Notice, StageEnded
from defectory.folders.swap import remove_ours
from defectory.runs.graph import by_name, needed_for
from defectory.runs.served import event_of, side_by_side
from defectory.runs.stage import Run, Stage
from defectory.stages.all import stages_of
from defectory.studies.cells import Cell
from defectory.studies.results import has_result, keep_result

if TYPE_CHECKING:
    from defectory.studies.study import Study

LAST_STAGE = "evaluate"
SERVE = "from defectory.studies.serve import serve; serve()"


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


def stages_until_scores(run: Run) -> list[Stage]:
    """Return the stages of a cell, up to the scores."""
    stages = stages_of(run.config)
    named = by_name(stages)
    return [named[name] for name in needed_for(stages, [LAST_STAGE], run.config)]


class Running:
    """The cells of a study that are left to run.

    Args:
        study: whose cells are run.
    """

    def __init__(self, study: Study) -> None:
        self._study = study
        self._began = time.monotonic()
        self._num_run = 0
        self._failed: dict[str, str] = {}
        self._finished = 0
        self._done: dict[str, int] = {}

    def events(self) -> Iterator[Event | CellChanged]:
        """Run the cells, several at a time, and yield what changes; see `Study.events`."""
        study, left = self._study, dict[str, Cell]()
        cells = study.cells
        self._num_cells = len(cells)
        for cell in cells:
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
            "siblings": str(study.siblings),
            "until": LAST_STAGE,
            "transfer_to": None if study.transfer_to is None else str(study.transfer_to),
            "others": {name: str(folder) for name, folder in study.others.items()},
        }

    def _messages(self, jobs: Sequence[Mapping[str, Any]]) -> Generator[tuple[str, Event | DefectoryError | None]]:
        with closing(side_by_side(jobs, SERVE, num_processes=self._study.num_parallel)) as messages:
            for name, message in messages:
                try:
                    yield name, None if message is None else event_of(message)
                except DefectoryError as error:
                    yield name, error

    def _told(self, cell: Cell, event: Event | DefectoryError) -> Iterator[Event | CellChanged]:
        if cell.name not in self._done:
            self._done[cell.name], self._num_stages = 0, len(stages_until_scores(self._study.run_of(cell)))
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
            for stage in reversed(stages_until_scores(run)):
                remove_ours(run.folder / stage.folder)
        self._finished += 1
        told = _told_scores(run.store().scores) if study.project.config.study.keep == "runs" else ""
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
            num_cells=self._num_cells,
            seconds_left=left,
        )


def _told_scores(scores: Mapping[str, Any]) -> str:
    metric = scores["primary_metric"]["metric"]
    return ", ".join(f"{arm} {of[metric]:.3f}" for arm, of in scores["arms"].items())
