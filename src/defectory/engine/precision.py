"""Holds frozen networks in half the memory."""

from __future__ import annotations

import torch
from torch import nn


def hold_frozen_in_bf16(*models: nn.Module) -> None:
    """Hold frozen matrices and kernels in bf16: half their memory, and the same results under bf16 autocast.

    Autocast rounds them to bf16 in every call; now they are rounded once. Vectors stay float32, since norms use them
    as they are.
    """
    for model in models:
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.ndim > 1 and parameter.dtype == torch.float32:
                parameter.data = parameter.data.to(torch.bfloat16)
