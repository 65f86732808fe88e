"""True instances matched with detections, and which detections touch them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from defectory.evaluation.borders import distances_between
from defectory.evaluation.scenes import Region, Scene, overlaps, shared_px

MATCH_IOU = 0.1
"""Minimum IoU at which a detection matches a true instance of its class."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """A true instance beside its detection; the defaults are those of a missed one."""

    category_id: int
    iou: float = 0.0
    dice: float = 0.0
    hausdorff: float = 1.0
    """Hausdorff distance / image diagonal, 0..1."""
    hd95: float = 1.0
    """The 95% quantile of border distances / image diagonal, 0..1."""


def match_instances(scene: Scene, found: Sequence[Region]) -> list[Match]:
    """Match each true instance with the best unused detection of its class, best pairs first.

    Args:
        scene: image with its true instances.
        found: detections that count.

    Returns:
        One match per true instance, in their order.
    """
    ious = pair_ious(scene.true, found)
    partner: dict[int, int] = {}
    used: set[int] = set()
    for _, t, f in sorted(((value, t, f) for (t, f), value in ious.items() if value >= MATCH_IOU), reverse=True):
        if t not in partner and f not in used:
            partner[t] = f
            used.add(f)
    diagonal = float(np.hypot(*scene.record.size_hw))
    matches: list[Match] = []
    for t, region in enumerate(scene.true):
        if t not in partner:
            matches.append(Match(category_id=region.category_id))
            continue
        between, iou = distances_between(region, found[partner[t]]), ious[t, partner[t]]
        matches.append(
            Match(
                category_id=region.category_id,
                iou=iou,
                dice=2 * iou / (1 + iou),
                hausdorff=min(1.0, between.hausdorff_px / diagonal),
                hd95=min(1.0, between.hd95_px / diagonal),
            )
        )
    return matches


def pair_ious(true: Sequence[Region], found: Sequence[Region]) -> dict[tuple[int, int], float]:
    """Return the IoU of every true instance and detection of one class that share a pixel, by their places."""
    ious: dict[tuple[int, int], float] = {}
    for t, f in np.argwhere(overlaps(true, found)).tolist():
        if true[t].category_id == found[f].category_id:
            shared = shared_px(true[t], found[f])
            if shared:
                ious[t, f] = shared / (true[t].area_px + found[f].area_px - shared)
    return ious


def touching_scores(scene: Scene) -> list[float]:
    """Return the score of the strongest detection that touches each true instance; minus infinity if none does.

    A detection touches an instance if they share at least one pixel; its class does not matter.
    """
    near = overlaps(scene.true, scene.found)
    ranked = sorted(range(len(scene.found)), key=lambda place: -scene.found[place].score)
    return [
        next((scene.found[f].score for f in ranked if near[t, f] and shared_px(region, scene.found[f])), float("-inf"))
        for t, region in enumerate(scene.true)
    ]


def without_crowds(scene: Scene, found: Sequence[Region]) -> list[Region]:
    """Return the detections of which less than half lies in a crowd of their class."""
    return [
        region
        for region in found
        if not any(
            2 * shared_px(region, crowd) >= region.area_px
            for crowd in scene.crowds
            if crowd.category_id == region.category_id
        )
    ]
