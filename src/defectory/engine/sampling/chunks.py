"""Networks see samples in chunks of one size."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_LATENT_PX = {"cpu": 8 * 32 * 32, "cuda": 8 * 64 * 64}
"""Latent pixels the networks see at once."""


def chunk_size(latents: Tensor) -> int:
    """Return how many samples of this size the networks see at once."""
    pixels = CHUNK_LATENT_PX.get(latents.device.type, CHUNK_LATENT_PX["cuda"])
    return max(1, pixels // (latents.shape[-2] * latents.shape[-1]))


def in_chunks(part: Callable[[Tensor], Tensor], count: int, size: int) -> Tensor:
    """Join a function's outcomes over chunks of row numbers that all have one size.

    A kernel may round a sample differently in a batch of another size, in bf16 visibly so; the last chunk is filled up
    with its last row.
    """
    parts: list[Tensor] = []
    for start in range(0, count, size):
        rows = torch.arange(start, start + size).clamp(max=count - 1)
        parts.append(part(rows)[: min(size, count - start)])
    return torch.cat(parts)
