"""Can a classifier tell where something was inserted? AUC of touched against untouched windows; .5: nothing shows.

For every accepted draft, its half without a mask is compared with untouched pool images: at the same place, and at the
places of other drafts. A logistic regression sees features of the embedded encoder and statistics of grain, gradients
and tone around the place; windows of one pool image share a fold. Then only the ring beside labels is looked at, in the
half with its mask and, as a yardstick, beside the real defects of train. Run: `python bench/seams.py PROJECT.toml
[-o synthesis.mode=insert]`, for a project that is curated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectory import Project
from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job
from defectory.geometry import distance_to
from defectory.rle import decode
from defectory.stages.parts.pool import pool_tiles

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
FOLDS, WINDOW_PX, SPLITS = 5, 48, 5
SOLID_PX = 2.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """A window of a frame: touched or not, its label, and the pool image it is of."""

    image: Image
    label: Mask
    group: int
    is_touched: bool


def statistics(image: Image, label: Mask, *, margin_px: float, ring_only: bool) -> list[float]:
    """Measure grain, gradients and tone on the label, in its ring, at the ring's outer edge and beyond."""
    grey = image.astype(np.float32).mean(axis=2)
    laplacian = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    across = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    fine = grey - cv2.GaussianBlur(grey, (0, 0), 1.0)
    coarse = cv2.GaussianBlur(grey, (0, 0), 3.0)
    distance = distance_to(label)
    ring = (distance > SOLID_PX) & (distance < margin_px)
    edge = (distance > margin_px - 2) & (distance < margin_px + 2)
    beyond = (distance > margin_px + 1) & (distance < 2 * margin_px + 4)
    found: list[float] = []
    for part in (ring, edge) if ring_only else (label, ring, edge):
        if not part.any() or not beyond.any():
            found += [0.0] * 6
            continue
        for field in (laplacian, across, fine**2):
            inner, outer = float(field[part].mean()) + 0.1, float(field[beyond].mean()) + 0.1
            found.append(float(np.log(inner / outer)))
        found += [
            float(np.log(laplacian[part].mean() + 0.1)),
            float(coarse[part].mean() - coarse[beyond].mean()),
            float(grey[part].std()),
        ]
    return found


def window(image: Image, label: Mask) -> Image:
    """Cut a window around a label; outside the image its border is repeated."""
    ys, xs = np.nonzero(label)
    y, x = (int((at.min() + at.max()) // 2) for at in (ys, xs))
    half = WINDOW_PX // 2
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), mode="edge")
    return np.ascontiguousarray(padded[y : y + WINDOW_PX, x : x + WINDOW_PX])


def seam_auc(
    places: Sequence[Place], *, margin_px: float, ring_only: bool = False, with_encoder: bool = True, seed: int = 0
) -> dict[str, float]:
    """Return the AUC of touched against untouched windows, with a 95% bootstrap interval over pool images.

    Args:
        places: both kinds.
        margin_px: of insertion.
        ring_only: leave the label itself out.
        with_encoder: use features of the embedded encoder too, not only statistics.
        seed: of folds and bootstrap.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rows = np.array([statistics(p.image, p.label, margin_px=margin_px, ring_only=ring_only) for p in places])
    if with_encoder and not ring_only:
        from defectory.engine.features.encoder import embed_images, load_encoder

        embedded = embed_images(load_encoder()[0], [window(p.image, p.label) for p in places])
        rows = np.concatenate([rows, PCA(min(24, len(places) // 4), random_state=seed).fit_transform(embedded)], axis=1)
    kinds, groups = np.array([int(p.is_touched) for p in places]), np.array([p.group for p in places])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=2000))
    scores = np.zeros((SPLITS, len(places)))
    for number in range(SPLITS):
        folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=seed + number)
        scores[number] = cross_val_predict(classifier, rows, kinds, groups=groups, cv=folds, method="decision_function")
    rng, names = np.random.default_rng([17, seed]), np.unique(groups)
    of_group = [np.flatnonzero(groups == name) for name in names]
    resampled: list[float] = []
    for _ in range(500):
        chosen = np.concatenate([of_group[i] for i in rng.integers(len(names), size=len(names))])
        if 0 < kinds[chosen].mean() < 1:
            resampled.append(float(np.mean([roc_auc_score(kinds[chosen], of[chosen]) for of in scores])))
    low, high = np.quantile(resampled, [0.025, 0.975])
    auc = float(np.mean([roc_auc_score(kinds, of) for of in scores]))
    return {"auc": round(auc, 3), "low": round(float(low), 3), "high": round(float(high), 3), "windows": len(places)}


def halves(project: Project, *, same_places: bool) -> list[Place]:
    """Return the halves without masks, and untouched windows at the same places or at those of other drafts."""
    store, pool, jobs = project.store, pool_tiles(project.store, project.config), accepted_jobs(project)
    groups = sorted({pool.tile(job).image_id for job in jobs})
    left = set(np.random.default_rng(5).permutation(groups)[: len(groups) // 2].tolist())
    found: list[Place] = []
    for job in jobs:
        group, label = pool.tile(job).image_id, label_of(job.instances, pool.tile(job).valid_hw)
        height, width = pool.tile(job).valid_hw
        if same_places or group in left:
            half = store.drafts.without(job)[:height, :width]
            found.append(Place(image=half, label=label, group=group, is_touched=True))
        if same_places or group not in left:
            tile = pool.image(pool.tile(job), None)[:height, :width]
            found.append(Place(image=tile, label=label, group=group, is_touched=False))
    return found


def rings(project: Project, *, real: bool) -> list[Place]:
    """Return drafts or real defects with their labels, and other pool tiles with the same labels."""
    store = project.store
    pool, tileset, tiles = pool_tiles(store, project.config), project.tiles, project.tiles.of("pool")
    if real:
        shown = [
            (store.tiles.image(tile), tile.instances, tile)
            for tile in tileset.of("train")
            if tile.instances and all(i.visible_share == 1 and not i.is_crowd for i in tile.instances)
        ]
    else:
        shown = [(store.drafts.image(job), job.instances, pool.tile(job)) for job in accepted_jobs(project)]
    found: list[Place] = []
    rng = np.random.default_rng(6)
    for image, instances, tile in shown:
        other = tiles[int(rng.integers(len(tiles)))]
        for pixels, of, is_touched in ((image, tile, True), (store.tiles.image(other), other, False)):
            height, width = (min(a, b) for a, b in zip(tile.valid_hw, other.valid_hw, strict=True))
            label = label_of(instances, (height, width))
            found.append(Place(image=pixels[:height, :width], label=label, group=of.image_id, is_touched=is_touched))
    return [place for place in found if place.label.any()]


def accepted_jobs(project: Project) -> list[Job]:
    """Return the jobs of accepted drafts."""
    accepted = {d.job_id for d in project.store.decisions.decisions if d.status == "accepted"}
    return [job for job in project.store.plan.jobs if job.id in accepted]


def label_of(instances: Sequence[Instance], size_hw: tuple[int, int]) -> Mask:
    """Return what instances cover together, bool [h,w]."""
    return np.any([decode(i.rle) for i in instances], axis=0)[: size_hw[0], : size_hw[1]]


def main() -> None:
    """Measure a project, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("-o", "--override", action="append", default=[])
    args = parser.parse_args()
    project = Project.open(args.project, overrides=args.override, environment={})
    margin_px = project.config.synthesis.insert_margin_px
    compared = {
        "half without mask, untouched at other places": (halves(project, same_places=False), False),
        "half without mask, untouched at the same places": (halves(project, same_places=True), False),
        "ring beside labels of drafts": (rings(project, real=False), True),
        "ring beside labels of train": (rings(project, real=True), True),
    }
    for title, (places, ring_only) in compared.items():
        print(json.dumps({"compared": title, **seam_auc(places, margin_px=margin_px, ring_only=ring_only)}), flush=True)


if __name__ == "__main__":
    main()
