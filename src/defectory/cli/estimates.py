"""Shows what a run would take: one line, a cell of a table, or JSON."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from defectory.stages.parts.estimate.estimate import Estimate, StageEstimate

BUSY_SHARE = 0.5
"""With so much of the CPU in use by others, a run takes clearly longer than estimated."""


def line_of(estimate: Estimate) -> str | None:
    """Return one line for people; None if nothing has to run."""
    if not any(stage.seconds is None or stage.seconds > 0 for stage in estimate.stages):
        return None
    unknown = dict(estimate.unknown)
    not_measured = unknown.pop("not measured on this device", None)
    took = "time not measured on this device" if not_measured else f"{about(estimate.seconds)} on this machine"
    took += "".join(f", without {', '.join(names)} ({why})" for why, names in unknown.items())
    parts = [took, f"{_gb(estimate.memory_bytes)} of memory"]
    if estimate.device_bytes:
        each = " on each GPU" if any(stage.num_together > 1 for stage in estimate.stages) else ""
        parts.append(f"about {_gb(estimate.device_bytes)} of GPU memory{each} (reckoned, not measured)")
    free = "" if estimate.free_bytes is None else f" ({_gb(estimate.free_bytes)} free)"
    parts.append(f"{_gb(estimate.disk_bytes)} of disk in {estimate.folder}{free}")
    line = ", ".join(parts)
    return f"{line}; longer while other programs use this machine" if not not_measured and _is_busy() else line


def seconds_of(stage: StageEstimate) -> str:
    """Return how long one stage takes, for a table; empty if it is up to date."""
    if stage.seconds is None:
        return stage.why
    return about(stage.seconds) if stage.seconds > 0 else ""


def values_of(estimate: Estimate) -> dict[str, Any]:
    """Return all values, JSON-compatible; bytes are whole numbers, unknown seconds None."""
    return {
        "seconds": round(estimate.seconds, 1),
        "memory_bytes": estimate.memory_bytes,
        "device_bytes": estimate.device_bytes,
        "disk_bytes": estimate.disk_bytes,
        "free_bytes": estimate.free_bytes,
        "device": estimate.device,
        "folder": str(estimate.folder),
        "data_are_read": estimate.is_counted,
        "stages": [
            {**asdict(stage), "seconds": None if stage.seconds is None else round(stage.seconds, 1)}
            for stage in estimate.stages
        ],
    }


def about(seconds: float) -> str:
    """Round a duration as an estimate deserves: to seconds, minutes, or tens of minutes."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"about {minutes} min"
    hours, rest = divmod(round(minutes / 10) * 10, 60)
    return f"about {hours} h {rest:02d} min" if rest else f"about {hours} h"


def _gb(num_bytes: float) -> str:
    gigabytes = num_bytes / 1e9
    return f"{gigabytes:.0f} GB" if gigabytes >= 10 else f"{gigabytes:.1f} GB"


def _is_busy() -> bool:
    if not hasattr(os, "getloadavg"):
        return False
    return os.getloadavg()[0] > BUSY_SHARE * (os.cpu_count() or 1)


def show_plan(what: str, estimate: Estimate) -> None:
    """Print what each stage takes, and all of them together.

    Args:
        what: that is planned, for the title.
        estimate: of it.
    """
    from defectory.cli.show import say, show_table

    rows = [
        (stage.stage, seconds_of(stage), _gb(stage.memory_bytes), _mb(stage.file_bytes))
        for stage in estimate.stages
        if stage.seconds is None or stage.seconds > 0
    ]
    if not rows:
        say(f"plan of {what}: nothing has to run")
        return
    show_table(f"Plan of {what}", ("stage", "takes", "memory at most", "files"), rows)
    for stage in estimate.stages:
        if stage.num_together > 1:
            tiles = f"{stage.tiles_at_a_time} tiles at a time {'on each GPU' if estimate.device_bytes else 'in each'}"
            say(f"{stage.stage}: {stage.num_together} processes train together, {tiles}")
    say(f"all stages: {line_of(estimate)}")


def _mb(num_bytes: float) -> str:
    return _gb(num_bytes) if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
