"""Runs independent stages one after the other, or side by side in local processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from defectory.config.project import ProjectConfig
from defectory.events import Event
from defectory.memory import give_back_freed_memory
from defectory.registry import Registry
from defectory.runs.outcome import make_work_root, run_stage
from defectory.runs.served import event_of, job_of, side_by_side
from defectory.runs.stage import Run, Stage
from defectory.runs.verify import Verified

MAX_PROCESSES = 4
"""Most processes at a time; each takes a gigabyte or more. They pay even on two threads (decision 043)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stages of one group to run.

    Attributes:
        stages: to run; they are independent of each other.
        all_stages: of the run, by name.
        group_size: number of stages in the group, including those that do not have to run.
        verified: results already compared with their digests, including all that the stages read.
        serve: code that a child process runs to serve one stage; see `served.serve_stage`.
    """

    stages: Sequence[Stage]
    all_stages: Mapping[str, Stage]
    group_size: int
    verified: Verified
    serve: str


class Executor(Protocol):
    """Runs a batch of stages. The next batch resumes the partial work of one that failed or was stopped."""

    def __call__(self, run: Run, batch: Batch) -> Iterator[Event]:
        """Run the stages; yield their events, each with its stage's name.

        Raises:
            DefectoryError: of the first stage that fails.
        """
        ...


EXECUTORS: Registry[Executor] = Registry(
    "executors",
    setting="executor",
    builtin={
        "auto": "defectory.runs.executors:run_where_it_pays",
        "in-process": "defectory.runs.executors:run_in_process",
        "local-processes": "defectory.runs.executors:run_in_local_processes",
    },
)


def run_in_process(run: Run, batch: Batch) -> Iterator[Event]:
    """Run stages one after the other in this process."""
    for stage in batch.stages:
        yield from run_stage(run, stage, batch.all_stages, verified=batch.verified)


def run_where_it_pays(run: Run, batch: Batch) -> Iterator[Event]:
    """Run stages in local processes on a CPU with several threads, else one after the other.

    Training one small network leaves most of a CPU's threads idle.
    """
    pays = num_side_by_side(run.config, batch.group_size) > 1
    yield from (run_in_local_processes if pays else run_in_process)(run, batch)


def num_side_by_side(config: ProjectConfig, group_size: int) -> int:
    """Return how many stages of a group run at a time. An executor of an installed package counts as one."""
    from defectory.engine.devices import device_of

    num_processes, _ = shares(config, group_size, _num_threads(config))
    on_cpu = device_of(config.device, threads=config.threads) == "cpu"
    return num_processes if runs_side_by_side(config, num_processes, on_cpu=on_cpu) else 1


def runs_side_by_side(config: ProjectConfig, num_processes: int, *, on_cpu: bool) -> bool:
    """Return whether the executor of a project runs stages of a group side by side.

    Args:
        config: of the project.
        num_processes: as from `shares`.
        on_cpu: whether networks run on the CPU.
    """
    return config.executor == "local-processes" or (config.executor == "auto" and on_cpu and num_processes > 1)


def shares(config: ProjectConfig, group_size: int, num_threads: int) -> tuple[int, int]:
    """Return the number of processes at a time and the threads of each, for a group run side by side.

    Args:
        config: of the project.
        group_size: number of stages in the group. All count: the number of threads decides the last bits of a result,
            however many stages are left.
        num_threads: of the run.
    """
    num_processes = min(group_size, config.num_processes or (MAX_PROCESSES if num_threads > 1 else 1))
    return num_processes, max(1, num_threads // num_processes)


def _num_threads(config: ProjectConfig) -> int:
    import torch

    return config.threads or torch.get_num_threads()


def run_in_local_processes(run: Run, batch: Batch) -> Iterator[Event]:
    """Run stages side by side, each in a process of its own with its share of the threads.

    The child processes end with this process, however it ends. Events of different stages interleave.

    Raises:
        DefectoryError: of the first stage that fails; the others stop, and resume on the next run.
    """
    num_processes, num_threads = shares(run.config, batch.group_size, _num_threads(run.config))
    make_work_root(run)
    give_back_freed_memory()
    jobs = [job_of(run, stage, num_threads=num_threads) for stage in batch.stages]
    with closing(side_by_side(jobs, batch.serve, num_processes=num_processes)) as messages:
        for _, message in messages:
            if message is not None:
                yield event_of(message)
