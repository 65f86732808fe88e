"""Fixes curation's difference threshold and local share on procedural pairs: `python bench/calibrate_fidelity.py`.

A good measure scores true labels high, shuffled ones low, and true labels above labels that are a pixel thicker.
"""

from __future__ import annotations

import numpy as np

from defectory.curation.calibration import Pair, calibrate, degrade
from defectory.procedural.world import render_pair

NUM_PAIRS = 300
FIRST_SEED = 3_000_000_000
"""Beyond every seed of the pretraining corpus."""
EXPOSURES = (1.0, 0.6, 0.35)
"""Every pair is scored at each of these: the same scene in less light must score the same."""
THRESHOLDS = (16.0, 20.0, 24.0, 28.0)


BLURS_PX = (0.8, 1.3)
LOCAL_SHARES = (0.0, 0.4, 0.5, 0.6, 0.7)


def main() -> None:
    scenes = [render_pair(FIRST_SEED + index) for index in range(NUM_PAIRS)]
    scenes = [(shown, hidden) for shown, hidden in scenes if any(mask.any() for _, mask in shown.instances)]
    for blur_px in BLURS_PX:
        pairs: list[Pair] = []
        for exposure in EXPOSURES:
            change = {"blur_px": blur_px, "noise_sigma": 2.0, "drift": 6.0 * exposure}
            for index, scene in enumerate(scenes):
                halves = [degrade((half.image * exposure).astype(np.uint8), seed=2 * index + i, **change) for i, half in enumerate(scene)]
                pairs.append((halves[0], halves[1], [mask for _, mask in scene[0].instances if mask.any()]))
        for local_share in LOCAL_SHARES:
            for threshold in THRESHOLDS:
                found = calibrate(pairs, threshold, local_share=local_share)
                print(
                    f"blur {blur_px} px, local share {local_share:.1f}, threshold {threshold:4.1f}: true {found.true:.3f} "
                    f"(10% quantile {found.true_low:.3f}), a pixel thicker {found.thicker:.3f}, true above thicker {found.above_thicker:.3f}, "
                    f"shuffled {found.shuffled:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
