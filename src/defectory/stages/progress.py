"""Events of training as those of a stage, and its outcome in a line."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

from defectory.events import Notice, Progress, Work


def with_summary(events: Iterator[Any] | Generator[Any, None, Any]) -> Work[str]:
    """Pass a training's events on, and return its digest and last held-out loss as one line."""
    from defectory.engine.training.events import Finished, Preparing, Started, Step, Validated

    held_out, summary = "", ""
    for event in events:
        if isinstance(event, Preparing):
            yield Progress(done=event.done, total=event.total, note=f"preparing {event.what}")
        elif isinstance(event, Started) and event.remark:
            yield Notice(text=event.remark)
        elif isinstance(event, Validated):
            held_out = f", held-out loss {event.held_out_loss:.4f}"
        elif isinstance(event, Step):
            yield Progress(done=event.step, total=event.num_steps, note=f"loss {event.loss:.4f}{held_out}")
        elif isinstance(event, Finished):
            summary = f"digest {event.digest[:12]}{held_out}"
    return summary
