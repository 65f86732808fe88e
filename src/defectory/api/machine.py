"""Checks whether this machine can run Defectory, which presets fit it, and how long a project would take."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from defectory import __version__

if TYPE_CHECKING:
    from defectory.stages.parts.estimate.estimate import Estimate

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "faster-coco-eval")


def check_machine() -> dict[str, str]:
    """Return versions, devices, memory, free disk space and the state of the embedded base, by name.

    Raises:
        WeightsError: the embedded base is damaged.
    """
    import torch

    from defectory.engine.backbones.known import embedded_folder
    from defectory.engine.backbones.verify import verify
    from defectory.engine.devices import device_of
    from defectory.engine.precision import has_bf16

    found = {"defectory": __version__, "python": platform.python_version()}
    found |= {name: _version_of(name) for name in PACKAGES}
    found["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    else:
        found["gpu"] = "none; the embedded base runs on the CPU, Stable Diffusion needs a GPU"
    without = "fp32; the processor has no instructions for bf16, so training and drawing take longer"
    found["precision"] = "bf16" if has_bf16(torch.device(device_of("auto")).type) else without
    if hasattr(os, "sysconf"):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    found["disk here"] = f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB free"
    verify(embedded_folder())
    found["embedded base"] = "whole"
    return found


@dataclass(frozen=True, kw_only=True)
class PresetFit:
    """Whether a preset fits this machine.

    Attributes:
        preset: its name.
        purpose: what it is for.
        needed_bytes: GPU memory that it takes at most, reckoned; 0 without a GPU.
        fits: whether it fits the largest GPU here; presets without a GPU always do.
        why: what it needs, or lacks here.
    """

    preset: str
    purpose: str
    needed_bytes: float
    fits: bool
    why: str


def presets_here() -> list[PresetFit]:
    """Return every preset for user data and whether it fits this machine, from small to large."""
    import torch

    from defectory.stages.parts.estimate.preset_needs import preset_needs

    cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    largest = max((torch.cuda.get_device_properties(index).total_memory for index in cards), default=0)
    found = [
        PresetFit(
            preset="cpu",
            purpose="the embedded base, no GPU",
            needed_bytes=0,
            fits=True,
            why="every machine with 8 GB of memory",
        )
    ]
    for need in preset_needs():
        fits, most = need.needed_bytes <= largest, f"{need.needed_bytes / 2**30:.1f} GiB in {need.stage}, reckoned"
        if not largest:
            most = f"{most}; no GPU here"
        elif not fits:
            most = f"{most}; the largest GPU here has {largest / 2**30:.0f} GiB"
        found.append(
            PresetFit(
                preset=need.preset,
                purpose=f"Stable Diffusion 1.5 on a GPU with {need.card_gib} GB",
                needed_bytes=need.needed_bytes,
                fits=fits,
                why=most,
            )
        )
    return found


def plan_demo() -> tuple[Estimate, bool]:
    """Estimate the demo on this machine, from a probe of a quarter of a second and the work of each stage.

    The demo of the current folder is estimated as far as it has still to run, else a new one.

    Returns:
        the estimate, and whether the demo has shorter phases here.
    """
    from defectory.api.demo import PROJECT_FILE, is_short, open_demo

    here = Path("runs") / "demo"
    if (here / PROJECT_FILE).is_file():
        demo = open_demo()
        return demo.estimate(), is_short(demo)
    with tempfile.TemporaryDirectory() as folder:
        demo = open_demo(Path(folder) / "demo")
        return replace(demo.estimate(), folder=here), is_short(demo)


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
