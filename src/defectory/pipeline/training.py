"""What stages that train have in common: the device, and what they tell."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from defectory import events
from defectory.errors import ConfigError
from defectory.pipeline.stage import Notice, Progress, Project


def usable_device(name: str) -> str:
    """Give a device's name back.

    Raises:
        ConfigError: this machine has no such device, or torch cannot use it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", f"{name!r} cannot be used on this machine", "choose cpu, or a GPU that `defectory doctor` shows"
        ) from error
    return name


def device_of(project: Project) -> str:
    """Give the device a run uses: a GPU where there is one, unless told otherwise.

    Raises:
        ConfigError: it was told to use one that cannot be used.
    """
    import torch

    if project.config.threads:
        torch.set_num_threads(project.config.threads)
    if project.config.device != "auto":
        return usable_device(project.config.device)
    return "cuda" if torch.cuda.is_available() else "cpu"


T = TypeVar("T")


def staged(stage: str, work: events.Work[T]) -> Generator[Progress | Notice, None, tuple[T, str]]:
    """Report long work as a stage's, and return its value and the last note."""
    note = ""
    with closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return end.value, note
            if isinstance(event, events.Progress):
                note = event.note
                yield Progress(stage=stage, done=event.done, total=event.total, note=note)
            else:
                yield Notice(stage=stage, text=event.text)


def phase_progress(stage: str, work: events.Work[Any]) -> Iterator[Progress | Notice | str]:
    """Report a training phase as a stage's progress, and its digest and last losses at the end."""
    outcome, note = yield from staged(stage, work)
    yield f"digest {outcome.weights_digest[:12]}, {note}"


def training_progress(stage: str, events: Iterator[Any]) -> Iterator[Progress | Notice | str]:
    """Tell a training's events as a stage's progress, and its digest last."""
    from defectory.engine.training.events import Finished, Preparing, Started, Step, Validated

    held_out = ""
    for event in events:
        if isinstance(event, Preparing):
            yield Progress(stage=stage, done=event.done, total=event.total, note=f"preparing {event.what}")
        elif isinstance(event, Started) and event.remark:
            yield Notice(stage=stage, text=event.remark)
        elif isinstance(event, Validated):
            held_out = f", held-out loss {event.held_out_loss:.4f}"
        elif isinstance(event, Step):
            yield Progress(stage=stage, done=event.step, total=event.num_steps, note=f"loss {event.loss:.4f}{held_out}")
        elif isinstance(event, Finished):
            yield f"digest {event.digest[:12]}{held_out}"
