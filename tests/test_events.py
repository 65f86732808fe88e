from __future__ import annotations

from collections.abc import Generator

import pytest

from defectory.events import Notice, Progress, finish, relayed


def counted(closed: list[int]) -> Generator[int, None, str]:
    done = 0
    try:
        for done in range(1, 4):
            yield done
    finally:
        closed.append(done)
    return "value"


def told(number: int) -> list[Progress | Notice]:
    return [] if number == 2 else [Progress(done=number, total=3), Notice(text=f"at {number}")]


def test_relayed_work_yields_what_its_events_are_told_as_and_returns_its_value() -> None:
    closed: list[int] = []
    work = relayed(counted(closed), told)
    events: list[Progress | Notice] = []
    with pytest.raises(StopIteration) as end:
        while True:
            events.append(next(work))
    assert end.value.value == "value"
    assert events == [*told(1), *told(3)]
    assert finish(relayed(counted([]), told)) == "value"


def test_closing_it_closes_the_work_at_once() -> None:
    closed: list[int] = []
    work = relayed(counted(closed), told)
    next(work)
    work.close()
    assert closed == [1], "the work can save what it has done"
