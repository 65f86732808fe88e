"""Fixes curation's difference threshold and local share on procedural pairs: `python bench/calibrate_fidelity.py`.

A good measure scores true labels high, shuffled ones low, and true labels above labels that are a pixel thicker.
`--classes` tells instead what a perfect generator would score with each class of the demo, by the measure as it is.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from defectory.curation.calibration import Pair, calibrate, degrade
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import score
from defectory.procedural import borescope
from defectory.procedural.world import render_pair

NUM_PAIRS = 300
FIRST_SEED = 3_000_000_000
"""Beyond every seed of the pretraining corpus."""
EXPOSURES = (1.0, 0.6, 0.35)
"""Every pair is scored at each of these: the same scene in less light must score the same."""
THRESHOLDS = (16.0, 20.0, 24.0, 28.0)


BLURS_PX = (0.8, 1.3)
LOCAL_SHARES = (0.0, 0.4, 0.5, 0.6, 0.7)


NUM_SHOTS = 150
FIRST_SHOT, FIRST_SCENE = 900_000, 500
SHOTS_PER_SCENE = 4


def by_class() -> None:
    """Print, by class of the demo, the fidelity of true labels and of labels a pixel thicker on shots rendered with and
    without defects.
    """
    threshold = CurationConfig().difference_threshold
    shots = [
        borescope.render_pair(FIRST_SHOT + i, scene_seed=FIRST_SCENE + i // SHOTS_PER_SCENE) for i in range(NUM_SHOTS)
    ]
    shots = [pair for pair in shots if pair[0].instances]
    for blur_px in (0.0, *BLURS_PX):
        found: dict[str, list[tuple[float, float]]] = {word: [] for word in borescope.CLASSES}
        for index, pair in enumerate(shots):
            halves = [half.image for half in pair]
            if blur_px > 0:
                halves = [
                    degrade(half, seed=2 * index + i, blur_px=blur_px, noise_sigma=2.0, drift=6.0)
                    for i, half in enumerate(halves)
                ]
            masks = [mask for _, mask in pair[0].instances]
            grown = [cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0 for mask in masks]
            true, thicker = (
                score(halves[0], halves[1], of, difference_threshold=threshold).per_instance_iou
                for of in (masks, grown)
            )
            for (word, _), *values in zip(pair[0].instances, true, thicker, strict=True):
                found[word].append((values[0], values[1]))
        told = ", ".join(
            f"{word} {np.mean(of, axis=0)[0]:.3f} ({np.mean(of, axis=0)[1]:.3f})" for word, of in found.items()
        )
        print(f"blur {blur_px} px: true (a pixel thicker): {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", action="store_true", help="The demo's classes, by the measure as it is.")
    if parser.parse_args().classes:
        by_class()
    else:
        by_threshold()


def by_threshold() -> None:
    scenes = [render_pair(FIRST_SEED + index) for index in range(NUM_PAIRS)]
    scenes = [(shown, hidden) for shown, hidden in scenes if any(mask.any() for _, mask in shown.instances)]
    for blur_px in BLURS_PX:
        pairs: list[Pair] = []
        for exposure in EXPOSURES:
            change = {"blur_px": blur_px, "noise_sigma": 2.0, "drift": 6.0 * exposure}
            for index, scene in enumerate(scenes):
                halves = [
                    degrade((half.image * exposure).astype(np.uint8), seed=2 * index + i, **change)
                    for i, half in enumerate(scene)
                ]
                pairs.append((halves[0], halves[1], [mask for _, mask in scene[0].instances if mask.any()]))
        for local_share in LOCAL_SHARES:
            for threshold in THRESHOLDS:
                found = calibrate(pairs, threshold, local_share=local_share)
                print(
                    f"blur {blur_px} px, local share {local_share:.1f}, threshold {threshold:4.1f}: true "
                    f"{found.true:.3f} "
                    f"(10% quantile {found.true_low:.3f}), a pixel thicker {found.thicker:.3f}, true above thicker "
                    f"{found.above_thicker:.3f}, "
                    f"shuffled {found.shuffled:.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
