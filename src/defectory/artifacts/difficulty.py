"""What segmenters find hard: how well each train instance and each train tile is drawn by one that has not seen it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from defectory.artifacts.value import Value

LEAST_EXPECTED = 0.05
"""Segmenters that find next to nothing of train tell nothing of drafts: under this much overlap theirs is no measure.
"""


class InstanceDifficulty(Value):
    """One train instance, by its image and its number there, and the IoU of the best detection of its class; 0 where it
    was missed.
    """

    image_id: int
    number: int
    category_id: int
    iou: float


class TileOverlap(Value):
    """One train tile with defects: the IoU of all that is called a defect on it, whatever class, with all that is
    labelled.
    """

    tile_id: str
    category_ids: tuple[int, ...]
    overlap: float


class Difficulty(Value):
    """All train instances and tiles, each judged by the segmenter that was trained on the other folds; validation and
    test take no part.
    """

    split_digest: str
    num_folds: int
    instances: tuple[InstanceDifficulty, ...]
    tiles: tuple[TileOverlap, ...] = ()

    def weights(self, *, floor: float) -> dict[tuple[int, int], float]:
        """Give how often each instance should serve, by (image id, number): its missing IoU above a floor, 1 on the
        mean.
        """
        raw = {(i.image_id, i.number): floor + 1.0 - i.iou for i in self.instances}
        mean = sum(raw.values()) / max(1, len(raw))
        return {key: value / mean for key, value in raw.items()}

    def per_class(self) -> dict[int, float]:
        """Give the mean IoU by category id."""
        return {
            c: _mean(i.iou for i in self.instances if i.category_id == c)
            for c in sorted({i.category_id for i in self.instances})
        }

    def expected_overlap(self, category_ids: Sequence[int]) -> float:
        """Give the overlap to expect on a tile with instances of these classes: the mean over them of the mean of each
        class's train tiles.
        """
        every = [tile.overlap for tile in self.tiles]
        of = [[t.overlap for t in self.tiles if c in t.category_ids] or every for c in category_ids]
        return max(LEAST_EXPECTED, _mean(_mean(overlaps) for overlaps in of))

    def overlap_limit(self, quantile: float) -> float:
        """Give the share of what is to be expected that all but this share of the train tiles reach."""
        shares = [tile.overlap / self.expected_overlap(tile.category_ids) for tile in self.tiles]
        return float(np.quantile(shares, quantile)) if shares else 0.0


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
