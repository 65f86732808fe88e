"""How well can a Mask R-CNN's grid of mask cells, or the U-Net's regions, show the defects of a data set?

Every true mask is put into the cells of its true box as in training, and drawn back as in prediction. The IoU with the
mask is then the best that a segmenter with this grid can reach, box and cells being right. Thin cracks that fill long
boxes lose most. The U-Net is given the true pixels of all defects instead, and forms regions of them, in which defects
that touch are one.

Run: `python bench/mask_grid.py DATA [DATA ...] [--min-area-px 20]`, with data in any format. Prints rows of a Markdown
table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from defectory.api.data import load_dataset
from defectory.artifacts.dataset import ImageRecord
from defectory.rle import decode_crop
from defectory.segmentation.mask_cells import best_mask_iou
from defectory.segmentation.models.unet import regions

GRIDS = (28, 56, 112)
"""Cells along a side: that of Mask R-CNN, and finer ones."""
LEAST_IOU = 0.5
"""Below it a detection never counts in segm mAP."""


def ious_of(record: ImageRecord) -> Iterator[list[float]]:
    """Yield the best IoU of each defect of an image in every grid, and as a region."""
    masks = [decode_crop(instance.rle) for instance in record.instances if not instance.is_crowd]
    true = np.zeros(record.size_hw, np.float32)
    for mask, (x, y) in masks:
        np.maximum(here := true[y : y + mask.shape[0], x : x + mask.shape[1]], mask, out=here)
    places, count = regions(true)
    areas = np.bincount(places.ravel(), minlength=count + 1)
    for mask, (x, y) in masks:
        shared = np.bincount(places[y : y + mask.shape[0], x : x + mask.shape[1]][mask], minlength=count + 1)
        region = (shared / (areas + mask.sum() - shared))[1:].max(initial=0.0)
        yield [*(best_mask_iou(mask, cells) for cells in GRIDS), float(region)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--min-area-px", type=int, default=0)
    args = parser.parse_args()
    headings = [f"{n} x {n} cells: mean IoU, share from {LEAST_IOU}" for n in GRIDS]
    print("| data | defects | " + " | ".join([*headings, "regions"]) + " |")
    print("|---|---|" + "---|" * (len(GRIDS) + 1))
    with TemporaryDirectory() as work:
        for path in args.data:
            folder = Path(work) / path.parent.name
            images = load_dataset(path, out=folder, min_area_px=args.min_area_px).dataset.images
            found = [ious for record in images for ious in ious_of(record)]
            columns = [np.array(column) for column in zip(*found, strict=True)]
            told = " | ".join(f"{c.mean():.3f}, {(c >= LEAST_IOU).mean():.2f}" for c in columns)
            print(f"| {path.parent.name} | {len(found)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
