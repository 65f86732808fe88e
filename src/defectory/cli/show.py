"""Shows events as progress bars with an ETA, plain lines, or JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from defectory.pipeline.stage import Event

PLAIN_EVERY_S = 20.0


def show_events(events: Iterable[Event], *, as_json: bool = False) -> None:
    """Consume a run's events and show them; Ctrl-C leaves the run resumable.

    Raises:
        InterruptedRun: the user stopped it.
    """
    from defectory.errors import InterruptedRun

    console = Console()
    try:
        if as_json:
            for event in events:
                print(json.dumps({"event": type(event).__name__, **asdict(event)}), flush=True)
        elif console.is_terminal:
            _show_bars(events, console)
        else:
            _show_lines(events)
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; run the same command again to go on from here") from None


def _show_bars(events: Iterable[Event], console: Console) -> None:
    from defectory.pipeline.stage import StageEnded

    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[str, tuple[TaskID, int]] = {}
        full: set[str] = set()

        def remove(names: set[str]) -> None:
            for name in names & bars.keys():
                progress.remove_task(bars.pop(name)[0])

        for event in events:
            if isinstance(event, StageEnded):
                remove({event.stage})
                console.print(_line(event), highlight=False, markup=False)
                continue
            if event.stage not in bars or bars[event.stage][1] != event.total:
                # stages run side by side have a bar each; a full one makes room for what comes after it
                remove({event.stage} | full)
                full.clear()
                bars[event.stage] = progress.add_task(event.stage, total=event.total, note=""), event.total
            progress.update(bars[event.stage][0], completed=event.done, note=event.note)
            if event.done >= event.total:
                full.add(event.stage)


@dataclass
class _Told:
    """What was told of a stage last: of how many steps, and the times and step it is reckoned from."""

    total: int
    began_s: float
    first_done: int
    last_s: float


def _show_lines(events: Iterable[Event]) -> None:
    from defectory.pipeline.stage import StageEnded

    told: dict[str, _Told] = {}
    for event in events:
        if isinstance(event, StageEnded):
            print(_line(event), flush=True)
            continue
        now = time.monotonic()
        of = told.get(event.stage)
        if of is None or of.total != event.total:
            told[event.stage] = _Told(total=event.total, began_s=now, first_done=event.done, last_s=now)
        elif now - of.last_s >= PLAIN_EVERY_S:
            of.last_s = now
            left_s = (now - of.began_s) / max(1, event.done - of.first_done) * (event.total - event.done)
            print(
                f"  {event.stage} {event.done}/{event.total}, about {format_seconds(left_s)} left{', ' + event.note if event.note else ''}",
                flush=True,
            )


def _line(event: Event) -> str:
    from defectory.pipeline.stage import StageEnded

    assert isinstance(event, StageEnded)
    took = "up to date" if event.skipped else format_seconds(event.seconds)
    return f"{event.stage:<34} {took:>10}  {event.summary}"


def format_seconds(seconds: float) -> str:
    """Give a duration as people write it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table)
