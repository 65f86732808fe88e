"""What stages that train have in common: the device, and what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from defectory.pipeline.stage import Progress, Project


def device_of(project: Project) -> str:
    """Give the device a run uses: a GPU where there is one, unless told otherwise."""
    import torch

    if project.config.threads:
        torch.set_num_threads(project.config.threads)
    if project.config.device != "auto":
        return project.config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def training_progress(stage: str, events: Iterator[Any]) -> Iterator[Progress | str]:
    """Tell a training's events as a stage's progress, and its digest last."""
    from defectory.engine.training.events import Finished, Preparing, Step, Validated

    held_out = ""
    for event in events:
        if isinstance(event, Preparing):
            yield Progress(stage=stage, done=event.done, total=event.total, note=f"preparing {event.what}")
        elif isinstance(event, Validated):
            held_out = f", held-out loss {event.held_out_loss:.4f}"
        elif isinstance(event, Step):
            yield Progress(stage=stage, done=event.step, total=event.num_steps, note=f"loss {event.loss:.4f}{held_out}")
        elif isinstance(event, Finished):
            yield f"digest {event.digest[:12]}{held_out}"
