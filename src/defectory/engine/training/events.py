"""Defines events with more detail than `Progress`. Every event is yielded after the state has changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from defectory.events import Notice, Progress, Work, relayed

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Preparing(Progress):
    """`done` of `total` items of `what` are ready (cached latents, class images)."""

    what: str

    def __post_init__(self) -> None:
        if not self.note:
            object.__setattr__(self, "note", f"preparing {self.what}")


@dataclass(frozen=True, kw_only=True)
class _AtStep(Progress):
    """`done` of `total` optimiser steps are done."""

    @property
    def step(self) -> int:
        """Return the number of steps done."""
        return self.done

    @property
    def num_steps(self) -> int:
        """Return the total number of steps."""
        return self.total

    @property
    def num_left(self) -> int:
        """Return the number of steps still to do."""
        return self.total - self.done


@dataclass(frozen=True, kw_only=True)
class Started(_AtStep):
    """The loop starts after `done` steps; 0 is a fresh start.

    `remark` says why an existing checkpoint was not used, and so does a Notice.
    """

    remark: str = ""

    @property
    def resumed_at(self) -> int:
        """Return the number of steps that a checkpoint held."""
        return self.done


@dataclass(frozen=True, kw_only=True)
class Step(_AtStep):
    """An optimiser step is done.

    Attributes:
        loss: of the step; on an accelerator the last one read, or NaN before the first.
        learning_rate: of the step.
        seconds: duration of the step.
    """

    loss: float
    learning_rate: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Validated(_AtStep):
    """The weights, or their average if there is one, were scored; `value` is the held-out loss or the score."""

    value: float

    @property
    def held_out_loss(self) -> float:
        """Return the value, if it is a loss."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Checkpointed(_AtStep):
    """Everything needed to resume after `done` steps is on disk."""


TrainingEvent = Progress | Notice


def plain(work: Work[T]) -> Work[T]:
    """Run a training, yield its steps as plain Progress and its notices, and return its value."""

    def told(event: Progress | Notice) -> Iterable[Progress | Notice]:
        if isinstance(event, Notice):
            yield event
        elif not isinstance(event, Started | Validated | Checkpointed):
            yield Progress(done=event.done, total=event.total, note=event.note, stage=event.stage)

    return relayed(work, told)
