"""Fixes curation's difference threshold on procedural pairs: `python bench/calibrate_fidelity.py`."""

from __future__ import annotations

import numpy as np

from defectory.curation.calibration import calibrate, degrade
from defectory.curation.fidelity import drawn_map, iou
from defectory.procedural.world import render_pair

NUM_PAIRS = 300
FIRST_SEED = 3_000_000_000
"""Beyond every seed of the pretraining corpus."""
THRESHOLDS = (4.0, 6.0, 8.0, 10.0, 12.0, 15.0, 18.0, 22.0, 26.0, 32.0, 40.0)


def main() -> None:
    pairs = []
    for index in range(NUM_PAIRS):
        shown, hidden = render_pair(FIRST_SEED + index)
        masks = [mask for _, mask in shown.instances if mask.any()]
        if masks:
            blur = {"blur_px": 0.8, "noise_sigma": 2.0, "drift": 6.0}
            pairs.append((degrade(shown.image, seed=2 * index, **blur), degrade(hidden.image, seed=2 * index + 1, **blur), masks))
    found = calibrate(pairs, THRESHOLDS)
    for threshold, fidelity in found.items():
        labels = [np.any(masks, axis=0) for _, _, masks in pairs]
        other = [
            iou(drawn_map(a, b, labels[(i + 1) % len(labels)], difference_threshold=threshold), labels[(i + 1) % len(labels)])
            for i, (a, b, _) in enumerate(pairs)
        ]
        print(f"threshold {threshold:5.1f}: fidelity {fidelity:.3f}, labels shuffled {np.mean(other):.3f}")
    print(f"best: {max(found, key=lambda t: found[t])} on {len(pairs)} pairs")


if __name__ == "__main__":
    main()
