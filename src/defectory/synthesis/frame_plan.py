"""Makes the plan of drafts that are inserted into whole images: several on one image, each in a square of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tile, TileSet
from defectory.errors import ConfigError
from defectory.rle import encode
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.frames import Box, FrameSizes, change_boxes, overlap
from defectory.synthesis.plan import (
    Mask,
    Mix,
    PlanDigests,
    PlanMaterial,
    PoolChooser,
    check_pool,
    mix_weights,
    mixes_of_train,
)

SQUARES_TRIED = 60
"""Most squares tried for one draft."""
MASKS_TRIED = 3
"""Masks tried for one defect, since a mask that does not fit its square is not used."""
MISSES = 6
"""Squares without a place for a mask after which an image counts as full."""


@dataclass(frozen=True, kw_only=True)
class Squares:
    """Where squares lie.

    Attributes:
        near: moves a pool tile to a random place near it.
        corner_of: returns the corner (y, x) of a square, pixels of its image at the tiles' scale.
    """

    near: Callable[[Tile, np.random.Generator], Tile]
    corner_of: Callable[[Tile], tuple[int, int]]


@dataclass
class _OpenFrame:
    """An image that still takes drafts; boxes are in pixels of the image at the tiles' scale."""

    image_id: int
    left: int
    boxes: list[Box] = field(default_factory=lambda: list[Box]())
    misses: int = 0


def make_frame_plan(
    tileset: TileSet,
    *,
    config: SynthesisConfig,
    sizes: FrameSizes,
    seed: int,
    digests: PlanDigests,
    material: PlanMaterial,
    squares: Squares,
    earlier: Sequence[Job] = (),
) -> Plan:
    """Make a plan of drafts that share images: consecutive jobs lie on one pool image until it holds enough.

    The classes of a job's defects follow a train tile, as for `make_plan`. The image has similar tones, and the prompt
    names the tones of the square itself, since its surroundings stay.

    Args:
        tileset: pool tiles, and train tiles for the mix of classes and counts.
        config: number of drafts, limits, margin.
        sizes: how much an image holds.
        seed: of pool images, places, masks and noise.
        digests: of what draws the plan.
        material: masks, sites, prompts and tones.
        squares: where they lie.
        earlier: jobs of earlier rounds. Numbers and seeds continue theirs, and `max_images_per_tile` counts them.

    Raises:
        ConfigError: no pool tile, too few of them for `max_images_per_tile`, or no mask that fits.
    """
    check_pool(len(tileset.of("pool")), config, num_earlier=len(earlier))
    planner = _Planner(tileset, config=config, sizes=sizes, seed=seed, material=material, squares=squares)
    planner.resume(earlier)
    jobs = [planner.job(number) for number in range(len(earlier), len(earlier) + config.num_images)]
    return digests.plan(tileset.categories, jobs)


class _Planner:
    def __init__(
        self,
        tileset: TileSet,
        *,
        config: SynthesisConfig,
        sizes: FrameSizes,
        seed: int,
        material: PlanMaterial,
        squares: Squares,
    ) -> None:
        self._pool, self._of, self._squares, self._seed = tileset.of("pool"), material, squares, seed
        self._config, self._sizes = config, sizes
        self._names = {category.id: category.name for category in tileset.categories}
        self._mixes = mixes_of_train(tileset, material.tone_of)
        weights = mix_weights(self._mixes, even_classes=material.even_classes, weight_of=material.weight_of)
        self._weights = np.full(len(self._mixes), 1 / len(self._mixes)) if weights is None else weights
        self._counts = np.array([len(mix.category_ids) for mix in self._mixes])
        tones = [material.tone_of(tile) for tile in self._pool]
        image_ids = [tile.image_id for tile in self._pool]
        self._chooser = PoolChooser(tones, config, material.tone_distance, seed=seed, groups=image_ids)
        self._tiles_of: dict[int, list[int]] = {}
        for number, tile in enumerate(self._pool):
            self._tiles_of.setdefault(tile.image_id, []).append(number)
        self._frames_of: Counter[int] = Counter()
        self._frame: _OpenFrame | None = None

    def resume(self, earlier: Sequence[Job]) -> None:
        """Count the images and tiles that jobs of earlier rounds used; those of one image follow each other."""
        number_of = {tile.id: number for number, tile in enumerate(self._pool)}
        numbers = [number_of[job.tile_id] for job in earlier]
        for number in numbers:
            self._chooser.resume(number, uses=0, drivers=1)
        for image_id, together in groupby(numbers, key=lambda number: self._pool[number].image_id):
            self._chooser.resume(next(together), uses=1, drivers=0)
            self._frames_of[image_id] += 1

    def job(self, number: int) -> Job:
        rng = np.random.default_rng([42, self._seed, number])
        for _ in range(SQUARES_TRIED):
            frame = self._frame or self._open(rng)
            drawn = self._draft(frame, number, rng)
            frame.misses = 0 if drawn is not None else frame.misses + 1
            if frame.left <= 0 or frame.misses >= MISSES:
                self._frames_of[frame.image_id] += bool(frame.boxes)
                self._frame = None
            if drawn is not None:
                return drawn
        raise ConfigError(
            "pool",
            f"no mask with its margin finds a place on any of {SQUARES_TRIED} squares",
            "use larger tiles or more masks, or set synthesis.mode full",
        )

    def _open(self, rng: np.random.Generator) -> _OpenFrame:
        """Choose an image with tones like those of a train tile, all images evenly."""
        mix = self._mixes[int(rng.choice(len(self._mixes), p=self._weights))]
        number, _ = self._chooser.take(mix.tone)
        image_id = self._pool[number].image_id
        wanted = self._sizes.wanted(image_id, self._frames_of[image_id])
        self._frame = _OpenFrame(image_id=image_id, left=wanted)
        return self._frame

    def _draft(self, frame: _OpenFrame, number: int, rng: np.random.Generator) -> Job | None:
        """Plan one more draft on an image; None if no mask finds a place."""
        mix = self._mix(frame.left, rng)
        at = self._chooser.take_of(self._tiles_of[frame.image_id], mix.tone, rng)
        if at is None:
            frame.misses = MISSES
            return None
        tile = self._pool[at]
        square = tile if self._of.keep_place else self._squares.near(tile, rng)
        instances, sources, boxes = self._label(square, mix.category_ids, frame.boxes, rng)
        if not instances:
            return None
        self._chooser.count_driver(at)
        tone = self._of.tone_of(square)
        job = Job(
            id=f"{number:06d}",
            tile_id=tile.id,
            offset_xy=None if square.offset_xy == tile.offset_xy else square.offset_xy,
            augmentation_seed=None,
            instances=instances,
            mask_sources=sources,
            prompt=self._of.prompt_of([self._names[i.category_id] for i in instances], tone),
            prompt_without=self._of.prompt_of((), tone),
            seed=int(np.random.default_rng([43, self._seed, number]).integers(2**31)),
        )
        frame.left -= self._sizes.size_of(job)
        frame.boxes += boxes
        return job

    def _mix(self, most: int, rng: np.random.Generator) -> Mix:
        """Draw the mix of a train tile with at most so many defects, where defects are counted."""
        weights = self._weights
        if self._sizes.counts_defects:
            fits = self._counts <= max(most, int(self._counts[weights > 0].min()))
            weights = np.where(fits, weights, 0.0)
            weights = weights / weights.sum()
        return self._mixes[int(rng.choice(len(self._mixes), p=weights))]

    def _label(
        self, square: Tile, category_ids: Sequence[int], taken_boxes: Sequence[Box], rng: np.random.Generator
    ) -> tuple[tuple[Instance, ...], tuple[MaskOrigin, ...], list[Box]]:
        """Place masks on a square, clear of what earlier drafts of its image change."""
        site, corner = self._of.site_of(square, None), self._squares.corner_of(square)
        margin = self._config.insert_margin_px
        earlier = _occupied(taken_boxes, corner, site.allowed.shape, margin)
        taken = earlier.copy()
        instances: list[Instance] = []
        sources: list[MaskOrigin] = []
        boxes: list[Box] = []
        for category_id in category_ids:
            for _ in range(MASKS_TRIED):
                drawn = self._of.draw_mask(category_id, rng)
                if drawn is None:
                    break
                mask, source = drawn
                placed = self._placed(mask, category_id, site, taken, rng)
                if placed is None or not placed.any() or (placed & taken).any():
                    continue
                instance = Instance(category_id=category_id, rle=encode(placed))
                own = self._boxes_of(instance, square, corner)
                if overlap(own, taken_boxes):
                    continue
                taken |= placed
                instances.append(instance)
                sources.append(source)
                boxes += own
                break
        return tuple(instances), tuple(sources), boxes

    def _placed(self, mask: Mask, category_id: int, site: Any, taken: Mask, rng: np.random.Generator) -> Mask | None:
        if not self._of.keep_place:
            return self._of.place(mask, category_id, site, taken, rng)
        placed = mask & site.allowed
        # a mask that its square would cut is not used
        return placed if placed.sum() == mask.sum() else None

    def _boxes_of(self, instance: Instance, square: Tile, corner_yx: tuple[int, int]) -> list[Box]:
        return change_boxes(
            (instance,),
            margin_px=self._config.insert_margin_px,
            corner_yx=corner_yx,
            valid_hw=square.valid_hw,
            size_hw=square.valid_hw,
        )


def _occupied(
    boxes: Sequence[Box], corner_yx: tuple[int, int], size_hw: tuple[int, ...], margin_px: int
) -> NDArray[np.bool_]:
    """Return where on a square no label may lie, so that its change stays clear of earlier ones, bool [H,W]."""
    result = np.zeros(size_hw, bool)
    top, left = corner_yx
    for x0, y0, x1, y1 in boxes:
        rows = slice(max(0, y0 - top - margin_px), max(0, y1 - top + margin_px))
        columns = slice(max(0, x0 - left - margin_px), max(0, x1 - left + margin_px))
        result[rows, columns] = True
    return result
