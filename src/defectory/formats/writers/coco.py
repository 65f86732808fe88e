"""COCO instances out: masks as run lengths, or as polygons that readers fill to the same masks."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from defectory.artifacts.annotation import Instance
from defectory.files import write_text
from defectory.formats.outlines import rle_to_outlines
from defectory.formats.writers.base import (
    ExportImage,
    ExportSet,
    Writer,
    Written,
    column_runs,
    save_images,
    without_empty,
)
from defectory.rle import area_px, box_of


def write_coco(
    export: ExportSet, folder: Path, *, polygons: bool, images: str = "images", labels: str = "annotations.json"
) -> Written:
    """Write images and one COCO file; ids are dense from 1, and names relative to the folder of images.

    Run lengths are lists of numbers, which more readers take than the compressed text.

    Args:
        export: what to write.
        folder: where.
        polygons: outlines in place of run lengths, where an outline gives the mask.
        images: folder of the images.
        labels: name of the COCO file.
    """
    export = without_empty(export)
    paths = save_images(export, folder, images)
    kept: Counter[str] = Counter()
    annotations: list[dict[str, Any]] = []
    for number, image in enumerate(export.images, start=1):
        for instance in image.instances:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    **_annotation(image, instance, polygons=polygons, kept=kept),
                }
            )
    content = {
        "info": {"description": "written by defectory"},
        "licenses": [],
        "images": [_image(number, image) for number, image in enumerate(export.images, start=1)],
        "annotations": annotations,
        "categories": [{"id": c.id, "name": c.name, "supercategory": "defect"} for c in export.categories],
    }
    write_text(folder / labels, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    remarks = tuple(f"{count} instances stay run lengths: {reason}" for reason, count in kept.items())
    return Written(paths=paths, num_instances=len(annotations), remarks=remarks)


def _image(number: int, image: ExportImage) -> dict[str, Any]:
    height, width = image.size_hw
    named = {"id": number, "file_name": image.name, "height": height, "width": width}
    return named | image.attributes | image.origin


def _annotation(image: ExportImage, instance: Instance, *, polygons: bool, kept: Counter[str]) -> dict[str, Any]:
    x0, y0, x1, y1 = box_of(instance.rle)
    segmentation: object = {"size": list(instance.rle.size_hw), "counts": column_runs(instance)}
    if polygons and not instance.is_crowd:
        found = rle_to_outlines(instance.rle)
        if found.rings:
            segmentation = found.flat
        else:
            kept[found.reason] += 1
    return {
        "category_id": instance.category_id,
        "segmentation": segmentation,
        "area": area_px(instance.rle),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "iscrowd": int(instance.is_crowd),
        "synthetic": image.is_synthetic,
    }


COCO = Writer(
    name="coco",
    title="COCO instances, masks as run lengths",
    content=(
        "images/",
        "annotations.json: COCO instances; images and annotations have `synthetic`, images have scores",
    ),
    reader="python -c \"from pycocotools.coco import COCO; coco = COCO('annotations.json')\"",
    holds_attributes=True,
    write=partial(write_coco, polygons=False),
)
COCO_POLYGONS = Writer(
    name="coco-polygons",
    title="COCO instances, masks as polygons",
    content=(
        "images/",
        "annotations.json: COCO instances; images and annotations have `synthetic`, images have scores",
    ),
    reader="python -c \"from pycocotools.coco import COCO; coco = COCO('annotations.json')\"",
    holds_attributes=True,
    write=partial(write_coco, polygons=True),
)
