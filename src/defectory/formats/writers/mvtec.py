"""MVTec AD's tree out, for anomaly detection: `train/good`, `test/<class>`, `ground_truth/<class>`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from defectory.formats.lookup import is_good
from defectory.formats.writers.base import (
    ExportSet,
    Writer,
    Written,
    folder_names,
    joined,
    without_crowds,
    without_empty,
)
from defectory.images.save import save_png

COMBINED = "combined"
"""MVTec AD's own name for images that show several kinds of defect."""


def write_mvtec(export: ExportSet, folder: Path) -> Written:
    """Write images and masks; an image of several classes goes to `test/combined`."""
    export, remarks = without_crowds(without_empty(export))
    names, of_names = folder_names(export)
    told: list[str] = []
    for category_id, name in names.items():
        if is_good(name):
            names[category_id] = f"defect {name}"
            told.append(
                f"class '{name}' lies in folders called '{names[category_id]}', since '{name}' means free of defects"
            )
    combined = COMBINED if COMBINED not in {name.casefold() for name in names.values()} else f"{COMBINED} classes"
    (folder / "train" / "good").mkdir(parents=True)
    paths: dict[str, str] = {}
    num_combined = 0
    for image in export.images:
        kinds = {instance.category_id for instance in image.instances}
        kind = "good" if not kinds else names[next(iter(kinds))] if len(kinds) == 1 else combined
        num_combined += len(kinds) > 1
        place = f"train/{kind}" if not kinds else f"test/{kind}"
        (folder / place).mkdir(parents=True, exist_ok=True)
        paths[image.name] = f"{place}/{image.name}"
        image.save(folder / place / image.name)
        if kinds:
            (folder / "ground_truth" / kind).mkdir(parents=True, exist_ok=True)
            mask = joined(image.instances).astype(np.uint8) * 255
            save_png(folder / "ground_truth" / kind / f"{image.stem}_mask.png", mask)
    if num_combined:
        told.append(
            f"{num_combined} images of several classes lie in {combined}/, whose masks do not tell the classes apart"
        )
    return Written(paths=paths, num_instances=export.num_instances, remarks=(*remarks, *of_names, *told))


MVTEC = Writer(
    name="mvtec",
    title="MVTec AD tree",
    content=(
        "train/good/: images that are free of defects",
        "test/<class>/: images with defects, for training as all else here: the name is MVTec AD's",
        "ground_truth/<class>/: a mask of 0 and 255 for each of them",
    ),
    reader=(
        "python -c \"from datumaro.components.dataset import Dataset; data = Dataset.import_from('.', "
        "'mvtec_segmentation')\""
    ),
    holds_attributes=False,
    write=write_mvtec,
)
