"""Makes the batches that a student trains on: one place on the trajectory, tiles with their masks and tiles without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from defectory.distillation.steps import Span
from defectory.engine.training.cache import TileVariants
from defectory.engine.training.data import BatchPlan, TrainingTile
from defectory.engine.training.noise import generator_of

DEFECT_FREE_SHARE = 0.25
"""Share of defect-free tiles in each batch."""
Member = tuple[int, int]
"""A tile's index and a variant of it."""


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """Variants of tiles, each with a driver with and one without its masks, and how prompts are made.

    Attributes:
        variants: of each tile.
        prompt_of: maps class names and words for tones to the prompt.
    """

    variants: Sequence[TileVariants]
    prompt_of: Callable[[Sequence[str], str], str]


@dataclass(frozen=True, kw_only=True)
class StudentBatch:
    """B tiles at one place on the trajectory, on the CPU; the first N are drawn with their masks, the rest without.

    Attributes:
        span: where on the trajectory.
        clean: float32 [B,C,h,w], scaled latents.
        noise: float32 [B,C,h,w].
        defect: bool [B,1,h,w], latent pixels that contain a defect pixel.
        prompts: one per tile, as it is drawn.
        drivers: uint8 [B,H,W,3], as it is drawn.
        prompts_without: of the first N tiles without their masks.
        drivers_without: uint8 [N,H,W,3], likewise.
    """

    span: Span
    clean: Tensor
    noise: Tensor
    defect: Tensor
    prompts: Sequence[str]
    drivers: Tensor
    prompts_without: Sequence[str]
    drivers_without: Tensor


def batch_plan(tiles: Sequence[TrainingTile], *, batch_size: int, num_variants: int, seed: int) -> BatchPlan:
    """Plan which tiles and variants a batch holds."""
    defective = [index for index, tile in enumerate(tiles) if tile.instances]
    free = [index for index, tile in enumerate(tiles) if not tile.instances]
    return BatchPlan(
        defective or free,
        free if defective else (),
        batch_size=batch_size,
        share=DEFECT_FREE_SHARE,
        num_variants=num_variants,
        seed=seed,
    )


def training_batch(tiles: Tiles, plan: BatchPlan, spans: Sequence[Span], *, seed: int, index: int) -> StudentBatch:
    """Make the batch of an index; as many batches in a row as there are spans hold each span once."""
    turn, place = divmod(index, len(spans))
    order = torch.randperm(len(spans), generator=generator_of(seed, "distillation spans", turn))
    generator = generator_of(seed, "distillation", index)
    members = plan.batch(index)
    # half of the tiles, chosen at random, are drawn without their masks
    shuffled = [members[i] for i in torch.randperm(len(members), generator=generator).tolist()]
    return _batch(tiles, shuffled, spans[int(order[place])], generator)


def held_out_batches(tiles: Tiles, spans: Sequence[Span], *, batch_size: int) -> list[StudentBatch]:
    """Make the batches of the held-out loss: one per span, with the same tiles and noise at every validation."""
    count = len(tiles.variants)
    if not count:
        return []
    size = min(batch_size, count)
    batches: list[StudentBatch] = []
    for number, span in enumerate(spans):
        rows = [(number * size + i) % count for i in range(size)]
        members = [(row, 0) for row in rows]
        batches.append(_batch(tiles, members, span, generator_of("held out distillation", number)))
    return batches


def _batch(tiles: Tiles, members: Sequence[Member], span: Span, generator: torch.Generator) -> StudentBatch:
    count = (len(members) + 1) // 2
    chosen = [tiles.variants[tile] for tile, _ in members]
    clean = torch.stack([of.latents[variant] for of, (_, variant) in zip(chosen, members, strict=True)]).float()
    empty = [tiles.variants[tile].empty_driver(variant) for tile, variant in members]
    with_masks = [tiles.variants[tile].driver(variant) for tile, variant in members[:count]]
    without = [tiles.prompt_of((), of.tone) for of in chosen]
    with_names = [
        tiles.prompt_of(of.class_names[variant], of.tone)
        for of, (_, variant) in zip(chosen[:count], members[:count], strict=True)
    ]
    return StudentBatch(
        span=span,
        clean=clean,
        noise=torch.randn(clean.shape, generator=generator),
        defect=torch.stack([of.defect[variant] for of, (_, variant) in zip(chosen, members, strict=True)]),
        prompts=[*with_names, *without[count:]],
        drivers=torch.stack([*with_masks, *empty[count:]]),
        prompts_without=without[:count],
        drivers_without=torch.stack(empty[:count]),
    )
