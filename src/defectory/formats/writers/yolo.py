"""YOLO segmentation out: `data.yaml`, `images/train/`, and label files of normalised outlines."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

from defectory.files import write_text
from defectory.formats.outlines import MIN_IOU, Outlines, Ring, rle_to_outlines, rle_to_ring
from defectory.formats.writers.base import ExportSet, Writer, Written, save_images, without_crowds, without_empty
from defectory.rle import Rle, decode

DIGITS = 7
"""Of normalised coordinates: a thousandth of a pixel in images of 10,000 pixels."""


def write_yolo(export: ExportSet, folder: Path) -> Written:
    """Write images and labels; an image that is free of defects has an empty label file.

    YOLO has one outline for an instance. Parts that lie close together are joined to one. Where readers that draw
    outlines would see a line between parts, each part is written as an instance of its own.
    """
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "images/train")
    (folder / "labels" / "train").mkdir(parents=True)
    left_out: Counter[str] = Counter()
    num_lines = num_split = 0
    for image in export.images:
        lines: list[str] = []
        for instance in image.instances:
            found = outlines_of(instance.rle)
            num_split += len(found.rings) > 1
            if found.reason:
                left_out[found.reason] += 1
            lines += [label_line(instance.category_id - 1, ring, image.size_hw) for ring in found.rings]
        num_lines += len(lines)
        write_text(folder / "labels" / "train" / f"{image.stem}.txt", "".join(line + "\n" for line in lines))
    write_text(folder / "data.yaml", _data_yaml(export))
    if num_split:
        remarks = (*remarks, f"{num_split} instances of parts that lie apart are written as one instance for each part")
    remarks = (*remarks, *(f"{count} instances are left out: {reason}" for reason, count in left_out.items()))
    return Written(paths=paths, num_instances=num_lines, remarks=remarks)


def outlines_of(rle: Rle) -> Outlines:
    """Return one outline for a mask, or one for each of its parts where lines between them would show."""
    found = rle_to_outlines(rle)
    if len(found.rings) < 2:
        return found
    one = rle_to_ring(rle)
    return one if one.rings and _drawn_iou(one.rings[0], rle) >= MIN_IOU else found


def label_line(class_index: int, ring: Ring, size_hw: tuple[int, int]) -> str:
    """Return one line of a label file: class, from 0, and corners as shares of width and height."""
    height, width = size_hw
    shares = (ring / np.array([width, height])).reshape(-1)
    return " ".join([str(class_index), *(f"{share:.{DIGITS}f}" for share in shares)])


def _drawn_iou(ring: Ring, rle: Rle) -> float:
    """Return the IoU of a mask with what OpenCV fills, outline included, as Ultralytics does."""
    mask = decode(rle)
    canvas = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(canvas, [ring.astype(np.int32)], (1,))
    drawn = canvas > 0
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _data_yaml(export: ExportSet) -> str:
    # JSON texts are YAML texts, whatever a class is called
    names = "".join(f"  {c.id - 1}: {json.dumps(c.name, ensure_ascii=False)}\n" for c in export.categories)
    return (
        "# written by defectory: images for training alone\n"
        "train: images/train\n"
        "# Ultralytics asks for `val`. These are the training images again: name validation images of your own here.\n"
        "val: images/train\n"
        f"names:\n{names}"
    )


YOLO = Writer(
    name="yolo",
    title="YOLO segmentation",
    content=(
        "images/train/",
        "labels/train/: an outline per line, normalised; empty where an image is free of defects",
        "data.yaml",
    ),
    reader='yolo segment train model=yolo11n-seg.pt data="$PWD/data.yaml"',
    holds_attributes=False,
    write=write_yolo,
)
