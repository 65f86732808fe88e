"""Splits samples into chunks of one size for the networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

CHUNK_LATENT_PX = {"cpu": 8 * 32 * 32, "cuda": 8 * 64 * 64}
"""Latent pixels that the networks process at once."""
DECODED_LATENT_PX = {"cpu": 8 * 32 * 32, "cuda": 64 * 64}
"""Latent pixels that are decoded at once: one image of 512 px keeps a GPU busy, and eight take 13 GB."""


def chunk_size(latents: Tensor, most: Mapping[str, int] = CHUNK_LATENT_PX) -> int:
    """Return the number of samples of this size that are processed at once.

    Args:
        latents: [B,C,h,w].
        most: latent pixels at once by type of device; `cuda` stands for all that are not named.
    """
    return max(1, most.get(latents.device.type, most["cuda"]) // (latents.shape[-2] * latents.shape[-1]))


def in_chunks(part: Callable[[Tensor], Tensor], count: int, size: int) -> Tensor:
    """Concatenate a function's results over chunks of row indices that all have one size.

    Kernels may round a sample differently in a batch of another size, visibly so in bf16. The last chunk is therefore
    filled up with its last row.
    """
    parts: list[Tensor] = []
    for start in range(0, count, size):
        rows = torch.arange(start, start + size).clamp(max=count - 1)
        parts.append(part(rows)[: min(size, count - start)])
    return torch.cat(parts)
