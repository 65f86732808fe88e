"""The difference threshold, calibrated once on rendered procedural pairs where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.curation.fidelity import LOCAL_SHARE, drawn_map, score_map

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.bool_]]]


def degrade(image: NDArray[np.uint8], *, seed: int, blur_px: float, noise_sigma: float, drift: float) -> NDArray[np.uint8]:
    """Give an image uint8 [H,W,3] as a generator would: blurred, with noise of its own and a smooth drift of tone."""
    rng = np.random.default_rng([61, seed])
    height, width = image.shape[:2]
    field = cv2.resize(rng.standard_normal((3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = (
        cv2.GaussianBlur(image.astype(np.float32), (0, 0), blur_px)
        + rng.standard_normal(image.shape) * noise_sigma
        + (field * drift)[..., None]
    )
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def calibrate(pairs: Sequence[Pair], thresholds: Sequence[float], *, local_share: float = LOCAL_SHARE) -> dict[float, float]:
    """Give the mean fidelity of true labels at each candidate threshold (grey levels).

    Args:
        pairs: image with defects, without, and the exact masks.
        thresholds: candidates; the best one is what `difference_threshold` is set to.
        local_share: as for `drawn_map`.
    """
    result: dict[float, float] = {}
    for threshold in thresholds:
        drawn = [drawn_map(a, b, np.any(m, axis=0), difference_threshold=threshold, local_share=local_share) for a, b, m in pairs]
        scores = [score_map(found, masks).iou for found, (_, _, masks) in zip(drawn, pairs, strict=True)]
        result[threshold] = float(np.mean(scores))
    return result
