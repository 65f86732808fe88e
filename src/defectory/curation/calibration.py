"""Calibration of the difference threshold, once, on rendered procedural pairs with known masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.curation.fidelity import LOCAL_SHARE, drawn_map, iou

Pair = tuple[NDArray[np.uint8], NDArray[np.uint8], list[NDArray[np.bool_]]]


def degrade(
    image: NDArray[np.uint8], *, seed: int, blur_px: float, noise_sigma: float, drift: float
) -> NDArray[np.uint8]:
    """Degrade an image uint8 [H,W,3] as a generator would: add blur, noise and a smooth drift of tone."""
    rng = np.random.default_rng([61, seed])
    height, width = image.shape[:2]
    field = cv2.resize(rng.standard_normal((3, 3)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    noisy = (
        cv2.GaussianBlur(image.astype(np.float32), (0, 0), blur_px)
        + rng.standard_normal(image.shape) * noise_sigma
        + (field * drift)[..., None]
    )
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The fidelities, 0..1, of one choice of threshold and local share on pairs with known masks.

    Attributes:
        true: mean with the true labels.
        true_low: 10% quantile with the true labels.
        thicker: mean with labels dilated by one pixel.
        above_thicker: share of pairs whose true label scores higher than the dilated one.
        shuffled: mean with each pair's label replaced by the next pair's.
    """

    true: float
    true_low: float
    thicker: float
    above_thicker: float
    shuffled: float


def calibrate(pairs: Sequence[Pair], threshold: float, *, local_share: float = LOCAL_SHARE) -> Calibrated:
    """Measure one choice on rendered pairs.

    A good choice gives true labels a high score, shuffled labels a low one, and true labels a higher one than dilated
    ones.

    Args:
        pairs: image with defects, image without, and the exact masks; at least one each.
        threshold: minimum difference in grey levels, as for `drawn_map`.
        local_share: as for `drawn_map`.
    """
    labels = [np.any(masks, axis=0) for _, _, masks in pairs]

    def drawn(pair: Pair, label: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return drawn_map(pair[0], pair[1], label, difference_threshold=threshold, local_share=local_share)

    found = [drawn(pair, label) for pair, label in zip(pairs, labels, strict=True)]
    true = np.array([iou(f, label) for f, label in zip(found, labels, strict=True)])
    grown = [cv2.dilate(label.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for label in labels]
    thicker = np.array([iou(f, label) for f, label in zip(found, grown, strict=True)])
    others = labels[1:] + labels[:1]
    shuffled = [iou(drawn(pair, other), other) for pair, other in zip(pairs, others, strict=True)]
    return Calibrated(
        true=float(true.mean()),
        true_low=float(np.quantile(true, 0.1)),
        thicker=float(thicker.mean()),
        above_thicker=float((true > thicker).mean()),
        shuffled=float(np.mean(shuffled)),
    )
