"""The verdict: use synthetic data, do not use it, or not enough evidence."""

from __future__ import annotations

from typing import Any

import numpy as np

SCORE_KEYS = ("segm_map", "bbox_map", "ap50", "iou", "iou_matched", "hausdorff")
"""Scores of a segmenter that are averaged over seeds."""


def verdict(arms: dict[str, Any]) -> dict[str, Any]:
    """Judge synthetic-then-real against real by segm mAP: use it, do not use it, or not enough evidence.

    Three seeds or more are needed; the mean paired difference must exceed twice its standard error.
    """
    if "real" not in arms or "synthetic_then_real" not in arms:
        return {
            "outcome": "not enough evidence",
            "sentence": "Not enough evidence: the arms real and synthetic_then_real were not both trained.",
        }
    real = [s["segm_map"] for s in arms["real"]["per_seed"]]
    both = [s["segm_map"] for s in arms["synthetic_then_real"]["per_seed"]]
    count = min(len(real), len(both))
    gains = np.array(both[:count]) - np.array(real[:count])
    gain = float(gains.mean())
    text = (
        f"segm mAP {np.mean(real):.3f} with real images alone, {np.mean(both):.3f} with synthetic then real "
        f"({gain:+.3f}, {count} seed{'s' if count > 1 else ''})"
    )
    if count < 3:
        return {
            "outcome": "not enough evidence",
            "gain": gain,
            "sentence": f"Not enough evidence from {count} seed{'s' if count > 1 else ''}: {text}.",
        }
    error = float(gains.std(ddof=1) / np.sqrt(count))
    if gain > 2 * error and gain > 0:
        return {
            "outcome": "use it",
            "gain": gain,
            "standard_error": error,
            "sentence": f"Use it: {text}, standard error {error:.3f}.",
        }
    if gain < 0:
        return {
            "outcome": "do not use it",
            "gain": gain,
            "standard_error": error,
            "sentence": f"Do not use it: {text}, standard error {error:.3f}.",
        }
    return {
        "outcome": "not enough evidence",
        "gain": gain,
        "standard_error": error,
        "sentence": f"Not enough evidence: {text}, standard error {error:.3f}.",
    }
