"""Anomaly: does the half without a mask show a defect all the same? One drawn in both halves cancels in their
difference.

A memory of patches of defect-free real tiles, as in PatchCore (Roth et al. 2022), with an image's own median taken off:
a draft is a little unlike real tiles everywhere, a defect is unlike them in one place.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Patches = NDArray[np.float32]
"""Features of patches, [N,h,w,C]."""
MAX_MEMORY = 4000
MIN_TILES = 4
BORDER = 1
"""Patches at the border see padding."""
CHUNK = 32
"""Images whose distances are held at once."""


@dataclass(frozen=True, kw_only=True)
class PatchMemory:
    """Patches of defect-free real tiles, float32 [M,C], scaled, and the score that other defect-free tiles reach."""

    patches: NDArray[np.float32]
    scale: NDArray[np.float32]
    limit: float

    def scores(self, patches: Patches) -> NDArray[np.float64]:
        """Give the anomaly score, float64 [N], 0 or more, of images' patches as an encoder gives them."""
        return np.array([_peak(one) for one in _maps(patches / self.scale, self.patches)])


def learn_memory(patches: Patches, image_ids: NDArray[np.int64], *, seed: int) -> PatchMemory | None:
    """Learn from defect-free real tiles; None from fewer than four images.

    Half of the images fill the memory, the other half set the limit, and the other way round.

    Args:
        patches: float32 [N,h,w,C] of the tiles.
        image_ids: int64 [N]; tiles of one image overlap.
        seed: of what is kept.
    """
    images = np.unique(image_ids)
    if len(images) < MIN_TILES:
        return None
    rng = np.random.default_rng([63, seed])
    scale = patches.reshape(-1, patches.shape[-1]).std(axis=0) + 1e-6
    scaled = (patches / scale).astype(np.float32)
    first = np.isin(image_ids, rng.permutation(images)[: len(images) // 2])
    peaks: list[float] = []
    for kept in (first, ~first):
        peaks += [_peak(one) for one in _maps(scaled[~kept], _some(scaled[kept], rng))]
    return PatchMemory(
        patches=_some(scaled, rng), scale=scale.astype(np.float32), limit=float(np.quantile(peaks, 0.99))
    )


def _some(patches: Patches, rng: np.random.Generator) -> NDArray[np.float32]:
    flat = patches.reshape(-1, patches.shape[-1])
    return flat[rng.permutation(len(flat))[:MAX_MEMORY]]


def _maps(patches: Patches, memory: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give each patch's distance to the memory less its image's median, float32 [N,h,w]."""
    return np.concatenate([_map_chunk(patches[i : i + CHUNK], memory) for i in range(0, len(patches), CHUNK)])


def _map_chunk(patches: Patches, memory: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = patches.reshape(-1, patches.shape[-1])
    square = (flat * flat).sum(axis=1)[:, None] + (memory * memory).sum(axis=1)[None] - 2 * flat @ memory.T
    nearest = np.sqrt(np.maximum(square.min(axis=1), 0.0) / flat.shape[1]).reshape(patches.shape[:3])
    inner = nearest[:, BORDER:-BORDER, BORDER:-BORDER] if min(nearest.shape[1:]) > 2 * BORDER + 1 else nearest
    return (inner - np.median(inner, axis=(1, 2), keepdims=True)).astype(np.float32)


def _peak(distances: NDArray[np.float32]) -> float:
    """Give the height of the highest place, lightly smoothed: one odd patch is none."""
    return max(0.0, float(cv2.GaussianBlur(distances, (0, 0), 0.7).max()))
