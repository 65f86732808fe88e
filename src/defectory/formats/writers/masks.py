"""Mask PNGs out: one per image, whose values are classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from defectory.files import write_text
from defectory.formats.writers.base import (
    ExportSet,
    Writer,
    Written,
    listed_names,
    overlap_remark,
    paint,
    save_images,
    without_crowds,
    without_empty,
)
from defectory.images.save import save_png


def write_masks(export: ExportSet, folder: Path) -> Written:
    """Write images, a mask for each, all background where it is free of defects, and the list of classes."""
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "images")
    (folder / "masks").mkdir()
    covered_px = num_covered = 0
    for image in export.images:
        values, _ = paint(image.size_hw, [(instance.category_id, instance) for instance in image.instances])
        # overlaps within a class lose nothing
        per_class = [
            paint(image.size_hw, [(1, i) for i in image.instances if i.category_id == c.id])[0]
            for c in export.categories
        ]
        twice_px = int(sum(int((mask > 0).sum()) for mask in per_class)) - int((values > 0).sum())
        values = values if len(export.categories) > 255 else values.astype(np.uint8)
        save_png(folder / "masks" / f"{image.stem}.png", values)
        covered_px, num_covered = covered_px + twice_px, num_covered + (twice_px > 0)
    names, of_names = listed_names(export)
    lines = ["0: background", *(f"{value}: {name}" for value, name in names.items())]
    write_text(folder / "classes.txt", "".join(f"{line}\n" for line in lines))
    return Written(
        paths=paths,
        num_instances=export.num_instances,
        remarks=(*remarks, *of_names, *overlap_remark(covered_px, num_covered)),
    )


MASKS = Writer(
    name="masks",
    title="mask PNGs of class values",
    content=(
        "images/",
        "masks/: a PNG of the image's name, 0 background, other values as classes.txt says",
        "classes.txt",
    ),
    reader=(
        'python -c "import glob, numpy; from PIL import Image; '
        "masks = [numpy.asarray(Image.open(name)) for name in sorted(glob.glob('masks/*.png'))]\""
    ),
    holds_attributes=False,
    write=write_masks,
)
