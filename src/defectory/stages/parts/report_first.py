"""What the report says first: which segmenter to use, what it finds, and what synthetic data gained."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from defectory.artifacts.primary_metric import METRIC_NAMES, MetricChoice
from defectory.artifacts.segmenter_card import SegmenterCard
from defectory.config.command import CommandLine
from defectory.runs import layout

SMALLEST_CHANGE = 0.002
"""Changes of a mean score below this are not spoken of."""
HOW_SURE = {
    "use it": "The interval is above zero, so that this is more than chance.",
    "do not use it": "The interval is below zero, so that this is more than chance.",
    "no worse and no better": "The whole interval is too small to matter.",
    "not enough evidence": "The interval holds zero, so that this may be chance.",
}


def what_to_use(card: SegmenterCard | None, scores: Mapping[str, Any], command: CommandLine) -> list[str]:
    """Return sentences for a reader who wants to know what to do; code stands between backticks.

    Args:
        card: of the best segmenter; None if there is none.
        scores: of the stage `evaluate`.
        command: how the project was opened.
    """
    return [*_segmenter(card, command), *_gain(scores), *_overlap(scores)]


def _segmenter(card: SegmenterCard | None, command: CommandLine) -> list[str]:
    if card is None:
        return ["There is no segmenter to use: none was trained."]
    place, arm = f"`{layout.BEST_SEGMENTER}` in the run folder", f"arm {card.arm_words}, seed {card.seed}"
    if card.finds_nothing:
        lost = f"segm mAP {card.scores['segm_map']:.3f} on test"
        return [f"Do not use a segmenter of this run: the best one ({arm}) finds nothing, {lost}."]
    # a name that begins with a hyphen would be read as an option
    file = f"./{command.file}" if command.file.startswith("-") else command.file
    plant = card.plant_words.replace(", false alarms", ", with false alarms")
    return [
        f"Use the segmenter {place}. On test images it {plant}.",
        f"On new images: `{shlex.join(['defectory', 'predict', 'IMAGES', '--segmenter', file])}`",
        f"It is {arm}. {card.why} Its score threshold is {card.score_threshold:.2f}, "
        f"{'chosen on validation' if card.is_threshold_chosen else 'as set'}.",
    ]


def _gain(scores: Mapping[str, Any]) -> list[str]:
    verdict, why = scores["verdict"], MetricChoice.model_validate(scores["primary_metric"]).why
    gain, interval = verdict.get("gain"), verdict.get("interval")
    reference, candidate = verdict.get("reference"), verdict.get("candidate")
    if gain is None or reference is None or candidate is None:
        return []
    told = (
        f"Synthetic data (arm {_words(candidate)}) changed {METRIC_NAMES[verdict['metric']]} by {gain:+.3f} over the "
        f"best arm without ({_words(reference)})"
    )
    if interval is None:
        unsure = f"{told}. How much of it is chance, {_count(verdict.get('num_seeds', 1))} cannot tell."
        return [unsure, *([why] if why else [])]
    low, high = interval
    sure = f"{told}, 95% interval {low:+.3f} to {high:+.3f}. {HOW_SURE[verdict['outcome']]}"
    return [sure, *([why] if why else [])]


def _overlap(scores: Mapping[str, Any]) -> list[str]:
    """Explain why IoU rises while mAP falls, if they do."""
    arms, verdict = scores["arms"], scores["verdict"]
    pair = [arms.get(verdict.get(side)) for side in ("reference", "candidate")]
    if None in pair:
        return []
    before, after = pair
    changes = {key: after[key] - before[key] for key in ("segm_map", "iou_matched")}
    if changes["segm_map"] > -SMALLEST_CHANGE or changes["iou_matched"] < SMALLEST_CHANGE:
        return []
    return [
        f"With synthetic data IoU rises ({changes['iou_matched']:+.3f}) while segm mAP falls "
        f"({changes['segm_map']:+.3f}): IoU looks only at the outlines of defects that were found at the score "
        "threshold, mAP also counts missed defects, false detections and the order of scores."
    ]


def _count(seeds: int) -> str:
    return f"{seeds} seed{'s' if seeds != 1 else ''}"


def _words(arm: str) -> str:
    return arm.replace("_", " ")
