"""Makes schedulers by name, on the base's own noise schedule."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.training.flow import is_flow
from defectory.errors import ConfigError


class FlowEuler(diffusers.FlowMatchEulerDiscreteScheduler):
    """diffusers' Euler steps for flow matching, with the members that its other schedulers have."""

    init_noise_sigma = 1.0

    def scale_model_input(self, sample: Tensor, timestep: Tensor) -> Tensor:  # noqa: ARG002
        """Return the latents, which the denoiser reads as they are."""
        return sample

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Mix latents with noise as at these timesteps [B], each one of the scheduler's."""
        mixed: Any = self.scale_noise(clean, timesteps, noise)  # pyright: ignore[reportArgumentType]
        return mixed


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

    Of a base of flow matching, `base`, `euler` and `ddim` are its Euler steps: the deterministic steps are the same.

    Raises:
        ConfigError: the name is unknown, or has no form for flow matching.
    """
    config = dict(backbone.scheduler.config)
    if is_flow(backbone.scheduler):
        return _flow_scheduler(config, name)
    if name == "base":
        return type(backbone.scheduler).from_config(config)
    if name not in SCHEDULERS:
        raise ConfigError(
            "synthesis.scheduler", f"{name!r} is not one of base, {', '.join(SCHEDULERS)}", "choose one of them"
        )
    return getattr(diffusers, SCHEDULERS[name]).from_config(config)


def _flow_scheduler(config: dict[str, Any], name: str) -> Any:
    if name in ("base", "euler", "ddim"):
        return FlowEuler.from_config(config)
    if name == "dpm-solver":
        return diffusers.DPMSolverMultistepScheduler(
            num_train_timesteps=config["num_train_timesteps"],
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=config["shift"],
        )
    raise ConfigError(
        "synthesis.scheduler", f"{name} has no form for flow matching", "set it to base, euler, ddim or dpm-solver"
    )


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

    where two fall on one, there are fewer steps. The others' are spaced as the base says, and so are those of flow
    matching, which the base's shift spaces.
    """
    is_dpm = isinstance(scheduler, diffusers.DPMSolverMultistepScheduler)
    if is_dpm and not scheduler.config.get("use_flow_sigmas"):
        last = scheduler.config["num_train_timesteps"] - 1
        spaced = last * (np.arange(1, num_inference_steps + 1) / num_inference_steps) ** TIMESTEP_POWER
        scheduler.set_timesteps(timesteps=np.unique(spaced.round().astype(int))[::-1].tolist(), device=device)
    else:
        scheduler.set_timesteps(num_inference_steps, device=device)
