"""Runs stages in order: claims and locks the folder, skips finished stages, and checks before training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, takewhile
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.events import Event, Notice
from defectory.folders.claims import claim_folder, require_claimable
from defectory.lock import run_lock
from defectory.runs.executors import EXECUTORS, Batch
from defectory.runs.graph import UP_TO_DATE, State, by_name, select, states_of
from defectory.runs.outcome import is_up_to_date, require_stage_folder, run_stage, tidy
from defectory.runs.stage import Run, Stage
from defectory.runs.store import RunStore
from defectory.runs.together import make_together
from defectory.runs.verify import Verified

ANOTHER_FOLDER = 'set `out` to a new folder, for example out = "runs/first"'


@dataclass(frozen=True, kw_only=True)
class Checks:
    """Checks that run before long work.

    Attributes:
        before_all: checks what can be known before the first stage and before anything is written, and returns remarks.
            It gets the run, its stages, those asked for, the states of all, and the names of those that have to run.
            Raises ConfigError or WeightsError.
        before_training: checks the results of preparation, and returns remarks. Raises ConfigError or InputError.
        serve: code that a child process runs to serve one stage.
        serve_member: code that a process runs to take part in the training of a stage.
    """

    before_all: Callable[[Run, Sequence[Stage], Sequence[Stage], Mapping[str, State], Collection[str]], tuple[str, ...]]
    before_training: Callable[[RunStore, ProjectConfig], tuple[str, ...]]
    serve: str
    serve_member: str


def check_stages(
    run: Run, stages: Sequence[Stage], *, checks: Checks, only: Sequence[str] | None = None
) -> tuple[str, ...]:
    """Check what can be known before the first stage, and return remarks; arguments as for `run_stages`.

    Raises:
        ConfigError: an unknown stage, or something that a stage needs is missing or cannot work.
        WeightsError: the base cannot be used.
        OutputError: the run folder holds files that Defectory did not write, or cannot be written.
    """
    selected, states = list(stages) if only is None else select(stages, only), _states(run, stages)
    stale = [stage.name for stage in selected if _is_stale(states, stage)]
    remarks = checks.before_all(run, stages, selected, states, stale)
    require_claimable(run.folder, kind="run", also=("demo",), todo=ANOTHER_FOLDER)
    return remarks


def run_stages(
    run: Run,
    stages: Sequence[Stage],
    *,
    checks: Checks,
    only: Sequence[str] | None = None,
    claimed: Callable[[], None] | None = None,
) -> Iterator[Event]:
    """Run all stages in order, or the named ones; skip stages that are up to date.

    Args:
        run: resolved configuration and folders.
        stages: of the run, in order.
        checks: run before long work.
        only: names of stages or groups; their inputs must exist.
        claimed: is called once everything has been checked and the run folder is ours and locked.

    Raises:
        ConfigError: an unknown stage, a stage without its inputs, or a setting, source, device or disk that cannot
            work.
        WeightsError: the base is incomplete; nothing has been written.
        OutputError: the run folder or a stage folder holds files that Defectory did not write.
        StageError: another process writes into the run, or an input of the named stages is damaged.
    """
    selected = list(stages) if only is None else select(stages, only)
    remarks = check_stages(run, stages, checks=checks, only=only)
    claim_run(run.folder)
    with run_lock(run.folder):
        if claimed is not None:
            claimed()
        for remark in remarks:
            yield Notice(stage="check", text=remark)
        for stage in selected:
            require_stage_folder(run, stage)
        yield from _Runner(run=run, stages=stages, selected=selected, checks=checks).events()
        tidy(run)


def claim_run(folder: Path) -> None:
    """Mark a folder as a run folder, if it is not yet. The demo's project folder is its own run folder.

    Raises:
        OutputError: it holds files that Defectory did not write.
    """
    claim_folder(folder, kind="run", also=("demo",), todo=ANOTHER_FOLDER)


def _states(run: Run, stages: Sequence[Stage]) -> dict[str, State]:
    try:
        return states_of(run, stages)
    except ConfigError:
        return {}


def _is_stale(states: dict[str, State], stage: Stage) -> bool:
    return stage.name not in states or states[stage.name].state != UP_TO_DATE


@dataclass(kw_only=True)
class _Runner:
    run: Run
    stages: Sequence[Stage]
    selected: Sequence[Stage]
    checks: Checks
    verified: Verified = field(default_factory=Verified)

    def events(self) -> Iterator[Event]:
        is_checked = False
        named = by_name(self.stages)
        for group, of_group in groupby(self.selected, key=lambda stage: stage.group):
            for stage in [] if group else list(of_group):
                if not is_checked and not stage.is_preparation:
                    yield from self._check()
                    is_checked = True
                together = make_together(self.checks.serve_member)
                yield from run_stage(self.run, stage, named, verified=self.verified, make=together)
            if group:
                if not is_checked:
                    yield from self._check()
                    is_checked = True
                yield from self._run_group(group, list(of_group))

    def _check(self) -> Iterator[Event]:
        """Report dead ends before the first training stage, unless everything requested is up to date."""
        states = _states(self.run, self.stages)
        if not any(_is_stale(states, stage) for stage in self.selected if not stage.is_preparation):
            return
        # those before the first that trains: tiles of test are none of what is checked
        prepared = list(takewhile(lambda stage: stage.is_preparation, self.stages))
        self.verified.require(self.run, prepared)
        store = self.run.store().view([stage.folder for stage in prepared], reader="check")
        for remark in self.checks.before_training(store, self.run.config):
            yield Notice(stage="check", text=remark)

    def _run_group(self, group: str, together: Sequence[Stage]) -> Iterator[Event]:
        named, left = by_name(self.stages), list[Stage]()
        for stage in together:
            if is_up_to_date(self.run, stage, named, verified=self.verified):
                yield from run_stage(self.run, stage, named, verified=self.verified)
            else:
                left.append(stage)
        if not left:
            return
        # their inputs are checked here, once for all stages
        read = dict.fromkeys(name for stage in left for name in stage.inputs(self.run.config))
        self.verified.require(self.run, [named[name] for name in read])
        batch = Batch(
            stages=left,
            all_stages=named,
            group_size=sum(stage.group == group for stage in self.stages),
            verified=self.verified,
            serve=self.checks.serve,
        )
        yield from EXECUTORS.get(self.run.config.executor)(self.run, batch)
