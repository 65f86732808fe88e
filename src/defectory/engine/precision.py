"""Precision of networks: bf16 where the processor has instructions for it, and frozen networks in half the memory."""

from __future__ import annotations

import platform
from functools import cache

import torch
from torch import nn

from defectory.engine.config import MixedPrecision

ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


@cache
def has_bf16(device_type: str) -> bool:
    """Return whether devices of a type have instructions for bf16; without them it is up to 30 times as slow as fp32.

    On a machine without CUDA, which plans for another, a GPU is taken to have them.
    """
    if device_type == "cpu":
        return _cpu_has_bf16()
    if device_type == "cuda":
        return not torch.cuda.is_available() or torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type != "mps"


def _cpu_has_bf16() -> bool:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]


def uses_bf16(mixed_precision: MixedPrecision, device: torch.device | str) -> bool:
    """Return whether networks compute in bf16 on a device: `auto` does where `has_bf16`."""
    if mixed_precision == "auto":
        return has_bf16(torch.device(device).type)
    return mixed_precision == "bf16"


def autocast(mixed_precision: MixedPrecision, device: torch.device | str) -> torch.autocast:
    """Return the context in which networks compute on a device: autocast to bf16, or fp32."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=uses_bf16(mixed_precision, device))


def hold_frozen_in_bf16(*models: nn.Module) -> None:
    """Hold frozen matrices and kernels in bf16: half their memory, and the same results under bf16 autocast.

    Autocast rounds the weights of linear and convolutional layers to bf16 in every call; now they are rounded once. All
    else stays float32, since it is used as it is: norms, positional embeddings, tables.
    """
    for model in models:
        for layer in model.modules():
            if not isinstance(layer, ROUNDED_BY_AUTOCAST):
                continue
            weight = layer.weight
            if not weight.requires_grad and weight.dtype == torch.float32:
                weight.data = weight.data.to(torch.bfloat16)
