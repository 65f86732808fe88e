"""Runs a stage that trains in several processes, one per GPU, which train together (`engine.training.team`).

The process that runs the project starts them for one stage and waits: it alone holds the lock, swaps results and shows
events. Of the others the first one writes into the work folder of the stage. They end with the process that started
them, and all end if one fails.
"""

from __future__ import annotations

import queue
import traceback
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from defectory.config.project import ProjectConfig
from defectory.errors import DefectoryError, LostProcessError, StageError, wants_traceback
from defectory.events import Event, StageEnded, Work
from defectory.files import in_progress
from defectory.memory import give_back_freed_memory
from defectory.runs.outcome import Make, make_here
from defectory.runs.served import EVENTS, Message, ServedJob, event_of, listen_to, serve_events
from defectory.runs.sources import Sources
from defectory.runs.stage import Run, Stage
from defectory.runs.store import RunStore

STOPPED_S = 60.0
"""Longest wait for a checkpoint after a run was stopped."""
CAUSE_S = 10.0
"""Longest wait for the process that failed first, after another one has lost it."""


def make_together(serve: str) -> Make:
    """Return what makes the result of a stage: processes that train together if the stage and the settings want it,
    else this process.

    Args:
        serve: code that a process runs to take part; see `serve_member`.
    """

    def make(run: Run, stage: Stage, inputs: RunStore, work: Path) -> Work[str]:
        if not stage.trains_together or run.config.training_processes == 1:
            return make_here(run, stage, inputs, work)
        return _make(run, stage, work, serve)

    return make


def _make(run: Run, stage: Stage, work: Path, serve: str) -> Work[str]:
    """Start the processes, pass on the events of the first one, and return its summary.

    Leaving the loop lets the first process write a checkpoint, and ends all.

    Raises:
        DefectoryError: of the process that failed first.
    """
    members = _start(run, stage, work, serve)
    messages: queue.Queue[tuple[str, Message | None]] = queue.Queue()
    for member in members:
        listen_to(member, messages)
    first, running, lost, summary = members[0], {member.name for member in members}, None, ""
    try:
        while running:
            try:
                name, message = messages.get(timeout=CAUSE_S if lost is not None else None)
            except queue.Empty:
                break
            if message is None:
                running.discard(name)
            elif message["kind"] not in EVENTS:
                # a process that lost another one did not fail first
                if message["kind"] != LostProcessError.__name__:
                    event_of(message)
                lost = lost or message
            elif name == first.name and lost is None:
                event = event_of(message)
                if isinstance(event, StageEnded):
                    summary = event.summary
                else:
                    yield event
        if lost is not None:
            event_of(lost)
    except (GeneratorExit, KeyboardInterrupt):
        first.stop(seconds=STOPPED_S)
        raise
    finally:
        for member in members:
            member.kill()
    return summary


def _start(run: Run, stage: Stage, work: Path, serve: str) -> list[ServedJob]:
    import torch
    from accelerate.utils.other import get_free_port

    from defectory.engine.devices import device_of, give_back_device_memory
    from defectory.engine.training.team import environment_of

    num_processes = run.config.training_processes
    device = device_of(run.config.device, threads=run.config.threads)
    num_threads = max(1, (run.config.threads or torch.get_num_threads()) // num_processes)
    give_back_freed_memory()
    give_back_device_memory()
    port, todo = get_free_port(), "run again to resume; with less memory, set a smaller batch_size"
    members: list[ServedJob] = []
    for rank in range(num_processes):
        own = {"threads": num_threads, "device": f"{device}:{rank}" if device == "cuda" else device}
        job = {
            "config": run.config.model_copy(update=own).model_dump(mode="json"),
            "folder": str(run.folder),
            "siblings": None if run.siblings is None else str(run.siblings),
            "sources": str(run.sources.folder),
            "work": str(work),
            "stage": f"{stage.name}, process {rank}",
            "of": stage.name,
        }
        environment = environment_of(rank, num_processes, port=port)
        members.append(ServedJob(job, serve, environment=environment, todo=todo))
    return members


def serve_member(stages_of: Callable[[Run], Mapping[str, Stage]]) -> None:
    """Take part in the training requested on standard input; the first process writes its events to standard output.

    Args:
        stages_of: returns the stages of a run by name.
    """
    serve_events(lambda job: _take_part(job, stages_of))


def _take_part(job: Mapping[str, Any], stages_of: Callable[[Run], Mapping[str, Stage]]) -> Generator[Event]:
    try:
        yield from _trained(job, stages_of)
    except DefectoryError:
        raise
    except Exception as error:
        if wants_traceback():
            traceback.print_exception(error)
        told = str(error).strip().splitlines()
        raise StageError(f"{job['stage']}: unexpected {type(error).__name__}: {told[0] if told else ''}") from error


def _trained(job: Mapping[str, Any], stages_of: Callable[[Run], Mapping[str, Stage]]) -> Generator[Event]:
    from defectory.engine.training.team import join_team

    run = Run(
        config=ProjectConfig.model_validate(job["config"]),
        folder=Path(job["folder"]),
        sources=Sources(folder=Path(job["sources"])),
        siblings=None if job["siblings"] is None else Path(job["siblings"]),
    )
    stages, work = stages_of(run), Path(job["work"])
    stage = stages[job["of"]]
    inputs = run.store().view([stages[name].folder for name in stage.inputs(run.config)], reader=stage.name)
    team = join_team(on_cpu=run.config.device == "cpu")
    with in_progress(work):
        if team.is_main:
            summary = yield from stage.run(inputs, run.config, work)
            yield StageEnded(stage=stage.name, seconds=0.0, skipped=False, summary=summary)
        else:
            for _ in stage.run(inputs, run.config, work):
                pass
    team.leave()
