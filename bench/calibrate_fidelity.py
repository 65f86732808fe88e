"""Fixes curation's difference threshold on procedural pairs: `python bench/calibrate_fidelity.py`."""

from __future__ import annotations

import numpy as np

from defectory.curation.calibration import calibrate, degrade
from defectory.curation.fidelity import drawn_map, iou
from defectory.procedural.world import render_pair

NUM_PAIRS = 300
FIRST_SEED = 3_000_000_000
"""Beyond every seed of the pretraining corpus."""
EXPOSURES = (1.0, 0.6, 0.35)
"""Every pair is scored at each of these: the same scene in less light must score the same."""
THRESHOLDS = (12.0, 15.0, 18.0, 20.0, 22.0, 24.0, 26.0, 28.0, 32.0)


def main() -> None:
    scenes = [render_pair(FIRST_SEED + index) for index in range(NUM_PAIRS)]
    scenes = [(shown, hidden) for shown, hidden in scenes if any(mask.any() for _, mask in shown.instances)]
    totals = dict.fromkeys(THRESHOLDS, 0.0)
    for exposure in EXPOSURES:
        blur = {"blur_px": 0.8, "noise_sigma": 2.0, "drift": 6.0 * exposure}
        pairs = [
            (
                degrade((shown.image * exposure).astype(np.uint8), seed=2 * index, **blur),
                degrade((hidden.image * exposure).astype(np.uint8), seed=2 * index + 1, **blur),
                [mask for _, mask in shown.instances if mask.any()],
            )
            for index, (shown, hidden) in enumerate(scenes)
        ]
        labels = [np.any(masks, axis=0) for _, _, masks in pairs]
        others = labels[1:] + labels[:1]
        for threshold, fidelity in calibrate(pairs, THRESHOLDS).items():
            shuffled = [
                iou(drawn_map(a, b, other, difference_threshold=threshold), other) for (a, b, _), other in zip(pairs, others, strict=True)
            ]
            totals[threshold] += fidelity / len(EXPOSURES)
            print(f"exposure {exposure:.2f}, threshold {threshold:4.1f}: fidelity {fidelity:.3f}, labels shuffled {np.mean(shuffled):.3f}")
    for threshold, fidelity in totals.items():
        print(f"threshold {threshold:4.1f}: fidelity {fidelity:.3f} over all exposures")
    print(f"best: {max(totals, key=lambda t: totals[t])} on {len(scenes)} pairs at {len(EXPOSURES)} exposures")


if __name__ == "__main__":
    main()
