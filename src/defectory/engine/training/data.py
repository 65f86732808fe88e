"""Defines training tiles, their augmented variants, and the order in which batches use them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from defectory.errors import InputError
from defectory.geometry import Augmentation, border_of
from defectory.tones import tone_words

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainingTile:
    """A tile of the train subset.

    Attributes:
        id: the tile's id.
        image: RGB uint8 [H,W,3].
        instances: category id and mask bool [H,W] of each defect; empty if the tile is defect-free.
        class_names: the class name of each instance, in the same order.
        valid_hw: the part of the tile, from its upper left corner, that shows image.
        drawing: RGB uint8 [H,W,3], source of the drivers' geometry; None if this is the image.
    """

    id: str
    image: Image
    instances: tuple[tuple[int, Mask], ...] = ()
    class_names: tuple[str, ...] = ()
    valid_hw: tuple[int, int]
    drawing: Image | None = None

    def __post_init__(self) -> None:
        assert len(self.class_names) == len(self.instances), "one class name per instance"
        assert all(mask.shape == self.image.shape[:2] for _, mask in self.instances), "masks have the image's size"

    @property
    def defect(self) -> Mask:
        """Return the union of all masks, bool [H,W]."""
        union = np.zeros(self.image.shape[:2], bool)
        for _, mask in self.instances:
            union |= mask
        return union

    @property
    def geometry(self) -> Image:
        """Return the source of the drivers' geometry, RGB uint8 [H,W,3]."""
        return self.image if self.drawing is None else self.drawing

    @property
    def tone(self) -> str:
        """Return the words for the tones of the tile outside its defects."""
        height, width = self.valid_hw
        return tone_words(self.image[:height, :width], without=self.defect[:height, :width])

    def digest(self) -> str:
        """Compute the SHA-256 hex digest of image, masks, classes and drawing, without the id."""
        state = hashlib.sha256(repr((self.image.shape, self.valid_hw, self.class_names)).encode())
        state.update(np.ascontiguousarray(self.image).tobytes())
        for category_id, mask in self.instances:
            state.update(repr(category_id).encode())
            state.update(np.packbits(mask).tobytes())
        if self.drawing is not None:
            state.update(np.ascontiguousarray(self.drawing).tobytes())
        return state.hexdigest()


def check_tiles(tiles: Sequence[TrainingTile], *, multiple_px: int) -> None:
    """Require tiles of one size that the base supports.

    Args:
        tiles: all tiles of a phase, held-out ones included.
        multiple_px: number that both sides must be divisible by.

    Raises:
        InputError: there is no tile, sizes differ, or the base does not support the size.
    """
    if not tiles:
        raise InputError("training tiles", "there are none", "check the split: its train subset must hold images")
    first = tiles[0].image.shape
    for tile in tiles:
        height, width = tile.image.shape[:2]
        if tile.image.shape != first:
            raise InputError(
                f"tile {tile.id}",
                f"is {height}x{width}, others are {first[0]}x{first[1]} (height x width)",
                "cut the tiles again",
            )
        if height % multiple_px or width % multiple_px:
            raise InputError(
                f"tile {tile.id}",
                f"is {height}x{width}",
                f"choose tiling.tile_px as a multiple of {multiple_px} for this base",
            )


def augmentation_of(tile: TrainingTile, variant: int, *, seed: int, flip: bool) -> Augmentation:
    """Choose a variant's augmentation by (seed, tile content, variant); variant 0 is the unchanged tile."""
    if variant == 0:
        return Augmentation.identity(tile.valid_hw)
    text = f"{seed}/{hashlib.sha256(np.ascontiguousarray(tile.image).tobytes()).hexdigest()}/{variant}"
    drawn = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return Augmentation.sample(
        drawn, tile.valid_hw, strength="train", flip=flip, border=border_of(tile.image, tile.valid_hw)
    )


def augment(tile: TrainingTile, augmentation: Augmentation) -> TrainingTile:
    """Transform image, masks and drawing together; drop instances that leave the tile."""
    kept: list[tuple[int, Mask]] = []
    names: list[str] = []
    for (category_id, mask), name in zip(tile.instances, tile.class_names, strict=True):
        moved = augmentation.apply_mask(mask)
        if moved.any():
            kept.append((category_id, moved))
            names.append(name)
    drawing = None if tile.drawing is None else augmentation.geometric.apply_image(tile.drawing)
    return replace(
        tile,
        image=augmentation.apply_image(tile.image),
        instances=tuple(kept),
        class_names=tuple(names),
        drawing=drawing,
    )


class BatchPlan:
    """Assignment of tiles and variants to batches, a pure function of (seed, batch index).

    The parts are tiles with and without defects. Every tile of a part is used once before any is repeated.

    Args:
        first: tile indices that make up most of each batch.
        second: tile indices that fill `share` of each batch; may be empty.
        batch_size: tiles per batch.
        share: of `second` in a batch, 0..1; it holds exactly over many batches, despite rounding.
        num_variants: variants per tile.
        seed: of the whole plan.
    """

    def __init__(
        self,
        first: Sequence[int],
        second: Sequence[int],
        *,
        batch_size: int,
        share: float,
        num_variants: int,
        seed: int,
    ) -> None:
        assert first, "a batch needs tiles"
        self._parts = (tuple(first), tuple(second))
        self._batch_size = batch_size
        self._share = share if second else 0.0
        self._num_variants = num_variants
        self._seed = seed
        self._orders: dict[tuple[int, int], NDArray[np.int64]] = {}

    def batch(self, index: int) -> list[tuple[int, int]]:
        """Return (tile index, variant) of each member of a batch."""
        begin, end = self._num_second(index), self._num_second(index + 1)
        first = [
            self._pick(0, position)
            for position in range(index * self._batch_size - begin, (index + 1) * self._batch_size - end)
        ]
        second = [self._pick(1, position) for position in range(begin, end)]
        rng = np.random.default_rng([self._seed, 2, index])
        variants = rng.integers(self._num_variants, size=self._batch_size)
        return list(zip(first + second, (int(variant) for variant in variants), strict=True))

    def _num_second(self, index: int) -> int:
        """Count the members of `second` in the batches before this one."""
        return int(np.floor(index * self._batch_size * self._share + 1e-9))

    def _pick(self, part: int, position: int) -> int:
        tiles = self._parts[part]
        epoch, place = divmod(position, len(tiles))
        key = (part, epoch)
        if key not in self._orders:
            self._orders = {k: v for k, v in self._orders.items() if k[0] != part or k[1] >= epoch - 1}
            self._orders[key] = np.random.default_rng([self._seed, part, epoch]).permutation(len(tiles))
        return tiles[int(self._orders[key][place])]
