"""Selects the device to compute on."""

from __future__ import annotations

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
