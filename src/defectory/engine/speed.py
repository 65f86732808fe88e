"""Measures how fast this machine trains, with a probe of about a quarter of a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from defectory.engine.config import MixedPrecision

BATCH, CHANNELS, SIDE_PX = 8, 96, 32
"""Of the probe: one convolution with its normalisation, as in the embedded base's denoiser."""
MULTIPLY_ADDS = 3 * BATCH * CHANNELS**2 * 9 * SIDE_PX**2
"""Of one step of the probe, forward and backward."""
PROBE_S = 0.12
LEAST_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Speed of a CPU in the probe's multiply-adds per second.

    Attributes:
        one: on one thread.
        all: on all threads of a run.
        num_threads: of a run.
        is_bf16: whether the probe ran in bf16, as networks do.
    """

    one: float
    all: float
    num_threads: int
    is_bf16: bool = True


def measure_speed(*, threads: int | None = None, mixed_precision: MixedPrecision = "auto") -> Speed:
    """Time the probe on one thread and on all threads of a run, as fast as it is while no other program interferes.

    torch's number of threads is restored.

    Args:
        threads: of a run; None keeps torch's choice.
        mixed_precision: of the probe.
    """
    import torch

    from defectory.engine.precision import uses_bf16

    before, is_bf16 = torch.get_num_threads(), uses_bf16(mixed_precision, "cpu")
    num_threads = threads or before
    try:
        torch.set_num_threads(1)
        # time of this thread alone, which other programs hardly change
        one = _multiply_adds_per_s(mixed_precision, time.thread_time)
        if num_threads == 1:
            return Speed(one=one, all=one, num_threads=1, is_bf16=is_bf16)
        torch.set_num_threads(num_threads)
        # on a busy machine threads wait for each other, longer than they do in a whole run
        together = max(one, _multiply_adds_per_s(mixed_precision, time.perf_counter))
        return Speed(one=one, all=together, num_threads=num_threads, is_bf16=is_bf16)
    finally:
        torch.set_num_threads(before)


def _multiply_adds_per_s(mixed_precision: MixedPrecision, clock: Callable[[], float]) -> float:
    import torch
    from torch import nn

    from defectory.engine.precision import autocast

    with torch.random.fork_rng(devices=[]):
        layer = nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1), nn.GroupNorm(16, CHANNELS), nn.SiLU())
        pixels = torch.randn(BATCH, CHANNELS, SIDE_PX, SIDE_PX, requires_grad=True)

    def step() -> float:
        began = clock()
        with autocast(mixed_precision, "cpu"):
            maps = layer(pixels)
        maps.float().mean().backward()
        return clock() - began

    step()
    ends, seconds = time.perf_counter() + PROBE_S, list[float]()
    while time.perf_counter() < ends or len(seconds) < LEAST_STEPS:
        seconds.append(step())
    # the fastest step: the others were held up by other programs
    return MULTIPLY_ADDS / min(seconds)
