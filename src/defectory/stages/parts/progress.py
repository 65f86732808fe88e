"""Keeps the last note of long work for a stage's summary."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from defectory.events import Notice, Progress, Work, relayed

T = TypeVar("T")


def with_note(work: Work[T]) -> Work[tuple[T, str]]:
    """Pass on the events of long work, and return its value and last note."""
    note = ""

    def told(event: Progress | Notice) -> Iterable[Progress | Notice]:
        nonlocal note
        if isinstance(event, Progress) and event.note:
            note = event.note
        yield event

    value = yield from relayed(work, told)
    return value, note
