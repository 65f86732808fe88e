"""labelme out: a JSON file beside each image, polygons grouped to instances."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from defectory.artifacts.annotation import Instance
from defectory.files import write_json
from defectory.formats.outlines import rle_to_outlines
from defectory.formats.writers.base import ExportSet, Writer, Written, save_images, without_crowds, without_empty
from defectory.images.save import encode_png
from defectory.rle import box_of, decode_crop

VERSION = "5.5.0"
"""Of the file format: the first with masks is 5.2."""


def write_labelme(export: ExportSet, folder: Path) -> Written:
    """Write images and a file beside each; polygons of one `group_id` are one instance.

    A mask that no outline gives back is a mask shape.
    """
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "images")
    kept: Counter[str] = Counter()
    for image in export.images:
        shapes: list[dict[str, Any]] = []
        for number, instance in enumerate(image.instances, start=1):
            shapes += _shapes(instance, export.name_of(instance.category_id), number, kept)
        attributes = image.attributes
        content = {
            "version": VERSION,
            "flags": {name: value for name, value in attributes.items() if isinstance(value, bool)},
            "shapes": shapes,
            "imagePath": image.name,
            "imageData": None,
            "imageHeight": image.size_hw[0],
            "imageWidth": image.size_hw[1],
            "scores": {name: value for name, value in attributes.items() if not isinstance(value, bool)},
        }
        write_json(folder / "images" / f"{image.stem}.json", content)
    remarks = (*remarks, *(f"{count} instances are mask shapes: {reason}" for reason, count in kept.items()))
    return Written(paths=paths, num_instances=export.num_instances, remarks=remarks)


def _shapes(instance: Instance, label: str, group: int, kept: Counter[str]) -> list[dict[str, Any]]:
    common = {"label": label, "group_id": group, "description": "", "flags": {}}
    found = rle_to_outlines(instance.rle)
    if found.rings:
        return [{**common, "shape_type": "polygon", "points": ring.tolist(), "mask": None} for ring in found.rings]
    kept[found.reason] += 1
    x0, y0, x1, y1 = box_of(instance.rle)
    crop, _ = decode_crop(instance.rle)
    picture = base64.b64encode(encode_png(crop.astype(np.uint8) * 255)).decode("ascii")
    # both ends belong to a mask's box
    return [{**common, "shape_type": "mask", "points": [[x0, y0], [x1 - 1, y1 - 1]], "mask": picture}]


LABELME = Writer(
    name="labelme",
    title="labelme",
    content=("images/: the images, and a JSON file beside each; its flags have `synthetic`, `scores` the scores",),
    reader="labelme images",
    holds_attributes=True,
    write=write_labelme,
)
