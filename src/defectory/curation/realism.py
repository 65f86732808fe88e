"""Realism: the distance of drafts from real tiles in feature space, relative to the distances among real tiles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.engine.features.neighbourhoods import distances, nth_smallest

Features = NDArray[np.float64]
NEIGHBOURS = 3
LIMIT_QUANTILE = 0.99


@dataclass(frozen=True, kw_only=True)
class RealTiles:
    """Features of real tiles, float64 [N,D], scaled to unit standard deviation, and the distances among them."""

    features: Features
    mean: Features
    scale: Features
    floor: NDArray[np.float64]
    """Distance of each tile to its third nearest neighbour from another image."""

    @property
    def limit(self) -> float:
        """Return the distance that nearly all real tiles stay within."""
        return float(np.quantile(self.floor, LIMIT_QUANTILE))

    def distances(self, features: Features) -> NDArray[np.float64]:
        """Return the distance of encoder features [M,D] to the third nearest real tile, float64 [M]."""
        between = distances((features - self.mean) / self.scale, self.features)
        return nth_smallest(between, NEIGHBOURS)


def learn_real_tiles(features: Features, image_ids: NDArray[np.int64]) -> RealTiles | None:
    """Learn the features of real tiles; return None for fewer than eight tiles or five images.

    Args:
        features: float64 [N,D] of the tiles of train and pool.
        image_ids: int64 [N], the image of each tile; distances within an image are ignored, because tiles overlap.
    """
    if len(features) < 8 or len(set(image_ids.tolist())) <= NEIGHBOURS + 1:
        return None
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    standard = (features - mean) / scale
    between = distances(standard, standard)
    between[image_ids[:, None] == image_ids[None]] = np.inf
    return RealTiles(features=standard, mean=mean, scale=scale, floor=nth_smallest(between, NEIGHBOURS))


def farthest_first(features: Features, count: int, *, start: int = 0) -> list[int]:
    """Return `count` rows of features [N,D], each as far as possible from the earlier ones (Gonzalez 1985)."""
    chosen = [start]
    nearest = np.linalg.norm(features - features[start], axis=1)
    while len(chosen) < min(count, len(features)):
        nearest[chosen] = -1.0
        following = int(nearest.argmax())
        chosen.append(following)
        nearest = np.minimum(nearest, np.linalg.norm(features - features[following], axis=1))
    return chosen
