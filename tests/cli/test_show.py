from __future__ import annotations

import io
import time
from collections.abc import Generator, Iterator

import pytest
from rich.console import Console

from defectory.cli import show
from defectory.events import Event, Progress, StageEnded

SIDE_BY_SIDE: list[Event] = [
    *(
        Progress(stage=name, done=done, total=total)
        for done in range(1, 4)
        for name, total in (("segment-a", 4), ("segment-b", 8))
    ),
    StageEnded(stage="segment-a", seconds=1.0, skipped=False, summary="done"),
    Progress(stage="segment-b", done=8, total=8),
    StageEnded(stage="segment-b", seconds=2.0, skipped=False, summary="done"),
]


def test_lines_tell_of_each_stage_how_long_it_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter(range(100))
    monkeypatch.setattr(show, "PLAIN_EVERY_S", 1.0)
    monkeypatch.setattr(show.time, "monotonic", lambda: float(next(seconds)))
    show._show_lines(SIDE_BY_SIDE)  # pyright: ignore[reportPrivateUsage]
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    # a step of each takes two seconds, since their events take turns
    assert lines[:4] == [
        "segment-a 2/4, about 4 s left",
        "segment-b 2/8, about 12 s left",
        "segment-a 3/4, about 2 s left",
        "segment-b 3/8, about 10 s left",
    ]
    assert [line.split()[0] for line in lines[4:]] == ["segment-a", "segment-b", "segment-b"]


def test_a_stage_that_counts_again_is_timed_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 100.0, 200.0, 201.0, 202.0])
    monkeypatch.setattr(show, "PLAIN_EVERY_S", 1.0)
    monkeypatch.setattr(show.time, "monotonic", lambda: next(times))
    counts = [(1, "slow"), (2, "slow"), (1, "fast"), (2, "fast"), (3, "fast")]
    show._show_lines(  # pyright: ignore[reportPrivateUsage]
        Progress(stage="distill", done=done, total=4, note=note) for done, note in counts
    )
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "distill 2/4, about 3 min 20 s left, slow",
        "distill 2/4, about 2 s left, fast",
        "distill 3/4, about 1 s left, fast",
    ]


def test_stages_side_by_side_have_a_bar_each_until_they_end() -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=120)
    both = {"segment-a", "segment-b"}

    def wait_for(names: set[str]) -> None:
        """Wait for a drawing of just these bars; they are drawn ten times a second."""
        deadline = time.monotonic() + 10
        while {name for name in both if name in written.getvalue()} != names:
            assert time.monotonic() < deadline, f"no drawing of just {names}"
            written.seek(0), written.truncate()
            time.sleep(0.25)

    def events() -> Iterator[Event]:
        for number, event in enumerate(SIDE_BY_SIDE):
            yield event
            if number in (1, 5):
                wait_for(both)
            elif number == 6:
                wait_for({"segment-b"})

    show._show_bars(events(), console)  # pyright: ignore[reportPrivateUsage]


def test_the_value_of_long_work_is_returned_after_its_events(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> Generator[Event, None, int]:
        yield StageEnded(stage="tune", seconds=1.0, skipped=False, summary="done")
        return 3

    assert show.show_work(work()) == 3
    assert "tune" in capsys.readouterr().out
