"""Segmentation difficulty: how well segmenters detect train instances and tiles they were not trained on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from defectory.artifacts.value import Value

LEAST_EXPECTED = 0.05
"""Below this overlap the fold segmenters are too weak to judge drafts."""


class InstanceDifficulty(Value):
    """The difficulty of one train instance.

    The instance is identified by its image and its number in that image. `iou` is the IoU of the best detection of its
    class, 0 if it was missed.
    """

    image_id: int
    number: int
    category_id: int
    iou: float


class TileOverlap(Value):
    """The detection quality on one train tile with defects.

    `overlap` is the IoU of everything detected with everything labelled on the tile, regardless of class.
    """

    tile_id: str
    category_ids: tuple[int, ...]
    overlap: float


class Difficulty(Value):
    """The difficulty of all train instances and tiles.

    Each one is judged by the segmenter that was trained on the other folds; validation and test are not used.
    """

    split_digest: str
    num_folds: int
    instances: tuple[InstanceDifficulty, ...]
    tiles: tuple[TileOverlap, ...] = ()

    def weights(self, *, floor: float) -> dict[tuple[int, int], float]:
        """Return the sampling weight of each instance by (image id, number).

        The weight is `floor + 1 - IoU`, scaled so that the mean weight is 1.
        """
        raw = {(i.image_id, i.number): floor + 1.0 - i.iou for i in self.instances}
        mean = sum(raw.values()) / max(1, len(raw))
        return {key: value / mean for key, value in raw.items()}

    def per_class(self) -> dict[int, float]:
        """Return the mean IoU by category id."""
        return {
            c: _mean(i.iou for i in self.instances if i.category_id == c)
            for c in sorted({i.category_id for i in self.instances})
        }

    def expected_overlap(self, category_ids: Sequence[int]) -> float:
        """Return the expected overlap on a tile that contains instances of these classes.

        The expectation is the mean over the classes of each class's mean overlap on train tiles.
        """
        every = [tile.overlap for tile in self.tiles]
        of = [[t.overlap for t in self.tiles if c in t.category_ids] or every for c in category_ids]
        return max(LEAST_EXPECTED, _mean(_mean(overlaps) for overlaps in of))

    def overlap_limit(self, quantile: float) -> float:
        """Return the quantile of the ratio of actual to expected overlap on the train tiles."""
        shares = [tile.overlap / self.expected_overlap(tile.category_ids) for tile in self.tiles]
        return float(np.quantile(shares, quantile)) if shares else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
