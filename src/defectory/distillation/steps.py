"""Steps of teacher and student along a sampling trajectory, and what the student should predict.

    x_t = a_t x + s_t e          a_t^2 = alpha_bar_t, s_t^2 = 1 - alpha_bar_t;   t = -1 is the image: a = 1, s = 0
    x_u = a_u x' + s_u e'        a step of DDIM from t to u (Song et al. 2021, eq. 12 with sigma 0)

    x', e'   clean latents and noise that a prediction at x_t stands for

Trajectory (progressive distillation, Salimans & Ho 2022, appendix G): the teacher takes several steps from t to u. The
student should predict the clean latents from which one step ends at the same x_u:

    x* = (x_u - (s_u / s_t) x_t) / (a_u - (s_u / s_t) a_t)

Consistency (Song et al. 2023; Luo et al. 2023, LCM): all points of a trajectory should lead to the same image. With
one step of the teacher from t to u, and the student's own weights without gradient on the right,

    f(x_t, t) = f(x_u, u),       f(x_t, t) = c_skip(t) x_t + c_out(t) x'(x_t, t)

    c_skip(t) = d^2 / ((10 t)^2 + d^2),   c_out(t) = 10 t / sqrt((10 t)^2 + d^2),   d = 0.5
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from defectory.engine.training.noise import NoiseSchedule

IMAGE = -1
"""The timestep of an image without noise."""
SIGMA_DATA, TIMESTEP_SCALING = 0.5, 10.0
"""d, and the factor on t, as diffusers' `LCMScheduler` has them."""
HUBER = 1e-3
"""Scale of the pseudo-Huber loss of consistency, as diffusers' script of LCM-LoRA has it."""

Predict = Callable[[Tensor, int], Tensor]
"""Maps noisy latents [B,C,h,w] and their timestep to the prediction [B,C,h,w]."""


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stretch of the trajectory: timesteps from the noisiest on; the last one may be `IMAGE`."""

    timesteps: tuple[int, ...]

    @property
    def start(self) -> int:
        """Return the timestep that the student predicts at."""
        return self.timesteps[0]

    @property
    def end(self) -> int:
        """Return the timestep that it leads to."""
        return self.timesteps[-1]


def trajectory_spans(num_timesteps: int, *, num_inference_steps: int, teacher_inference_steps: int) -> list[Span]:
    """Return one span per step of the student, from noise to image, with the teacher's steps inside.

    The student's timesteps are those of diffusers' DDIM with trailing spacing. The teacher's lie evenly by the square
    root of the timestep, so that the last steps, which draw grain, are the shortest.
    """
    count = -(-teacher_inference_steps // num_inference_steps)
    length = num_timesteps // num_inference_steps
    spans: list[Span] = []
    for start in np.round(np.arange(num_timesteps, 0, -num_timesteps / num_inference_steps)).astype(int) - 1:
        end = max(int(start) - length, IMAGE)
        roots = np.linspace(np.sqrt(start), np.sqrt(max(end, 0)), count + 1)
        inner = np.round(roots[1:-1] ** 2).astype(int).tolist()
        # steps that round to one timestep become one step
        between = [t for t in dict.fromkeys(inner) if end < t < start]
        spans.append(Span(timesteps=(int(start), *between, end)))
    return spans


def consistency_spans(num_timesteps: int, *, teacher_inference_steps: int) -> list[Span]:
    """Return one span per step of the teacher, from noise to image, at the timesteps of diffusers' `LCMScheduler`."""
    length = num_timesteps // teacher_inference_steps
    starts = [number * length - 1 for number in range(teacher_inference_steps, 0, -1)]
    return [Span(timesteps=(start, max(start - length, IMAGE))) for start in starts]


class Steps:
    """Steps on a base's noise schedule.

    Args:
        schedule: of the base, and what its denoiser predicts.
    """

    def __init__(self, schedule: NoiseSchedule) -> None:
        self._schedule = schedule
        self._alpha_bar = torch.cat([schedule.alpha_bar, torch.ones_like(schedule.alpha_bar[:1])])

    def scales(self, timestep: int) -> tuple[Tensor, Tensor]:
        """Return a_t and s_t of a timestep or of `IMAGE`."""
        # index -1 is the appended 1
        alpha_bar = self._alpha_bar[timestep]
        return alpha_bar.sqrt(), (1 - alpha_bar).sqrt()

    def clean(self, x: Tensor, predicted: Tensor, timestep: int) -> Tensor:
        """Compute x' of a prediction, float [B,C,h,w]."""
        a, s = self.scales(timestep)
        if self._schedule.prediction_type == "epsilon":
            return (x - s * predicted) / a.clamp_min(1e-4)
        return a * x - s * predicted

    def ddim(self, x: Tensor, predicted: Tensor, timestep: int, end: int) -> Tensor:
        """Take a step of DDIM from x_t to x_u, float [B,C,h,w]."""
        (a, s), (a_end, s_end) = self.scales(timestep), self.scales(end)
        clean = self.clean(x, predicted, timestep)
        noise = predicted if self._schedule.prediction_type == "epsilon" else s * x + a * predicted
        return a_end * clean + s_end * noise

    def solve(self, x: Tensor, span: Span, predict: Predict) -> Tensor:
        """Take all steps of a span, float [B,C,h,w]."""
        for timestep, end in zip(span.timesteps, span.timesteps[1:], strict=False):
            x = self.ddim(x, predict(x, timestep), timestep, end)
        return x

    def leading_to(self, x_end: Tensor, x: Tensor, span: Span) -> Tensor:
        """Compute x*, the clean latents from which one step ends at x_u, float [B,C,h,w]."""
        (a, s), (a_end, s_end) = self.scales(span.start), self.scales(span.end)
        share = s_end / s
        return (x_end - share * x) / (a_end - share * a)

    def consistent(self, x: Tensor, clean: Tensor, timestep: int) -> Tensor:
        """Compute f(x_t, t) from x', float [B,C,h,w]; f(x, -1) is x."""
        skip, out = boundary_scalings(timestep)
        return skip * x + out * clean


def boundary_scalings(timestep: int) -> tuple[float, float]:
    """Return c_skip(t) and c_out(t), which are 1 and 0 for an image."""
    scaled = TIMESTEP_SCALING * max(timestep, 0)
    skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    return skip, scaled / (scaled**2 + SIGMA_DATA**2) ** 0.5


def trajectory_errors(clean: Tensor, target: Tensor, sigma: Tensor) -> Tensor:
    """Compute squared errors of clean latents as errors of the velocity, (x' - x*)^2 / s_t^2, float [B,C,h,w]."""
    return ((clean - target) / sigma).square()


def consistency_errors(value: Tensor, target: Tensor) -> Tensor:
    """Compute pseudo-Huber errors, sqrt((f - f*)^2 + c^2) - c, float [B,C,h,w]."""
    return ((value - target).square() + HUBER**2).sqrt() - HUBER
