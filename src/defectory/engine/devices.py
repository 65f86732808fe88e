"""Selects the device to compute on."""

from __future__ import annotations

import gc

from defectory.errors import ConfigError


def usable_device(name: str) -> str:
    """Check that a device can be used, and return its name.

    Raises:
        ConfigError: this machine has no such device, or torch cannot use it.
    """
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", f"{name!r} cannot be used on this machine", "choose cpu, or a GPU that `defectory doctor` shows"
        ) from error
    return name


def device_of(name: str, *, threads: int | None = None) -> str:
    """Return the device to use, and set the number of CPU threads.

    Args:
        name: a device, or `auto` for a GPU if there is one.
        threads: of the CPU; None keeps torch's choice.

    Raises:
        ConfigError: the device cannot be used.
    """
    import torch

    if threads:
        torch.set_num_threads(threads)
    if name != "auto":
        return usable_device(name)
    return "cuda" if torch.cuda.is_available() else "cpu"


def num_gpus() -> int:
    """Return the number of CUDA devices that torch sees."""
    import torch

    return torch.cuda.device_count()


def give_back_device_memory() -> None:
    """Return freed memory of the GPU that torch has kept, for other processes to use."""
    import torch

    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()
