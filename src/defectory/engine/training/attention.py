"""Selects attention that trains fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn

FEW_TOKENS = 32 * 32


def use_plain_attention(*models: nn.Module, num_tokens: int, device: torch.device) -> None:
    """Make models compute attention as two matrix products, on a CPU and for small feature maps only.

    The backward pass of torch's fused kernel is slow there: on the embedded base, plain attention makes a training step
    a quarter faster (decision 026), but needs memory for the square of the tokens. Weights and samples do not change.

    Args:
        models: changed in place; those without diffusers' usual attention, such as transformers that attend to texts
            and pixels at once, stay unchanged.
        num_tokens: positions of the largest feature map, the latents' height times width.
        device: where the models are.
    """
    if device.type != "cpu" or num_tokens > FEW_TOKENS:
        return
    for model in models:
        setter: Any = getattr(model, "set_attn_processor", None)
        if setter is None:
            continue
        processors: Any = getattr(model, "attn_processors", {})
        if all(isinstance(one, AttnProcessor | AttnProcessor2_0) for one in processors.values()):
            setter(AttnProcessor())


def save_memory(*models: nn.Module) -> None:
    """Make models recompute activations in the backward pass, if they support it."""
    for model in models:
        enable: Any = getattr(model, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()
