"""Keeps the last note of long work for a stage's summary."""

from __future__ import annotations

from contextlib import closing
from typing import TypeVar

from defectory.events import Progress, Work

T = TypeVar("T")


def with_note(work: Work[T]) -> Work[tuple[T, str]]:
    """Pass on the events of long work, and return its value and last note."""
    note = ""
    with closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return end.value, note
            if isinstance(event, Progress) and event.note:
                note = event.note
            yield event
