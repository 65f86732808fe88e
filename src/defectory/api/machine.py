"""Checks whether this machine can run Defectory."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from defectory import __version__

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "faster-coco-eval")


def check_machine() -> dict[str, str]:
    """Return versions, devices, memory, free disk space and the state of the embedded base, by name.

    Raises:
        WeightsError: the embedded base is damaged.
    """
    import torch

    from defectory.engine.backbones.known import embedded_folder
    from defectory.engine.backbones.verify import verify

    found = {"defectory": __version__, "python": platform.python_version()}
    found |= {name: _version_of(name) for name in PACKAGES}
    found["cpu"] = f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()}"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            device = torch.cuda.get_device_properties(index)
            found[f"cuda:{index}"] = f"{device.name}, {device.total_memory / 2**30:.0f} GiB"
    else:
        found["gpu"] = "none; the embedded base runs on the CPU, Stable Diffusion needs a GPU"
    if hasattr(os, "sysconf"):
        found["memory"] = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB"
    found["disk here"] = f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB free"
    verify(embedded_folder())
    found["embedded base"] = "whole"
    return found


def _version_of(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
