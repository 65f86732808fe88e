"""Stages that need nothing of each other, each in a process of its own: one training of a small network leaves most of
a CPU's threads idle.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from defectory import errors
from defectory.config.project import ProjectConfig
from defectory.memory import give_back_freed_memory, keep_freed_memory
from defectory.pipeline.outcome import is_up_to_date, make_work_root, run_stage
from defectory.pipeline.stage import Event, Notice, Progress, Project, Stage, StageEnded
from defectory.pipeline.verify import Verified

MAX_PROCESSES = 4
"""Each holds a gigabyte, or somewhat more. On two threads, too: three at once share them more evenly than two and then
one (decision 043).
"""
SERVE = "from defectory.pipeline.side_by_side import serve; serve()"


def run_segmenters(
    project: Project, segmenters: Sequence[Stage], stages: Sequence[Stage], *, num_segmenters: int, verified: Verified
) -> Iterator[Event]:
    """Run the stages of segmenters, on a CPU side by side.

    Args:
        project: resolved configuration and folders.
        segmenters: stages to run.
        stages: all of the project's.
        num_segmenters: that the project has, whichever of them are left to run: how many threads each gets decides its
            last bits.
        verified: what has been held against its digests.
    """
    left: list[Stage] = []
    for stage in segmenters:
        if is_up_to_date(project, stage, stages, verified=verified):
            yield from run_stage(project, stage, stages, verified=verified)
        else:
            left.append(stage)
    if not left:
        return
    import torch

    from defectory.pipeline.training import device_of

    # what they read is checked here, once for all of them
    by_name = {stage.name: stage for stage in stages}
    verified.require(project, [by_name[name] for name in dict.fromkeys(name for stage in left for name in stage.needs)])
    on_cpu, num_threads = device_of(project) == "cpu", torch.get_num_threads()
    num_processes = min(
        num_segmenters, project.config.segmentation.num_processes or (MAX_PROCESSES if num_threads > 1 else 1)
    )
    if on_cpu and num_processes > 1:
        make_work_root(project)
        yield from run_side_by_side(
            project, left, num_processes=num_processes, num_threads=max(1, num_threads // num_processes)
        )
        return
    for stage in left:
        yield from run_stage(project, stage, stages, verified=verified)


def run_side_by_side(
    project: Project, stages: Sequence[Stage], *, num_processes: int, num_threads: int
) -> Iterator[Event]:
    """Run stages that need nothing of each other in `num_processes` processes at a time, each with `num_threads`
    threads.

    When this process ends, however it does, so do they. Events of different stages come in between each other.

    Raises:
        DefectoryError: of the first stage that fails; the others are stopped, and go on from their checkpoints when
            they are run again.
    """
    give_back_freed_memory()
    config = project.config.model_copy(update={"threads": num_threads}).model_dump(mode="json")
    waiting, running = list(stages), dict[str, subprocess.Popen[bytes]]()
    messages: queue.Queue[tuple[str, dict[str, Any] | None]] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                stage = waiting.pop(0)
                job = {
                    "config": config,
                    "folder": str(project.folder),
                    "source_folder": str(project.source_folder),
                    "stage": stage.name,
                }
                running[stage.name] = _start(job, messages)
            name, message = messages.get()
            if message is None:
                code = _end(running.pop(name))
                if code < 0:
                    raise errors.StageError(
                        f"{name}: its process was killed by signal {-code}, for lack of memory?; run again to go on, "
                        "with segmentation.num_processes=1 to spare it"
                    )
                if code > 0:
                    raise errors.StageError(
                        f"{name}: its process ended with exit code {code}, for what is told above; run again to go on"
                    )
            elif message["kind"] == "Progress":
                yield Progress(**message["content"])
            elif message["kind"] == "Notice":
                yield Notice(**message["content"])
            elif message["kind"] == "StageEnded":
                yield StageEnded(**message["content"])
            else:
                raise getattr(errors, message["kind"])(*message["content"])
    finally:
        for process in running.values():
            process.kill()
            _end(process)


def _start(job: dict[str, Any], messages: queue.Queue[tuple[str, dict[str, Any] | None]]) -> subprocess.Popen[bytes]:
    # -P: else python looks for modules in the current folder first, and would run a user's scipy.py
    process = subprocess.Popen([sys.executable, "-P", "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout
    # stays open: its end tells the process that this one has ended
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


def serve() -> None:
    """Run the stage that a line on standard input asks for, and write its events to standard output as JSON lines."""
    # Ctrl-C reaches all processes of a terminal; the one that started this one decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed_memory()
    channel = os.fdopen(os.dup(1), "w")
    # what a library prints is none of the events
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from pathlib import Path

    from defectory.pipeline.run import stages_of

    def tell(kind: str, content: object) -> None:
        print(json.dumps({"kind": kind, "content": content}), file=channel, flush=True)

    project = Project(
        config=ProjectConfig.model_validate(job["config"]),
        folder=Path(job["folder"]),
        source_folder=Path(job["source_folder"]),
    )
    stages = stages_of(project)
    try:
        stage = next(stage for stage in stages if stage.name == job["stage"])
        for event in run_stage(project, stage, stages, verified=Verified(trusted=True)):
            tell(type(event).__name__, asdict(event))
    except errors.InputError as error:
        tell(type(error).__name__, [error.where, error.found, error.todo])
    except errors.DefectoryError as error:
        tell(type(error).__name__, [str(error)])


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os._exit(1)
