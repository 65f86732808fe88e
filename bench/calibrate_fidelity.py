"""Fixes curation's difference threshold and local share on procedural pairs: `python bench/calibrate_fidelity.py`.

A good measure scores true labels high, shuffled ones low, and true labels above labels that are a pixel thicker.
"""

from __future__ import annotations

import cv2
import numpy as np

from defectory.curation.calibration import degrade
from defectory.curation.fidelity import drawn_map, iou
from defectory.procedural.world import render_pair

NUM_PAIRS = 300
FIRST_SEED = 3_000_000_000
"""Beyond every seed of the pretraining corpus."""
EXPOSURES = (1.0, 0.6, 0.35)
"""Every pair is scored at each of these: the same scene in less light must score the same."""
THRESHOLDS = (16.0, 20.0, 24.0, 28.0)


BLURS_PX = (0.8, 1.3)
LOCAL_SHARES = (0.0, 0.4, 0.5, 0.6, 0.7)


def thicker(mask: np.ndarray) -> np.ndarray:
    return cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0


def main() -> None:
    scenes = [render_pair(FIRST_SEED + index) for index in range(NUM_PAIRS)]
    scenes = [(shown, hidden) for shown, hidden in scenes if any(mask.any() for _, mask in shown.instances)]
    for blur_px in BLURS_PX:
        pairs: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        for exposure in EXPOSURES:
            change = {"blur_px": blur_px, "noise_sigma": 2.0, "drift": 6.0 * exposure}
            for index, (shown, hidden) in enumerate(scenes):
                halves = [
                    degrade((half.image * exposure).astype(np.uint8), seed=2 * index + i, **change)
                    for i, half in enumerate((shown, hidden))
                ]
                pairs.append((halves[0], halves[1], np.any([mask for _, mask in shown.instances if mask.any()], axis=0)))
        others = [label for _, _, label in pairs[1:] + pairs[:1]]
        for local_share in LOCAL_SHARES:
            for threshold in THRESHOLDS:
                settings = {"difference_threshold": threshold, "local_share": local_share}
                drawn = [drawn_map(a, b, label, **settings) for a, b, label in pairs]
                true = np.array([iou(found, label) for found, (_, _, label) in zip(drawn, pairs, strict=True)])
                thick = np.array([iou(found, thicker(label)) for found, (_, _, label) in zip(drawn, pairs, strict=True)])
                shuffled = [iou(drawn_map(a, b, other, **settings), other) for (a, b, _), other in zip(pairs, others, strict=True)]
                print(
                    f"blur {blur_px} px, local share {local_share:.1f}, threshold {threshold:4.1f}: true {true.mean():.3f} "
                    f"(10% quantile {np.quantile(true, 0.1):.3f}), a pixel thicker {thick.mean():.3f}, true above thicker {(true > thick).mean():.3f}, "
                    f"shuffled {np.mean(shuffled):.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
