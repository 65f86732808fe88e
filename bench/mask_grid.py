"""How well can a Mask R-CNN's grid of mask cells show the defects of a data set, whatever it learns?

Every true mask is put into the cells of its true box as in training, and drawn back as in prediction. The IoU with the
mask is then the best that a segmenter with this grid can reach, box and cells being right. Thin cracks that fill long
boxes lose most.

Run: `python bench/mask_grid.py DATA [DATA ...] [--min-area-px 20]`, with data in any format. Prints rows of a Markdown
table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from defectory.api.data import load_dataset
from defectory.rle import decode_crop
from defectory.segmentation.mask_cells import best_mask_iou

GRIDS = (28, 56, 112)
"""Cells along a side: that of Mask R-CNN, and finer ones."""
LEAST_IOU = 0.5
"""Below it a detection never counts in segm mAP."""


def masks_of(path: Path, work: Path, *, min_area_px: int) -> Iterator[NDArray[np.bool_]]:
    """Read the true masks of a data set, each cropped to its box."""
    for record in load_dataset(path, out=work / path.parent.name, min_area_px=min_area_px).dataset.images:
        for instance in record.instances:
            if not instance.is_crowd:
                yield decode_crop(instance.rle)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", type=Path)
    parser.add_argument("--min-area-px", type=int, default=0)
    args = parser.parse_args()
    print(
        "| data | defects | " + " | ".join(f"{n} x {n} cells: mean IoU, share from {LEAST_IOU}" for n in GRIDS) + " |"
    )
    print("|---|---|" + "---|" * len(GRIDS))
    with TemporaryDirectory() as work:
        for path in args.data:
            masks = masks_of(path, Path(work), min_area_px=args.min_area_px)
            found = [[best_mask_iou(mask, cells) for cells in GRIDS] for mask in masks]
            columns = [np.array(column) for column in zip(*found, strict=True)]
            told = " | ".join(f"{c.mean():.3f}, {(c >= LEAST_IOU).mean():.2f}" for c in columns)
            print(f"| {path.parent.name} | {len(found)} | {told} |", flush=True)


if __name__ == "__main__":
    main()
