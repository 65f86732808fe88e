"""Shows events as progress bars with an ETA, as plain lines, or as JSON lines."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

from defectory.terminal import printable

if TYPE_CHECKING:
    from defectory.events import Event

T = TypeVar("T")
PLAIN_EVERY_S = 20.0
MIN_COLUMN = 12
MIN_COLUMN_OF_MANY = 18
"""Least width of a column in characters, if its content is that wide; used for more than two columns."""


def say(text: object) -> None:
    """Print one line on standard output.

    Verbs print text only through this function, so that names from data never reach the terminal unescaped.
    """
    print(printable(text), flush=True)


def say_json(value: object) -> None:
    """Print a JSON-compatible value on one line of ASCII."""
    print(json.dumps(value), flush=True)


def show_events(events: Iterable[Event], *, as_json: bool = False) -> None:
    """Consume a run's events and show them; Ctrl-C leaves the run resumable.

    Raises:
        InterruptedRun: the user stopped it.
    """
    from defectory.errors import InterruptedRun

    console = Console(highlight=False, markup=False, emoji=False)
    try:
        if as_json:
            for event in events:
                say_json({"event": type(event).__name__, **asdict(event)})
        elif console.is_terminal:
            _show_bars(events, console)
        else:
            _show_lines(events)
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; run the same command again to resume") from None


def show_work(work: Generator[Event, None, T], *, as_json: bool = False) -> T:
    """Show the events of long work as `show_events` does, and return its value."""
    found: list[T] = []

    def events() -> Iterator[Event]:
        found.append((yield from work))

    show_events(events(), as_json=as_json)
    return found[0]


def _show_bars(events: Iterable[Event], console: Console) -> None:
    from defectory.events import Notice, StageEnded

    with Progress(*_bar_columns(console.width), console=console, transient=True) as progress:
        bars: dict[str, tuple[TaskID, tuple[int, int]]] = {}
        full: set[str] = set()

        def remove(names: set[str]) -> None:
            for name in names & bars.keys():
                progress.remove_task(bars.pop(name)[0])

        for event in events:
            if isinstance(event, StageEnded):
                remove({event.stage})
                console.print(Text(printable(_line(event))), overflow="fold")
                continue
            if isinstance(event, Notice):
                console.print(Text(printable(f"{event.stage}: {event.text}")), overflow="fold")
                continue
            if event.stage not in bars or not _goes_on((event.done, event.total), bars[event.stage][1]):
                # stages that run side by side have a bar each; a finished bar is removed
                remove({event.stage} | full)
                full.clear()
                bars[event.stage] = progress.add_task(printable(event.stage), total=event.total, note=""), (0, 0)
            task = bars[event.stage][0]
            bars[event.stage] = task, (event.done, event.total)
            progress.update(task, completed=event.done, note=printable(event.note))
            if event.done >= event.total:
                full.add(event.stage)


def _bar_columns(width: int) -> list[ProgressColumn]:
    """Choose what a bar shows at this terminal width.

    Name and count are always shown, followed by time left, bar, elapsed time and note as space allows.
    """
    # a narrow terminal cuts off the end of the name, never the count
    name = Column(no_wrap=True, overflow="ellipsis", min_width=8, max_width=max(8, width - 24) if width < 80 else None)
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", style="bold", markup=False, table_column=name),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
    ]
    if width >= MIN_COLUMN * 5:
        columns.append(TimeRemainingColumn(table_column=Column(no_wrap=True)))
    if width >= 80:
        columns.insert(1, BarColumn(bar_width=24 if width >= 100 else 12))
    if width >= 100:
        columns.insert(3, TimeElapsedColumn(table_column=Column(no_wrap=True)))
        columns.append(
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis"))
        )
    return columns


def _goes_on(now: tuple[int, int], before: tuple[int, int]) -> bool:
    """Check whether done and total continue what was shown; a stage may count several times, even to the same total."""
    return now[1] == before[1] and now[0] >= before[0]


@dataclass
class _Told:
    """The last progress of a stage, and the times and step for the estimate."""

    done: int
    total: int
    began_s: float
    first_done: int
    last_s: float


def _show_lines(events: Iterable[Event]) -> None:
    from defectory.events import Notice, StageEnded

    told: dict[str, _Told] = {}
    for event in events:
        if isinstance(event, StageEnded):
            say(_line(event))
            continue
        if isinstance(event, Notice):
            say(f"{event.stage}: {event.text}")
            continue
        now = time.monotonic()
        of = told.get(event.stage)
        if of is None or not _goes_on((event.done, event.total), (of.done, of.total)):
            told[event.stage] = _Told(
                done=event.done, total=event.total, began_s=now, first_done=event.done, last_s=now
            )
            continue
        of.done = event.done
        if now - of.last_s >= PLAIN_EVERY_S:
            of.last_s = now
            left_s = (now - of.began_s) / max(1, event.done - of.first_done) * (event.total - event.done)
            note = f", {event.note}" if event.note else ""
            say(f"  {event.stage} {event.done}/{event.total}, about {format_seconds(left_s)} left{note}")


def _line(event: Event) -> str:
    from defectory.events import StageEnded

    assert isinstance(event, StageEnded)
    took = "up to date" if event.skipped else format_seconds(event.seconds)
    return f"{event.stage:<34} {took:>10}  {event.summary}"


def format_seconds(seconds: float) -> str:
    """Format a duration for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, or each row as a list of `column: value` if the terminal is too narrow."""
    cells = [[Text(printable(cell)) for cell in row] for row in rows]
    heads = [Text(printable(column)) for column in columns]
    widths = [max([head.cell_len, *(row[index].cell_len for row in cells)]) for index, head in enumerate(heads)]
    frame = 3 * len(columns) + 1
    console = _console(natural_width=sum(widths) + frame)
    least = sum(min(width, MIN_COLUMN if len(columns) <= 2 else MIN_COLUMN_OF_MANY) for width in widths) + frame
    if least > console.width:
        _show_rows(console, title, heads, cells)
        return
    table = Table(title=Text(printable(title)), title_justify="left", title_style="bold", header_style="bold")
    for index, head in enumerate(heads):
        table.add_column(
            head,
            justify="right" if index and all(_is_figure(row[index].plain) for row in cells) else "left",
            overflow="fold",
            min_width=min(widths[index], MIN_COLUMN if len(columns) <= 2 else MIN_COLUMN_OF_MANY),
            max_width=widths[index],
        )
    for row in cells:
        table.add_row(*row)
    console.print(table)


def _is_figure(cell: str) -> bool:
    """Check whether a cell is empty or begins with a figure; such columns are aligned on the right."""
    return not cell.strip() or cell.lstrip(" +-.~").startswith(tuple("0123456789"))


def _show_rows(console: Console, title: str, heads: Sequence[Text], cells: Sequence[Sequence[Text]]) -> None:
    """Print a table row by row, for narrow terminals."""
    console.print(Text(printable(title), style="bold"), overflow="fold")
    for row in cells:
        console.print(Text.assemble("- ", row[0]) if row[0] else Text("-"), overflow="fold")
        for head, cell in zip(heads[1:], row[1:], strict=True):
            console.print(Text.assemble("  ", (head.plain, "bold"), ": ", cell), overflow="fold")


def _console(*, natural_width: int) -> Console:
    """Return a console. Output to a file or pipe is as wide as its content, so that no line is folded."""
    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = max(console.width, natural_width)
    return console
