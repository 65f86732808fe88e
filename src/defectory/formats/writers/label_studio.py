"""Label Studio out: tasks with brush masks, and the labelling configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.files import write_text
from defectory.formats.writers.base import (
    ExportImage,
    ExportSet,
    Writer,
    Written,
    save_images,
    without_crowds,
    without_empty,
)
from defectory.formats.writers.voc import voc_colour
from defectory.rle import decode

SIZE_BITS = 16
"""Bits of the length of a run; rle-pack allows four sizes, of which one does."""


def write_label_studio(export: ExportSet, folder: Path) -> Written:
    """Write images, `tasks.json` and `label_config.xml`; a task whose annotation has no region is free of defects."""
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "images")
    tasks = [_task(export, image, number) for number, image in enumerate(export.images, start=1)]
    write_text(folder / "tasks.json", json.dumps(tasks, ensure_ascii=False, allow_nan=False) + "\n")
    labels = "".join(
        f'    <Label value={quoteattr(c.name)} background="#{"{:02x}{:02x}{:02x}".format(*voc_colour(c.id))}"/>\n'
        for c in export.categories
    )
    config = (
        f'<View>\n  <Image name="image" value="$image"/>\n  <BrushLabels name="label" toName="image">\n{labels} '
        " </BrushLabels>\n</View>\n"
    )
    write_text(folder / "label_config.xml", config)
    return Written(paths=paths, num_instances=export.num_instances, remarks=remarks)


def pack_mask(mask: NDArray[np.bool_]) -> list[int]:
    """Return a mask [H,W] in rle-pack (thi.ng/umbrella): RGBA, row by row, all channels 255 on the mask and 0
    elsewhere.

    The bits: number of values (32), bits of a value less 1 (5), four sizes less 1 (4 each); then for each run 1 (a run
    of one value), which size (2), its length less 1, and the value (8).
    """
    flat = mask.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    starts = np.concatenate([[0], changes])
    lengths = np.diff(np.concatenate([starts, [len(flat)]])) * 4
    head = f"{4 * len(flat):032b}{7:05b}" + f"{SIZE_BITS - 1:04b}" * 4
    parts = [head]
    longest = 1 << SIZE_BITS
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        value = "11111111" if flat[start] else "00000000"
        runs = (min(longest, length - done) for done in range(0, length, longest))
        parts += [f"100{run - 1:0{SIZE_BITS}b}{value}" for run in runs]
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return list(int(bits, 2).to_bytes(len(bits) // 8, "big"))


def _task(export: ExportSet, image: ExportImage, number: int) -> dict[str, Any]:
    regions = [_region(export, image, instance, place) for place, instance in enumerate(image.instances, start=1)]
    return {
        "id": number,
        "data": {"image": f"/data/local-files/?d=images/{image.name}", **image.attributes, **image.origin},
        "annotations": [{"result": regions, "was_cancelled": False, "ground_truth": False}],
    }


def _region(export: ExportSet, image: ExportImage, instance: Instance, number: int) -> dict[str, Any]:
    name = export.name_of(instance.category_id)
    return {
        "id": f"{image.stem}-{number}",
        "type": "brushlabels",
        "from_name": "label",
        "to_name": "image",
        "origin": "manual",
        "image_rotation": 0,
        "original_height": image.size_hw[0],
        "original_width": image.size_hw[1],
        "value": {"format": "rle", "rle": pack_mask(decode(instance.rle)), "brushlabels": [name]},
    }


LABEL_STUDIO = Writer(
    name="label-studio",
    title="Label Studio",
    content=(
        "images/",
        "tasks.json: tasks with brush masks; their data has `synthetic` and scores",
        "label_config.xml: the labelling configuration",
    ),
    reader=(
        'LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT="$PWD" '
        "label-studio start, paste label_config.xml, add the folder images/ as local storage, import tasks.json"
    ),
    holds_attributes=True,
    write=write_label_studio,
)
