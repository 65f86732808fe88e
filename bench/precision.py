"""What bf16, Muon's iteration and Python's garbage collector cost on this processor.

Run: `OMP_NUM_THREADS=1 python bench/precision.py`. Prints a Markdown table of processor seconds on one thread: the
smallest of several, all in turns in one process; of processes of their own for the last row.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from defectory.engine.precision import has_bf16
from defectory.engine.training import optimizer

COEFFICIENTS, NUM_STEPS, EPS = (3.4445, -4.775, 2.0315), 5, 1e-7
NUM_ROUNDS = 5
START = """
import time
{before}
import torch, torchvision
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextModel
import defectory.stages.all
print(time.process_time())
"""


def seconds_of(actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the smallest processor time of each action, taken in turns."""
    found = dict.fromkeys(actions, float("inf"))
    for _ in range(NUM_ROUNDS):
        for name, action in actions.items():
            began = time.thread_time()
            action()
            found[name] = min(found[name], time.thread_time() - began)
    return found


def convolution(dtype: torch.dtype) -> Callable[[], object]:
    """Return a step of a convolution with its norm, forward and backward."""
    layer = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1), nn.GroupNorm(16, 96), nn.SiLU())
    pixels = torch.randn(8, 96, 32, 32, requires_grad=True)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            maps = layer(pixels)
        maps.float().mean().backward()

    return step


def start_s(before: str) -> float:
    """Start a process that imports what a stage needs, and return its processor time."""
    command = [sys.executable, "-c", START.format(before=before)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> None:
    """Measure and print everything."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{torch.backends.cpu.get_cpu_capability()}, instructions for bf16: {has_bf16('cpu')}\n")
    print("| what | one way, s | other way, s | ratio |\n|---|---|---|---|", flush=True)

    def row(what: str, one: float, other: float) -> None:
        print(f"| {what} | {one:.4f} | {other:.4f} | {one / other:.2f} |", flush=True)

    convolved = seconds_of({"bf16": convolution(torch.bfloat16), "fp32": convolution(torch.float32)})
    row("a convolution, in bf16 and in fp32", convolved["bf16"], convolved["fp32"])
    kernels = torch.randn(4, 128, 9 * 128)
    kernels = kernels / kernels.norm(dim=(1, 2), keepdim=True)
    ways = (
        (kernels.bfloat16(), optimizer.by_products),
        (kernels, optimizer.by_products),
        (kernels, optimizer.by_squares),
    )
    bf16, products, squares = seconds_of(
        {str(n): lambda x=x, way=way: way(x, COEFFICIENTS, NUM_STEPS) for n, (x, way) in enumerate(ways)}
    ).values()
    row("Muon's iteration on four kernels of 128 x 1,152, in bf16 and in fp32", bf16, products)
    row("the same in fp32, by products and by squares", products, squares)
    rarely = "from defectory.memory import collect_garbage_rarely; collect_garbage_rarely()"
    often, seldom = (min(start_s(before) for _ in range(2)) for before in ("", rarely))
    row("to start a process, collecting garbage as often as Python does and rarely", often, seldom)


if __name__ == "__main__":
    main()
