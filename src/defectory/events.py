"""What long work reports. It yields these, each after its state changed, and *returns* its value.

Whoever runs it decides what to show: the command line draws bars, a notebook prints, a test collects.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

E = TypeVar("E")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Work is at `done` of `total`; `note` is for people.

    Attributes:
        done: units done.
        total: units in all.
        note: what is being done or how well, one short line.
        stage: the stage that works; the run fills it in.
    """

    done: int
    total: int
    note: str = ""
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that people should know, one line; `stage` is filled in by the run."""

    text: str
    stage: str = ""


@dataclass(frozen=True, kw_only=True)
class StageEnded:
    """A stage is done, or was up to date; `summary` is one line for people."""

    stage: str
    seconds: float
    skipped: bool
    summary: str


Event = Progress | Notice | StageEnded
Work = Generator[Progress | Notice, None, T]
"""Long work: it yields Progress and Notice, and returns a T."""


def finish(work: Generator[object, None, T]) -> T:
    """Do long work to its end, show nothing, and return its value."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


def relayed(work: Generator[E, None, T], told: Callable[[E], Iterable[Progress | Notice]]) -> Work[T]:
    """Do long work, yield what `told` makes of each of its events, and return its value.

    The work is closed with this generator, so that it can save what it has done.
    """
    with closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return end.value
            yield from told(event)


__all__ = ["Event", "Notice", "Progress", "StageEnded", "Work", "finish", "relayed"]
