"""Long work with its last note, for a stage's summary."""

from __future__ import annotations

from typing import TypeVar

from defectory.events import Progress, Work

T = TypeVar("T")


def with_note(work: Work[T]) -> Work[tuple[T, str]]:
    """Pass the events of long work on; return its value and the last note."""
    note = ""
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            return end.value, note
        if isinstance(event, Progress) and event.note:
            note = event.note
        yield event
