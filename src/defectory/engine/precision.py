"""Holds frozen networks in half the memory."""

from __future__ import annotations

import torch
from torch import nn

ROUNDED_BY_AUTOCAST = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
