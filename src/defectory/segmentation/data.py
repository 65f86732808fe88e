"""The images that segmenters train on, and how each step's batch is drawn, as functions of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from defectory.rle import Rle, decode_crop

Mask = NDArray[np.bool_]
GOLDEN = 0.6180339887498949
"""Its multiples, modulo 1, spread evenly."""


@dataclass(frozen=True, kw_only=True)
class SegmentationImage:
    """A training image or a window of one: RGB uint8 [H,W,3], and (category id, mask) of each instance.

    `image_ids` names the data set images that it shows parts of: the image it was cut from, or the sources of a
    draft's background and masks. It is empty for images that belong to no data set. `ignore` holds the pixels that
    training ignores, None if there are none; `is_doubtful` has a flag per instance, and is empty if none is doubtful.
    """

    id: str
    image: NDArray[np.uint8]
    instances: tuple[tuple[int, Rle], ...] = ()
    image_ids: tuple[int, ...] = ()
    ignore: Rle | None = None
    is_doubtful: tuple[bool, ...] = ()
    _crops: list[tuple[Mask, tuple[int, int]]] = field(default_factory=list, repr=False, compare=False)

    @property
    def has_doubt(self) -> bool:
        """Return whether a pixel or an instance is doubtful."""
        return self.ignore is not None or any(self.is_doubtful)

    def crops(self) -> list[tuple[Mask, tuple[int, int]]]:
        """Return the mask of each instance, cropped to its box, and the position (y, x) of its first pixel; cached."""
        if len(self._crops) != len(self.instances):
            self._crops[:] = [(mask, (y, x)) for _, rle in self.instances for mask, (x, y) in [decode_crop(rle)]]
        return self._crops

    def digest(self) -> str:
        """Return the SHA-256 hex digest of image, instances and what is doubtful."""
        instances = [(category_id, rle.size_hw, rle.counts) for category_id, rle in self.instances]
        state = hashlib.sha256(repr((self.image.shape, instances)).encode())
        if self.has_doubt:
            ignored = None if self.ignore is None else (self.ignore.size_hw, self.ignore.counts)
            state.update(repr((ignored, self.is_doubtful)).encode())
        state.update(np.ascontiguousarray(self.image).tobytes())
        return state.hexdigest()


class Draws:
    """An endless sequence of image indices: all once per epoch, shuffled, rare classes more often if wished.

    Args:
        repeats: how often each image comes in an epoch on average, 1 or more each.
        seed: of the order.
    """

    def __init__(self, repeats: Sequence[float], *, seed: int) -> None:
        self._repeats, self._seed = np.asarray(repeats, np.float64), seed
        self._drawn: list[int] = []
        self._epochs = 0

    def at(self, position: int) -> int:
        """Return the index at a position, counted from 0."""
        while position >= len(self._drawn):
            rng = np.random.default_rng([72, self._seed, self._epochs])
            whole = np.floor(self._repeats)
            counts = (whole + (rng.random(len(whole)) < self._repeats - whole)).astype(int)
            order = np.repeat(np.arange(len(counts)), counts)
            self._drawn += rng.permutation(order).tolist()
            self._epochs += 1
        return self._drawn[position]


def repeats_of(images: Sequence[SegmentationImage], *, threshold: float) -> list[float]:
    """Return how often each image is repeated for the sake of its rarest class (Gupta et al. 2019, LVIS).

    An image is repeated by the square root of `threshold` / f, where f is the share of the images that show the class;
    at least once.
    """
    shown = [{category_id for category_id, _ in image.instances} for image in images]
    count = {c: sum(c in classes for classes in shown) for c in set().union(*shown)} if shown else {}
    return [
        max((max(1.0, float(np.sqrt(threshold * len(images) / count[c]))) for c in classes), default=1.0)
        for classes in shown
    ]


def members(shares: Mapping[str, float], *, batch_size: int, step: int) -> list[str]:
    """Return the source of each member of a step's batch; over many steps the shares are exact.

    Args:
        shares: of each source, in the order of the batch; together 1.
        batch_size: members.
        step: counted from 0.
    """
    ends = np.cumsum(list(shares.values()))
    points = (np.arange(batch_size) + (0.5 + step * GOLDEN) % 1.0) / batch_size
    places = np.minimum(np.searchsorted(ends, points * ends[-1], side="right"), len(ends) - 1)
    names = list(shares)
    return [names[int(place)] for place in places]
