"""Are masks of the sources new, plausible, and of the size and branching that is asked for?

New: highest IoU with a training mask of the run, laid on one canvas, mirrored and turned by quarters; beside it the
    same of real masks
that the run did not train on. Plausible: Kolmogorov-Smirnov distance of six figures to those real masks, mean over
figures and classes;
beside it that of the training masks themselves. Control: rank correlation of area with the quantile asked for, and
branches measured beside branches asked for, of the classes that branch in train.

Run: `python bench/new_masks.py PROJECT.toml --run RUN_FOLDER [--count 40]`; stage learn-masks must have been run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp, spearmanr

from defectory import Project
from defectory.geometry import width_px
from defectory.masks.canvas import on_canvas
from defectory.masks.diffusion import MAX_COPY_IOU, branches_of
from defectory.masks.perturb import cropped
from defectory.masks.shapes import LineShape, measure
from defectory.masks.sources import MaskSources
from defectory.rle import decode
from defectory.stages.parts.mask_supply import bank_from_train, trained_mask_model
from projects import open_in

Mask = NDArray[np.bool_]
SOURCES = ("bank", "statistical", "diffusion")
MIN_HELD_OUT = 8
BRANCHING_SHARE = 0.2
"""Classes of which fewer training masks branch are not asked for branches."""
BRANCHES = (0, 1, 2, 3)


def figures(mask: Mask) -> list[float]:
    """Give log area, fullness, width, longest side, branches and direction change or roughness of a mask, cropped to
    its box.
    """
    shape, side = measure(mask), max(mask.shape)
    irregular = shape.wander if isinstance(shape, LineShape) else shape.roughness
    return [
        float(np.log(mask.sum())),
        float(mask.sum()) / side**2,
        width_px(mask),
        float(side),
        branches_of(mask),
        irregular,
    ]


def nearest(masks: Sequence[Mask], own: Sequence[Mask]) -> NDArray[np.float64]:
    """Give each mask's highest IoU with any of `own`, on the canvas, mirrored and turned by quarters."""
    canvases = [on_canvas(mask) > 0 for mask in own]
    turned = np.stack([np.rot90(c, q)[:, ::m].ravel() for c in canvases for q in range(4) for m in (1, -1)])
    flat = [(on_canvas(mask) > 0).ravel() for mask in masks]
    return np.array([((turned & f).sum(axis=1) / np.maximum((turned | f).sum(axis=1), 1)).max() for f in flat])


def distance(masks: Sequence[Mask], real: Sequence[Mask]) -> float:
    """Give the mean Kolmogorov-Smirnov distance of the figures."""
    a, b = np.array([figures(m) for m in masks]), np.array([figures(m) for m in real])
    return float(np.mean([ks_2samp(a[:, i], b[:, i])[0] for i in range(a.shape[1])]))


def main() -> None:
    """Measure every source of a run and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--count", type=int, default=40, help="Masks of each class and source.")
    args = parser.parse_args()
    torch.set_num_threads(1)

    def opened(source: str, **masks: object) -> Project:
        shares = [f"masks.sources.{name}={int(name == source)}" for name in SOURCES]
        own = [f"masks.{name}={json.dumps(value)}" for name, value in masks.items()]
        return open_in(args.run, args.project, [*shares, *own])

    project = opened("bank")
    bank, tileset, split = bank_from_train(project.store, project.config), project.tiles, project.split
    names = {category.id: category.name for category in tileset.categories}
    train = {k: [cropped(decode(e.mask.rle)) for e in bank.entries if e.category_id == k] for k in names}
    scale = tileset.tiling.scale
    unseen: dict[int, list[Mask]] = {k: [] for k in names}
    for image_id in (*split.val, *split.test):
        for instance in project.dataset.image(image_id).instances:
            unseen[instance.category_id].append(_scaled(cropped(decode(instance.rle)), scale))
    classes = [k for k in names if train[k] and len(unseen[k]) >= MIN_HELD_OUT]

    def drawn(of: Project, category_id: int, count: int) -> list[Mask]:
        model = trained_mask_model(of.store, of.config, bank)
        sources = MaskSources(bank, (), config=of.config.masks, names=names, diffusion=model)
        rng = np.random.default_rng([5, category_id])
        masks = [sources.draw(category_id, rng) for _ in range(count)]
        return [found[0] for found in masks if found is not None]

    def row(masks: dict[int, list[Mask]]) -> dict[str, float]:
        near = np.concatenate([nearest(masks[k], train[k]) for k in classes])
        return {
            "nearest_iou_median": float(np.median(near)),
            "copies": float((near > MAX_COPY_IOU).mean()),
            "distance": float(np.mean([distance(masks[k], unseen[k]) for k in classes])),
        }

    result: dict[str, object] = {
        "classes": [names[k] for k in classes],
        "unseen real": {k: v for k, v in row(unseen).items() if k != "distance"},
    }
    result["training masks"] = {"distance": float(np.mean([distance(train[k], unseen[k]) for k in classes]))}
    for source in SOURCES:
        result[source] = row({k: drawn(opened(source), k, args.count) for k in classes})
        print(source, result[source], flush=True)
    forked = [k for k in classes if np.mean([branches_of(m) > 0 for m in train[k]]) >= BRANCHING_SHARE]
    for source in ("statistical", "diffusion"):
        quantiles = np.linspace(0, 0.9, 10)
        areas = {
            k: [float(drawn(opened(source, severity=[q, q + 0.1]), k, 1)[0].sum()) for q in quantiles] for k in classes
        }
        control = {"size_rank_correlation": float(np.mean([spearmanr(quantiles, areas[k])[0] for k in classes]))}
        for count in BRANCHES:
            asked = [
                branches_of(m) for k in forked for m in drawn(opened(source, num_branches=count), k, args.count // 2)
            ]
            control[f"branches, {count} asked for"] = float(np.mean(asked)) if asked else float("nan")
        result[f"{source}, control"] = control
    print(json.dumps(result, indent=1))


def _scaled(mask: Mask, scale: float) -> Mask:
    from defectory.geometry import resize_mask

    if scale == 1:
        return mask
    size_hw = (max(1, round(mask.shape[0] * scale)), max(1, round(mask.shape[1] * scale)))
    resized = resize_mask(np.ascontiguousarray(mask), size_hw)
    return cropped(resized) if resized.any() else np.ones((1, 1), bool)


if __name__ == "__main__":
    main()
