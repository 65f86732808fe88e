"""Makes schedulers by name, on the base's own noise schedule."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch

from defectory.engine.backbones.backbone import Backbone
from defectory.errors import ConfigError

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm-solver": "DPMSolverMultistepScheduler",
}
STUDENT_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "trajectory": (
        "DDIMScheduler",
        {"timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True, "clip_sample": False},
    ),
    "consistency": ("LCMScheduler", {"set_alpha_to_one": True, "clip_sample": False}),
}
"""Class and settings of diffusers' scheduler for students, by the method of distillation."""
TIMESTEP_POWER = 2.0
"""Timesteps of dpm-solver lie at this power of even steps: the last steps draw grain, and from even ones it comes out
faint (decision 035).
"""


def make_scheduler(backbone: Backbone, name: str) -> Any:
    """Make a fresh scheduler by name; `base` is the one that the base names.

    Raises:
        ConfigError: the name is unknown.
    """
    config = dict(backbone.scheduler.config)
    if name == "base":
        return type(backbone.scheduler).from_config(config)
    if name not in SCHEDULERS:
        raise ConfigError(
            "synthesis.scheduler", f"{name!r} is not one of base, {', '.join(SCHEDULERS)}", "choose one of them"
        )
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def make_student_scheduler(backbone: Backbone, method: str, *, teacher_inference_steps: int) -> Any:
    """Make the scheduler that a distilled student is drawn with.

    Args:
        backbone: base of the student.
        method: of distillation.
        teacher_inference_steps: of the distillation, whose timesteps LCM draws from.
    """
    kind, settings = STUDENT_SCHEDULERS[method]
    config = {**dict(backbone.scheduler.config), **settings}
    if kind == "LCMScheduler":
        config["original_inference_steps"] = teacher_inference_steps
    return getattr(diffusers, kind).from_config(config)


def set_timesteps(scheduler: Any, num_inference_steps: int, device: torch.device | str) -> None:
    """Choose a scheduler's timesteps, in place.

    Those of dpm-solver are, for T training timesteps and N steps,

        t_i = round((T - 1) (i / N)^TIMESTEP_POWER),   i = N, ..., 1

    where two fall on one, there are fewer steps. The others' are spaced as the base says.
    """
    if isinstance(scheduler, diffusers.DPMSolverMultistepScheduler):
        last = scheduler.config["num_train_timesteps"] - 1
        spaced = last * (np.arange(1, num_inference_steps + 1) / num_inference_steps) ** TIMESTEP_POWER
        scheduler.set_timesteps(timesteps=np.unique(spaced.round().astype(int))[::-1].tolist(), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
