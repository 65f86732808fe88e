"""Counterfactual fidelity: where the model actually drew a defect, compared with the label.

The same noise is denoised with and without the mask; the difference of the two images shows the mask's effect.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Fidelity
from defectory.geometry import THIN_PX, width_px

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
TOLERANCE_PX = 2
NEAR_PX = 12
STRAY_PX = 4
"""Changes farther from the label than this count as stray."""
SMOOTH_SIGMA_PX = 0.8
MIN_SPECK_PX = 4
MID_GREY = 128.0
MIN_THRESHOLD = 8.0
"""Minimum difference in grey levels that counts as drawn on any surface; smaller differences are noise."""
SURFACE_SIGMA_PX = 8.0
LOCAL_SHARE = 0.6
"""Minimum difference of a drawn pixel, as a share of the mean of the drawn pixels around it.

Without it, the faint edge of a blurred border would count as defect (decision 027).
"""
FAINT_SHARE, FAINT_QUANTILE = 0.4, 0.75
"""Rule for faint defects (decision 032).

The threshold under a label is at most this share of the given quantile of the difference there.
"""
QUIET_LEVEL, QUIET_QUANTILE = 0.3, 0.5
"""Rule for pairs with little noise.

If the given quantile of the difference away from the label is below this many grey levels, the threshold for stray
pixels is lowered, so that a faint second defect counts.
"""
LEAST_FACTOR = 0.5
"""Neither rule lowers a threshold below this factor."""
LOCAL_SIGMA_PX = 5.0
STRENGTH_SIGMA_PX = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """The difference between the two halves of a counterfactual pair, arrays [H,W]."""

    brighter: NDArray[np.float32]
    """How much brighter the half with the mask is, at least 0, in grey levels, drift removed.

    It is the smaller of the difference itself and a smoothed version.
    """
    darker: NDArray[np.float32]
    """How much darker the half with the mask is, likewise."""
    strength: NDArray[np.float32]
    """The unsmoothed difference, in grey levels."""
    surface: NDArray[np.float32]
    """Brightness of the half without a mask, divided by mid grey."""
    label: Mask
    """Union of the masks."""
    outside: Mask
    """Pixels clear of the label, where only drift should differ."""
    noise_level: float
    """Median smoothed difference of these pixels, infinite if there are none.

    The difference is smoothed with its sign, so that noise averages out.
    """

    @property
    def difference(self) -> NDArray[np.float32]:
        """Return the absolute difference of the halves, float32 [H,W], in grey levels."""
        return np.maximum(self.brighter, self.darker)

    def drawn(self, difference_threshold: float, *, local_share: float = LOCAL_SHARE) -> Mask:
        """Return where a defect was drawn, bool [H,W].

        The threshold adapts in three ways. It is proportional to the brightness of the surface, because half the light
        gives half the contrast. It is proportional to the local strength of the defect, because a dark crack and a
        faint crack with equal blur have equal width. And it is lower if the whole label is drawn faintly.

        Args:
            difference_threshold: minimum grey levels on a surface of grey level 128.
            local_share: minimum share of the mean difference of drawn pixels around; 0 turns this rule off.
        """
        under = np.quantile((self.difference / self.surface)[self.label], FAINT_QUANTILE)
        return self._over(
            difference_threshold * float(np.clip(FAINT_SHARE * under / difference_threshold, LEAST_FACTOR, 1.0)),
            local_share,
        )

    def strays(self, difference_threshold: float) -> Mask:
        """Return the stray pixels, drawn clearly away from the label, bool [H,W].

        The more similar the halves are there, the lower the threshold.
        """
        factor = min(max(self.noise_level / QUIET_LEVEL, LEAST_FACTOR), 1.0)
        far = cv2.distanceTransform((~self.label).astype(np.uint8), cv2.DIST_L2, 5) > STRAY_PX
        return self._over(factor * difference_threshold, LOCAL_SHARE, least=factor * MIN_THRESHOLD) & far

    def _over(self, threshold: float, local_share: float, *, least: float = MIN_THRESHOLD) -> Mask:
        difference = self.difference
        drawn = difference > np.maximum(threshold * self.surface, least)
        if local_share > 0:
            strength = cv2.GaussianBlur(self.strength, (0, 0), STRENGTH_SIGMA_PX) * drawn
            share = cv2.GaussianBlur(drawn.astype(np.float32), (0, 0), LOCAL_SIGMA_PX)
            around = cv2.GaussianBlur(strength, (0, 0), LOCAL_SIGMA_PX) / np.maximum(share, 1e-3)
            drawn &= difference > local_share * around
        drawn |= self._seams(drawn)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(drawn.astype(np.uint8), connectivity=8)
        keep = [index for index in range(1, count) if stats[index, cv2.CC_STAT_AREA] >= MIN_SPECK_PX]
        return np.isin(labels, keep)

    def _seams(self, drawn: Mask) -> Mask:
        """Return the pixels between a brighter and a darker part of a drawn defect (decision 042).

        The difference passes through zero there, although the pixels are inside the defect.
        """
        above = self.brighter > self.darker
        beside_brighter, beside_darker = (
            cv2.dilate((drawn & side).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for side in (above, ~above)
        )
        return beside_brighter & beside_darker


def compare(with_mask: Image, without_mask: Image, label: Mask) -> Comparison:
    """Compare the two halves of a counterfactual pair.

    The smooth low-frequency drift is first estimated outside the label and removed.

    Args:
        with_mask: RGB uint8 [H,W,3].
        without_mask: RGB uint8 [H,W,3], same noise, no mask.
        label: union of the masks, not empty.
    """
    signed = with_mask.astype(np.float32) - without_mask.astype(np.float32)
    outside = cv2.dilate(label.astype(np.uint8), np.ones((2 * NEAR_PX + 1, 2 * NEAR_PX + 1), np.uint8)) == 0
    sigma = max(8.0, 0.12 * max(label.shape))
    weight = cv2.GaussianBlur(outside.astype(np.float32), (0, 0), sigma)
    drift = cv2.GaussianBlur(signed * outside[..., None], (0, 0), sigma) / np.maximum(weight, 1e-3)[..., None]
    # drift cannot be estimated where no outside pixel is near
    signed = signed - drift * np.clip(weight / 0.05, 0, 1)[..., None]
    surface = cv2.GaussianBlur(without_mask.astype(np.float32).mean(axis=2), (0, 0), SURFACE_SIGMA_PX) / MID_GREY
    # smooth each sign separately: a bright rim beside a dark core would cancel
    brighter, darker = (_smoothed(np.maximum(way, 0.0)) for way in (signed, -signed))
    return Comparison(
        brighter=brighter,
        darker=darker,
        strength=np.abs(signed).max(axis=2),
        surface=np.maximum(surface, 1 / MID_GREY).astype(np.float32),
        label=label,
        outside=outside,
        noise_level=float(np.quantile(_smoothed(signed)[outside], QUIET_QUANTILE)) if outside.any() else float("inf"),
    )


def _smoothed(difference: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the largest absolute difference over the channels, float32 [H,W,3] to [H,W].

    Smoothing removes pixel noise; taking the minimum with the unsmoothed difference keeps a strong defect from growing
    over its border.
    """
    return np.minimum(
        np.abs(cv2.GaussianBlur(difference, (0, 0), SMOOTH_SIGMA_PX)).max(axis=2), np.abs(difference).max(axis=2)
    )


def drawn_map(
    with_mask: Image, without_mask: Image, label: Mask, *, difference_threshold: float, local_share: float = LOCAL_SHARE
) -> Mask:
    """Return where the two halves of a counterfactual pair differ, bool [H,W]; see `Comparison.drawn`."""
    return compare(with_mask, without_mask, label).drawn(difference_threshold, local_share=local_share)


def score(with_mask: Image, without_mask: Image, masks: Sequence[Mask], *, difference_threshold: float) -> Fidelity:
    """Score one draft.

    Args:
        with_mask: the draft, RGB uint8 [H,W,3].
        without_mask: its half without a mask.
        masks: bool [H,W] per instance, at least one.
        difference_threshold: minimum difference that counts as drawn, in grey levels on a surface of grey level 128.
    """
    label = np.any(masks, axis=0)
    halves = compare(with_mask, without_mask, label)
    return score_map(halves.drawn(difference_threshold), masks, strays=halves.strays(difference_threshold))


def score_map(drawn: Mask, masks: Sequence[Mask], *, strays: Mask) -> Fidelity:
    """Compare a map of drawn pixels, bool [H,W], with the label's masks; `strays` are the pixels away from them."""
    label = np.any(masks, axis=0)
    total = int(drawn.sum())
    per_instance: list[float] = []
    thin: list[float | None] = []
    for mask in masks:
        own = drawn & neighbourhood(mask, masks)
        per_instance.append(iou(own, mask))
        thin.append(f1_with_tolerance(own, mask) if width_px(mask) < THIN_PX else None)
    return Fidelity(
        iou=iou(drawn, label),
        per_instance_iou=tuple(per_instance),
        outside_fraction=float((drawn & ~label).sum() / total) if total else 0.0,
        stray_px=int(strays.sum()),
        f1_2px=tuple(thin),
    )


def iou(first: Mask, second: Mask) -> float:
    """Return the intersection over union; 0 if both masks are empty."""
    union = int((first | second).sum())
    return float((first & second).sum() / union) if union else 0.0


def f1_with_tolerance(drawn: Mask, mask: Mask, tolerance_px: int = TOLERANCE_PX) -> float:
    """Return the F1 of drawn pixels against a mask, with a displacement of up to `tolerance_px` allowed."""
    if not drawn.any() or not mask.any():
        return 0.0
    to_mask = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    to_drawn = cv2.distanceTransform((~drawn).astype(np.uint8), cv2.DIST_L2, 5)
    precision = float((to_mask[drawn] <= tolerance_px).mean())
    recall = float((to_drawn[mask] <= tolerance_px).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def neighbourhood(mask: Mask, masks: Sequence[Mask]) -> Mask:
    """Return the pixels within NEAR_PX of a mask that are nearer to it than to any other, bool [H,W]."""
    own = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    result = own <= NEAR_PX
    for other in masks:
        if other is not mask:
            result &= own <= cv2.distanceTransform((~other).astype(np.uint8), cv2.DIST_L2, 5)
    return result
