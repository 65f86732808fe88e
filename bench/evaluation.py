"""Seconds and peak memory of scoring a segmenter on many images, on one core.

Makes random true instances and detections (discs and thin lines; most detections are shifted instances, some are
wrong, one image of five is defect-free) and scores them with `score_segmenter`. Run:

    python bench/evaluation.py --images 5000 --instances 20

Prints the seconds of the whole evaluation, those of masks' average precision alone, and the peak memory.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.detection import segm_map
from defectory.evaluation.mask_metrics import score_segmenter
from defectory.rle import Rle, encode_crop

CATEGORIES = tuple(Category(id=i, name=name) for i, name in enumerate(("crack", "pit", "stain"), start=1))
SIZE_HW = (512, 640)


def shape(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return a disc of 8 to 80 px or a sloping line of 40 to 200 px that is 2 to 4 px thick, cut to its box."""
    if rng.random() < 0.6:
        height, width = (int(v) for v in np.exp(rng.uniform(np.log(8), np.log(80), 2)))
        rows, columns = np.mgrid[:height, :width]
        return ((rows + 0.5) / height - 0.5) ** 2 + ((columns + 0.5) / width - 0.5) ** 2 <= 0.25
    width, thick = int(rng.integers(40, 200)), int(rng.integers(2, 5))
    slope = rng.uniform(0, 0.8)
    mask = np.zeros((int(slope * width) + thick, width), bool)
    for column in range(width):
        mask[int(slope * column) : int(slope * column) + thick, column] = True
    return mask


def placed(crop: NDArray[np.bool_], corner_xy: tuple[int, int]) -> tuple[Rle, list[int]]:
    """Return a crop as RLE at the nearest place where it fits into the image, and its box (x, y, w, h)."""
    height, width = crop.shape
    x = int(np.clip(corner_xy[0], 0, SIZE_HW[1] - width))
    y = int(np.clip(corner_xy[1], 0, SIZE_HW[0] - height))
    return encode_crop(crop, (x, y), SIZE_HW), [x, y, width, height]


def make(num_images: int, num_instances: int) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
    """Return true records and COCO results."""
    rng = np.random.default_rng(0)
    shapes = [shape(rng) for _ in range(400)]
    records: list[ImageRecord] = []
    results: list[dict[str, Any]] = []

    def detect(image_id: int, category_id: int, score: float, crop: NDArray[np.bool_], xy: tuple[int, int]) -> None:
        rle, box = placed(crop, xy)
        segmentation = {"size": list(SIZE_HW), "counts": rle.counts}
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "score": score,
                "segmentation": segmentation,
                "bbox": box,
            }
        )

    for image_id in range(1, num_images + 1):
        instances: list[Instance] = []
        for _ in range(num_instances if image_id % 5 else 0):
            crop, category_id = shapes[rng.integers(len(shapes))], int(rng.integers(1, 4))
            xy = (int(rng.integers(SIZE_HW[1])), int(rng.integers(SIZE_HW[0])))
            instances.append(Instance(category_id=category_id, rle=placed(crop, xy)[0]))
            if rng.random() < 0.85:
                near = (xy[0] + int(rng.integers(-3, 4)), xy[1] + int(rng.integers(-3, 4)))
                detect(image_id, category_id, float(rng.uniform(0.2, 1)), crop, near)
        for _ in range(num_instances // 4):
            xy = (int(rng.integers(SIZE_HW[1])), int(rng.integers(SIZE_HW[0])))
            detect(image_id, int(rng.integers(1, 4)), float(rng.uniform(0.05, 0.6)), shapes[rng.integers(400)], xy)
        records.append(
            ImageRecord(
                id=image_id,
                file_name=f"{image_id}.png",
                size_hw=SIZE_HW,
                sha256="",
                group="",
                instances=tuple(instances),
            )
        )
    return records, results


def main() -> None:
    """Make the scenes, score them and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--instances", type=int, default=20)
    options = parser.parse_args()
    records, results = make(options.images, options.instances)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.3)
    print(
        f"{options.images} images, {scores.num_instances} instances, {scores.num_predictions} detections: "
        f"{time.perf_counter() - began:.1f} s, {time.process_time() - cpu:.1f} s of processor time"
    )
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory: {before / 1e6:.2f} GB before, {after / 1e6:.2f} GB after")
    began = time.perf_counter()
    alone = segm_map(records, CATEGORIES, results)
    print(f"segm mAP alone: {time.perf_counter() - began:.1f} s ({alone:.3f})")


if __name__ == "__main__":
    main()
