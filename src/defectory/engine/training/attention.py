"""Attention that trains fast on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

FEW_TOKENS = 32 * 32


def use_plain_attention(*models: nn.Module, num_tokens: int, device: torch.device) -> None:
    """Let models compute attention as two matrix products on a CPU, where maps are small; elsewhere they keep torch's
    fused kernel.

    The fused kernel's backward is slow there: on the embedded base the plain one takes a quarter off a training step
    (decision 026), but needs the square of the tokens in memory. Weights and what is drawn do not depend on it.

    Args:
        models: changed in place; those without attention processors of diffusers stay as they are.
        num_tokens: positions of the largest feature map, the latents' height times width.
        device: where the models are.
    """
    if device.type != "cpu" or num_tokens > FEW_TOKENS:
        return
    for model in models:
        setter: Any = getattr(model, "set_attn_processor", None)
        if setter is not None:
            setter(AttnProcessor())


def save_memory(*models: nn.Module) -> None:
    """Let models compute their activations again in the backward pass; those that cannot stay as they are."""
    for model in models:
        enable: Any = getattr(model, "enable_gradient_checkpointing", None)
        if enable is not None:
            enable()
