"""Makes held-out batches with the same tiles, timesteps and noise at every validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from defectory.engine.training.cache import TileVariants
from defectory.engine.training.loss import Batch
from defectory.engine.training.noise import generator_of

MAX_TILES = 64


def held_out_indices(num_tiles: int) -> list[int]:
    """Choose at most 64 tile indices, spread evenly."""
    if num_tiles <= MAX_TILES:
        return list(range(num_tiles))
    return [index * num_tiles // MAX_TILES for index in range(MAX_TILES)]


def held_out_batches(
    variants: Sequence[TileVariants], num_timesteps: int, prompt_of: Callable[[TileVariants, int], str], batch_size: int
) -> list[Batch]:
    """Make the validation batches of unaugmented tiles, with timesteps spread evenly over the schedule.

    Args:
        variants: one entry per held-out tile; the first variant is used.
        num_timesteps: of the schedule.
        prompt_of: maps a tile and a variant to the prompt.
        batch_size: members per batch.
    """
    batches: list[Batch] = []
    count = len(variants)
    # neighbouring tiles are often similar, so consecutive timesteps are far apart
    timesteps = [int((index * 0.618034 % 1.0) * num_timesteps) for index in range(count)]
    for start in range(0, count, batch_size):
        rows = range(start, min(start + batch_size, count))
        clean = torch.stack([variants[row].latents[0] for row in rows]).float()
        batches.append(
            Batch(
                clean=clean,
                noise=torch.randn(clean.shape, generator=generator_of("held out", start)),
                timesteps=torch.tensor([timesteps[row] for row in rows]),
                prompts=[prompt_of(variants[row], 0) for row in rows],
                defect=torch.stack([variants[row].defect[0] for row in rows]),
                drivers=torch.stack([variants[row].driver(0) for row in rows]) if variants[0].drivers else None,
            )
        )
    return batches
