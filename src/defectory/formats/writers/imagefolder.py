"""The image folder of Hugging Face `datasets`: `train/` with `metadata.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from defectory.files import write_text
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


def write_imagefolder(export: ExportSet, folder: Path) -> Written:
    """Write images and a line of metadata each; every line has the same columns: `datasets` makes a table of them."""
    export = without_empty(export)
    paths = save_images(export, folder, "train")
    checks = list(dict.fromkeys(name for image in export.images for name in image.checks))
    lines = [json.dumps(_line(export, image, checks), ensure_ascii=False) for image in export.images]
    write_text(folder / "train" / "metadata.jsonl", "".join(line + "\n" for line in lines))
    return Written(paths=paths, num_instances=export.num_instances)


def _line(export: ExportSet, image: ExportImage, checks: list[str]) -> dict[str, Any]:
    boxes = [box_of(instance.rle) for instance in image.instances]
    return {
        "file_name": image.name,
        "synthetic": image.is_synthetic,
        "source": image.source,
        "group": image.group,
        "fidelity": image.fidelity,
        **{f"check_{name}": image.checks.get(name) for name in checks},
        "height": image.size_hw[0],
        "width": image.size_hw[1],
        "objects": {
            "category": [export.name_of(instance.category_id) for instance in image.instances],
            "category_id": [instance.category_id for instance in image.instances],
            "bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
            "area": [area_px(instance.rle) for instance in image.instances],
            "iscrowd": [int(instance.is_crowd) for instance in image.instances],
            "counts": [column_runs(instance) for instance in image.instances],
        },
    }


IMAGEFOLDER = Writer(
    name="imagefolder",
    title="image folder of Hugging Face datasets",
    content=(
        "train/: the images",
        "train/metadata.jsonl: `synthetic`, scores, and `objects`: classes, boxes (x, y, width, height), COCO's run "
        "lengths",
    ),
    reader=(
        "python -c \"from datasets import load_dataset; data = load_dataset('imagefolder', data_dir='.', "
        "split='train')\""
    ),
    holds_attributes=True,
    write=write_imagefolder,
)
