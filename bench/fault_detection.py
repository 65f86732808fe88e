"""Does curation tell faithful drafts from faulty ones? AUC for four faults: missing, shifted, too thick, a second
defect.

The first three are judged by fidelity, the last by what is drawn away from the label.

On rendered procedural pairs, where the truth is exact, and on the unfiltered drafts of a run, whose labels or pixels
are edited.

Run: `python bench/fault_detection.py [--run RUN_FOLDER] [--pairs 300]`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from defectory.artifacts.plan import Plan
from defectory.curation.calibration import degrade
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import score
from defectory.geometry import width_px
from defectory.images.load import load_rgb
from defectory.procedural import borescope
from defectory.procedural.world import render_pair
from defectory.rle import decode

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Pair = tuple[Image, Image, list[Mask]]
FIRST_SEED = 4_000_000_000
"""Beyond every seed of the pretraining corpus and of the threshold's calibration."""
FIRST_SCENE = 500_000
FAULTS = ("missing", "shifted by its width", "twice as thick", "a second defect")
CLEAR_PX = 12
MIN_AREA_PX = 12


def auc(good: Sequence[float], bad: Sequence[float]) -> float:
    """Give the chance that a good value is above a bad one, ties counting half."""
    ranks = rankdata([*good, *bad])
    return float((ranks[: len(good)].sum() - len(good) * (len(good) + 1) / 2) / (len(good) * len(bad)))


def faulty(pair: Pair, other: Pair, fault: str, rng: np.random.Generator) -> Pair | None:
    """Give a pair with a fault; None where it cannot have it."""
    image, without, masks = pair
    label = np.any(masks, axis=0)
    if fault == "missing":
        return without, without, masks
    if fault == "shifted by its width":
        angle = rng.uniform(0, 2 * np.pi)
        moved = [_moved(mask, max(2.0, width_px(mask)), angle) for mask in masks]
        return (image, without, moved) if all(mask.any() for mask in moved) else None
    if fault == "twice as thick":
        return image, without, [_grown(mask, max(1, round(width_px(mask) / 2))) for mask in masks]
    reach = _grown(label, CLEAR_PX)
    found = [mask for mask in other[2] if not (mask & reach).any()]
    if not found:
        return None
    added = image.astype(np.int16)
    near = _grown(found[0], 2)
    added[near] += (other[0].astype(np.int16) - other[1].astype(np.int16))[near]
    return np.clip(added, 0, 255).astype(np.uint8), without, masks


def _moved(mask: Mask, by: float, angle: float) -> Mask:
    shift = np.array([[1, 0, by * np.cos(angle)], [0, 1, by * np.sin(angle)]], np.float32)
    return cv2.warpAffine(mask.astype(np.uint8), shift, mask.shape[::-1], flags=cv2.INTER_NEAREST) > 0


def _grown(mask: Mask, by: int) -> Mask:
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * by + 1, 2 * by + 1))
    return cv2.dilate(mask.astype(np.uint8), kernel) > 0


def rendered(count: int, *, world: str, blur_px: float | None) -> list[Pair]:
    """Render pairs of the pretraining world or of the borescope; with a blur, degraded as a generator would draw
    them.
    """
    pairs: list[Pair] = []
    index = 0
    while len(pairs) < count:
        scene = (
            render_pair(FIRST_SEED + index)
            if world == "pretraining"
            else borescope.render_pair(index, scene_seed=FIRST_SCENE + index)
        )
        masks = [mask for _, mask in scene[0].instances if mask.sum() >= MIN_AREA_PX]
        if masks and len(masks) == len(scene[0].instances):
            halves = [half.image for half in scene]
            if blur_px is not None:
                halves = [
                    degrade(half, seed=2 * index + i, blur_px=blur_px, noise_sigma=2.0, drift=6.0)
                    for i, half in enumerate(halves)
                ]
            pairs.append((halves[0], halves[1], masks))
        index += 1
    return pairs


def drafts(run: Path) -> list[Pair]:
    """Read the drafts of a run, before curation."""
    plan = Plan.load(run / "plan" / "plan.json")
    images, without = (run / "drafts" / name for name in ("images", "without"))
    return [
        (
            load_rgb(images / f"{job.id}.png"),
            load_rgb(without / f"{job.id}.png"),
            [decode(i.rle) for i in job.instances],
        )
        for job in plan.jobs
    ]


def report(title: str, pairs: list[Pair]) -> None:
    """Print the AUC of each fault."""
    config = CurationConfig()

    def value(pair: Pair, fault: str) -> float:
        found = score(pair[0], pair[1], pair[2], difference_threshold=config.difference_threshold)
        return -float(found.stray_px) if fault == "a second defect" else found.iou

    for fault in FAULTS:
        good = [value(pair, fault) for pair in pairs]
        rng = np.random.default_rng([7, FAULTS.index(fault)])
        made = [faulty(pair, pairs[(n + 1) % len(pairs)], fault, rng) for n, pair in enumerate(pairs)]
        bad = [value(pair, fault) for pair in made if pair is not None]
        print(
            f"{title}, {fault}: AUC {auc(good, bad):.3f} ({len(good)} good, median {np.median(good):.2f}; {len(bad)} "
            f"bad, median {np.median(bad):.2f})",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--pairs", type=int, default=300)
    args = parser.parse_args()
    for world in ("borescope", "pretraining"):
        for blur_px in (None, 0.8, 1.3):
            how = "as rendered" if blur_px is None else f"noise, drift and blur of {blur_px} px"
            report(f"{world}, {how}", rendered(args.pairs, world=world, blur_px=blur_px))
    if args.run is not None:
        report(f"drafts of {args.run.name}", drafts(args.run))


if __name__ == "__main__":
    main()
