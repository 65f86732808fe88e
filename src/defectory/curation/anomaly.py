"""Anomaly score: detect defects in the half without a mask.

A defect drawn in both halves cancels in their difference, so fidelity cannot see it. As in PatchCore (Roth et al.
2022), a memory holds patches of defect-free real tiles; here each image's own median is subtracted. A draft differs a
little from real tiles everywhere, while a defect differs from them in one place.
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
"""Width of the border to ignore, in patches; patches there see padding."""
CHUNK = 32
"""Number of images whose distances are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class PatchMemory:
    """A memory of patches of defect-free real tiles, and the score limit learned from other defect-free tiles.

    Patches are float32 [M,C], scaled.
    """

    patches: NDArray[np.float32]
    scale: NDArray[np.float32]
    limit: float

    def scores(self, patches: Patches) -> NDArray[np.float64]:
        """Return the anomaly score of each image, float64 [N], 0 or more, from its encoder patches."""
        return np.array([_peak(one) for one in _maps(patches / self.scale, self.patches)])


def learn_memory(patches: Patches, image_ids: NDArray[np.int64], *, seed: int) -> PatchMemory | None:
    """Learn from defect-free real tiles; return None for fewer than four images.

    Half of the images fill the memory and the other half set the limit, then the roles are swapped.

    Args:
        patches: float32 [N,h,w,C] of the tiles.
        image_ids: int64 [N], the image of each tile; tiles of one image overlap.
        seed: seed for choosing the patches to keep.
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
    """Return each patch's distance to the memory minus its image's median, float32 [N,h,w]."""
    return np.concatenate([_map_chunk(patches[i : i + CHUNK], memory) for i in range(0, len(patches), CHUNK)])


def _map_chunk(patches: Patches, memory: NDArray[np.float32]) -> NDArray[np.float32]:
    flat = patches.reshape(-1, patches.shape[-1])
    square = (flat * flat).sum(axis=1)[:, None] + (memory * memory).sum(axis=1)[None] - 2 * flat @ memory.T
    nearest = np.sqrt(np.maximum(square.min(axis=1), 0.0) / flat.shape[1]).reshape(patches.shape[:3])
    inner = nearest[:, BORDER:-BORDER, BORDER:-BORDER] if min(nearest.shape[1:]) > 2 * BORDER + 1 else nearest
    return (inner - np.median(inner, axis=(1, 2), keepdims=True)).astype(np.float32)


def _peak(distances: NDArray[np.float32]) -> float:
    """Return the maximum after light smoothing, so that a single odd patch does not count."""
    return max(0.0, float(cv2.GaussianBlur(distances, (0, 0), 0.7).max()))
