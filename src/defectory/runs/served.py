"""A job in a process of its own, mostly one stage: how it gets there, and how its events come back, as JSON lines.

The process ends when the one that started it ends.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from defectory import errors
from defectory.config.project import ProjectConfig
from defectory.events import Event, Notice, Progress, StageEnded
from defectory.memory import collect_garbage_rarely, keep_freed_memory
from defectory.runs.outcome import run_stage
from defectory.runs.sources import Sources
from defectory.runs.stage import Run, Stage
from defectory.runs.verify import Verified

Message = dict[str, Any]
"""An event or an error: its class as `kind`, and its `content`."""
STOP = b"stop\n"
"""Asks a process to stop, on its standard input after the job."""
EVENTS: dict[str, type[Progress | Notice | StageEnded]] = {
    kind.__name__: kind for kind in (Progress, Notice, StageEnded)
}


def job_of(run: Run, stage: Stage, *, num_threads: int) -> dict[str, Any]:
    """Return what a process needs to know to run a stage, JSON-compatible."""
    config = run.config.model_copy(update={"threads": num_threads}).model_dump(mode="json")
    return {"config": config, "folder": str(run.folder), "sources": str(run.sources.folder), "stage": stage.name}


def event_of(message: Message) -> Event:
    """Return the event of a message.

    Raises:
        DefectoryError: that the message holds.
    """
    if message["kind"] in EVENTS:
        return EVENTS[message["kind"]](**message["content"])
    raise getattr(errors, message["kind"])(*message["content"])


class ServedJob:
    """A process that does one job, mostly a stage.

    Args:
        job: see `job_of`; its `stage` is its name. Run folder and sources must be reachable under the same paths.
        serve: code that the process runs; see `serve_stage` and `serve_events`.
        environment: of the process; None passes on this one's.
        todo: what to do if it is killed.
    """

    def __init__(
        self,
        job: Mapping[str, Any],
        serve: str,
        *,
        environment: Mapping[str, str] | None = None,
        todo: str = "run again to resume, with num_processes=1 to use less",
    ) -> None:
        self.name, self._todo = str(job["stage"]), todo
        # -P: otherwise python imports from the current folder first, and would run a user's scipy.py
        command = [sys.executable, "-P", "-c", serve]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._process.stdin is not None
        # stays open; end of file shows the child that this process has ended
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        self._process.stdin.flush()

    def messages(self) -> Iterator[Message]:
        """Yield each message as it comes; the last one is an error where the process failed."""
        assert self._process.stdout is not None
        with self._process.stdout as output:
            # a process that was killed may leave half a line
            yield from (json.loads(line) for line in output if line.endswith(b"\n"))
        self._process.wait()
        if (error := self._failure()) is not None:
            yield {"kind": "StageError", "content": [error]}

    def stop(self, *, seconds: float) -> None:
        """Ask the process to stop at its next event, and wait for it, but not longer than some seconds."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError, ValueError, subprocess.TimeoutExpired):
            self._process.stdin.write(STOP)
            self._process.stdin.flush()
            self._process.wait(seconds)

    def kill(self) -> None:
        """End the process, if it has not ended yet."""
        self._process.kill()
        self._process.wait()
        with suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def _failure(self) -> str | None:
        code = self._process.returncode
        if code < 0:
            return f"{self.name}: its process was killed by signal {-code}, perhaps for lack of memory; {self._todo}"
        return f"{self.name}: its process ended with exit code {code}, see above; run again to resume" if code else None


def served_messages(job: Mapping[str, Any], serve: str) -> Iterator[Message]:
    """Run a stage in a process of its own and yield its messages; leaving the loop ends the process."""
    served = ServedJob(job, serve)
    try:
        yield from served.messages()
    finally:
        served.kill()


def side_by_side(
    jobs: Sequence[Mapping[str, Any]], serve: str, *, num_processes: int
) -> Generator[tuple[str, Message | None]]:
    """Do jobs in processes, some at a time, and yield each one's name and message; None ends a job.

    The processes end with this one, however it ends, and when the loop is left. Messages of different jobs interleave.

    Args:
        jobs: in order; their names differ.
        serve: as for `ServedJob`.
        num_processes: at a time.
    """
    waiting, running = list(jobs), dict[str, ServedJob]()
    messages: queue.Queue[tuple[str, Message | None]] = queue.Queue()
    try:
        while waiting or running:
            while waiting and len(running) < num_processes:
                served = ServedJob(waiting.pop(0), serve)
                running[served.name] = served
                listen_to(served, messages)
            name, message = messages.get()
            if message is None:
                running.pop(name).kill()
            yield name, message
    finally:
        for served in running.values():
            served.kill()


def listen_to(served: ServedJob, messages: queue.Queue[tuple[str, Message | None]]) -> None:
    """Put each message of a job into a queue as it comes, with the job's name; None ends the job."""

    def listen() -> None:
        try:
            for message in served.messages():
                messages.put((served.name, message))
        finally:
            messages.put((served.name, None))

    threading.Thread(target=listen, daemon=True).start()


def serve_stage(stages_of: Callable[[Run], Mapping[str, Stage]]) -> None:
    """Run the stage requested on standard input, and write its events to standard output as JSON lines.

    Args:
        stages_of: returns the stages of a run by name.
    """

    def events(job: Mapping[str, Any]) -> Generator[Event]:
        run = Run(
            config=ProjectConfig.model_validate(job["config"]),
            folder=Path(job["folder"]),
            sources=Sources(folder=Path(job["sources"])),
        )
        stages = stages_of(run)
        yield from run_stage(run, stages[job["stage"]], stages, verified=Verified(trusted=True))

    serve_events(events)


def serve_events(events_of: Callable[[Mapping[str, Any]], Generator[Event]]) -> None:
    """Do the job requested on standard input, and write its events to standard output as JSON lines.

    Args:
        events_of: does a job and yields its events.
    """
    # Ctrl-C reaches all processes of a terminal; the parent process decides
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    collect_garbage_rarely()
    keep_freed_memory()
    channel = os.fdopen(os.dup(1), "w")
    # what a library prints is not an event
    os.dup2(2, 1)
    job = json.loads(sys.stdin.buffer.readline())
    stopped = threading.Event()
    threading.Thread(target=_end_with_parent, args=(stopped,), daemon=True).start()

    def tell(kind: str, content: object) -> None:
        print(json.dumps({"kind": kind, "content": content}), file=channel, flush=True)

    try:
        with closing(events_of(job)) as events:
            for event in events:
                tell(type(event).__name__, asdict(event))
                if stopped.is_set():
                    break
    except errors.InputError as error:
        tell(type(error).__name__, [error.where, error.found, error.todo])
    except errors.DefectoryError as error:
        tell(type(error).__name__, [str(error)])


def _end_with_parent(stopped: threading.Event) -> None:
    """End this process when the one that started it ends, and set an event when that one asks to stop."""
    while os.read(0, len(STOP)):
        stopped.set()
    os._exit(1)
