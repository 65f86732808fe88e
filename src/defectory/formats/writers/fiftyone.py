"""FiftyOne's layout of COCO: `data/` and `labels.json`."""

from __future__ import annotations

from functools import partial

from defectory.formats.writers.base import Writer
from defectory.formats.writers.coco import write_coco

FIFTYONE = Writer(
    name="fiftyone",
    title="FiftyOne (its COCODetectionDataset)",
    content=(
        "data/: the images",
        "labels.json: COCO instances; each instance has `synthetic`, which FiftyOne reads as an attribute",
    ),
    reader=(
        'python -c "import fiftyone as fo; '
        "data = fo.Dataset.from_dir('.', dataset_type=fo.types.COCODetectionDataset, label_types='segmentations')\""
    ),
    holds_attributes=True,
    write=partial(write_coco, polygons=False, images="data", labels="labels.json"),
)
