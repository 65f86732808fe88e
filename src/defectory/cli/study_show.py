"""Shows a study: a live table of its cells, a line for each that ends, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from defectory.cli.show import format_seconds, say, say_json, show_table
from defectory.terminal import printable

if TYPE_CHECKING:
    from defectory.artifacts.study import StudyOutcome
    from defectory.events import Event
    from defectory.studies.running import CellChanged
    from defectory.studies.study import Study

PLAIN_EVERY_S = 60.0
MAX_LINES = 24
GAINED = ("segm_map", "pixel_ap", "missed_defect_rate")


def show_study(study: Study, *, as_json: bool = False) -> bool:
    """Run a study and show its events; return whether a cell failed. Ctrl-C leaves it resumable.

    Raises:
        InterruptedRun: the user stopped it.
    """
    from defectory.errors import InterruptedRun

    console = Console(highlight=False, markup=False, emoji=False)
    try:
        if as_json:
            return _show_json(study.events())
        if console.is_terminal:
            return _show_live(study.events(), console)
        return _show_lines(study.events())
    except KeyboardInterrupt:
        raise InterruptedRun("interrupted; run the same command again to go on") from None


def _is_cell(event: object) -> bool:
    return type(event).__name__ == "CellChanged"


def _notice(event: object) -> str | None:
    """Return the line of a notice; None for other events."""
    return f"{getattr(event, 'stage', '')}: {getattr(event, 'text', '')}" if hasattr(event, "text") else None


def _show_json(events: Iterable[Event | CellChanged]) -> bool:
    failed = False
    for event in events:
        say_json({"event": type(event).__name__, **asdict(event)})
        failed |= _is_cell(event) and asdict(event)["state"] == "failed"
    return failed


def _show_lines(events: Iterable[Event | CellChanged]) -> bool:
    failed, told = False, dict[str, float]()
    for event in events:
        if not _is_cell(event):
            if (text := _notice(event)) is not None:
                say(text)
            continue
        cell = asdict(event)
        failed |= cell["state"] == "failed"
        now = time.monotonic()
        if cell["state"] != "running" or now - told.setdefault(cell["cell"], now - PLAIN_EVERY_S) >= PLAIN_EVERY_S:
            told[cell["cell"]] = now
            say(f"{_counts(cell)}{cell['cell']}: {_state(cell)}")
    return failed


def _counts(cell: dict[str, object]) -> str:
    left = cell["seconds_left"]
    eta = f", about {format_seconds(left)} left" if isinstance(left, float) and left >= 1 else ""
    return f"[{cell['num_finished']}/{cell['num_cells']}{eta}] "


def _state(cell: dict[str, object]) -> str:
    share = f" {cell['share']:.0%}" if cell["state"] == "running" else ""
    note = f", {cell['note']}" if cell["note"] else ""
    return f"{cell['state']}{share}{note}"


def _show_live(events: Iterable[Event | CellChanged], console: Console) -> bool:
    failed = False
    shown: dict[str, dict[str, object]] = {}
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        for event in events:
            if not _is_cell(event):
                if (text := _notice(event)) is not None:
                    live.console.print(Text(printable(text)), overflow="fold")
                continue
            cell = asdict(event)
            failed |= cell["state"] == "failed"
            shown.pop(str(cell["cell"]), None)
            shown[str(cell["cell"])] = cell
            live.update(_live_table(list(shown.values()), cell))
    return failed


def _live_table(cells: list[dict[str, object]], last: dict[str, object]) -> Group:
    """Return a table of the cells that changed last, those that run at the end."""
    running = [cell for cell in cells if cell["state"] == "running"]
    ended = [cell for cell in cells if cell["state"] != "running"]
    table = Table(header_style="bold", title_justify="left")
    for column in ("cell", "state", "now"):
        table.add_column(column, overflow="ellipsis", no_wrap=True)
    for cell in [*ended[-(MAX_LINES - len(running)) :], *running]:
        state = f"{cell['share']:.0%}" if cell["state"] == "running" else str(cell["state"])
        table.add_row(*(Text(printable(text)) for text in (cell["cell"], state, cell["note"])))
    return Group(table, Text(printable(f"finished {_counts(last)}")))


def show_outcome(outcome: StudyOutcome) -> None:
    """Print scores, gains and the verdict of every point."""
    for remark in outcome.remarks:
        say(remark)
    for point in outcome.points:
        if point.verdict is None:
            say(f"{point.label}: {point.num_finished} of {point.num_cells} cells finished, no seed is complete")
            continue
        rows = [
            (series.name.replace("_", " "), *(_figure(series.scores.get(score)) for score in GAINED))
            for series in point.series
        ]
        title = f"{point.label}: {point.num_labelled:.0f} labelled images"
        show_table(title, ("arm", "segm mAP", "pixel AP", "missed defects"), rows)
        say(point.verdict.sentence)


def _figure(score: object) -> str:
    if score is None:
        return "-"
    mean, interval = getattr(score, "mean"), getattr(score, "interval")  # noqa: B009
    return f"{mean:.3f}" if interval is None else f"{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"
