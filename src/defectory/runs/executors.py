"""Runs independent stages one after the other, or side by side in local processes."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from defectory import errors
from defectory.config.project import ProjectConfig
from defectory.events import Event, Notice, Progress, StageEnded
from defectory.memory import give_back_freed_memory, keep_freed_memory
from defectory.registry import Registry
from defectory.runs.outcome import make_work_root, run_stage
from defectory.runs.sources import Sources
from defectory.runs.stage import Run, Stage
from defectory.runs.verify import Verified

MAX_PROCESSES = 4
"""Most processes at a time; each takes a gigabyte or more. They pay even on two threads (decision 043)."""
EVENTS: dict[str, type[Progress | Notice | StageEnded]] = {
    kind.__name__: kind for kind in (Progress, Notice, StageEnded)
}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Stages of one group to run.

    Attributes:
        stages: to run; they are independent of each other.
        all_stages: of the run, by name.
        group_size: number of stages in the group, including those that do not have to run.
        verified: results already compared with their digests, including all that the stages read.
        serve: code that a child process runs to serve one stage; see `serve_stage`.
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

    if config.executor == "auto":
        on_cpu = device_of(config.device, threads=config.threads) == "cpu"
        return _shares(config, group_size)[0] if on_cpu else 1
    return _shares(config, group_size)[0] if config.executor == "local-processes" else 1


def _shares(config: ProjectConfig, group_size: int) -> tuple[int, int]:
    """Return the number of processes at a time and the threads of each."""
    import torch

    num_threads = config.threads or torch.get_num_threads()
    # counts the whole group: the number of threads decides the last bits of a result, however many stages are left
    num_processes = min(group_size, config.segmentation.num_processes or (MAX_PROCESSES if num_threads > 1 else 1))
    return num_processes, max(1, num_threads // num_processes)


def run_in_local_processes(run: Run, batch: Batch) -> Iterator[Event]:
    """Run stages side by side, each in a process of its own with its share of the threads.

    The child processes end with this process, however it ends. Events of different stages interleave.

    Raises:
        DefectoryError: of the first stage that fails; the others stop, and resume on the next run.
    """
    num_processes, num_threads = _shares(run.config, batch.group_size)
    make_work_root(run)
    give_back_freed_memory()
    config = run.config.model_copy(update={"threads": num_threads}).model_dump(mode="json")
    waiting, running = list(batch.stages), dict[str, subprocess.Popen[bytes]]()
    messages: _Messages = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                stage = waiting.pop(0)
                job = {"config": config, "folder": str(run.folder), "sources": str(run.sources.folder)}
                running[stage.name] = _start({**job, "stage": stage.name}, messages, batch.serve)
            name, message = messages.get()
            if message is None:
                _require_success(name, _end(running.pop(name)))
            elif message["kind"] in EVENTS:
                yield EVENTS[message["kind"]](**message["content"])
            else:
                raise getattr(errors, message["kind"])(*message["content"])
    finally:
        for process in running.values():
            process.kill()
            _end(process)


_Messages = queue.Queue[tuple[str, dict[str, Any] | None]]


def _start(job: dict[str, Any], messages: _Messages, serve: str) -> subprocess.Popen[bytes]:
    # -P: otherwise python imports from the current folder first, and would run a user's scipy.py
    process = subprocess.Popen([sys.executable, "-P", "-c", serve], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout
    # stays open; end of file shows the child that this process has ended
    process.stdin.write(json.dumps(job).encode() + b"\n")
    process.stdin.flush()

    def listen() -> None:
        try:
            with output:
                for line in output:
                    messages.put((job["stage"], json.loads(line)))
        finally:
            messages.put((job["stage"], None))

    threading.Thread(target=listen, daemon=True).start()
    return process


def _end(process: subprocess.Popen[bytes]) -> int:
    code = process.wait()
    assert process.stdin is not None
    process.stdin.close()
    return code


def _require_success(name: str, code: int) -> None:
    if code < 0:
        raise errors.StageError(
            f"{name}: its process was killed by signal {-code}, perhaps for lack of memory; run again to resume, with "
            "segmentation.num_processes=1 to use less"
        )
    if code > 0:
        raise errors.StageError(f"{name}: its process ended with exit code {code}, see above; run again to resume")


def serve_stage(stages_of: Callable[[Run], Mapping[str, Stage]]) -> None:
    """Run the stage requested on standard input, and write its events to standard output as JSON lines.

    Args:
        stages_of: returns the stages of a run by name.
    """
    # Ctrl-C reaches all processes of a terminal; the parent process decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    channel = os.fdopen(os.dup(1), "w")
    # what a library prints is not an event
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tell(kind: str, content: object) -> None:
        print(json.dumps({"kind": kind, "content": content}), file=channel, flush=True)

    run = Run(
        config=ProjectConfig.model_validate(job["config"]),
        folder=Path(job["folder"]),
        sources=Sources(folder=Path(job["sources"])),
    )
    stages = stages_of(run)
    try:
        for event in run_stage(run, stages[job["stage"]], stages, verified=Verified(trusted=True)):
            tell(type(event).__name__, asdict(event))
    except errors.InputError as error:
        tell(type(error).__name__, [error.where, error.found, error.todo])
    except errors.DefectoryError as error:
        tell(type(error).__name__, [str(error)])


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
