"""Loads the delivered synthetic set from its files, as a user would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectory.artifacts.annotation import Instance
from defectory.rle import Rle
from defectory.runs import layout


@dataclass(frozen=True, kw_only=True)
class SyntheticImage:
    """One image of the synthetic set.

    Attributes:
        path: of the image file.
        size_hw: of the image, pixels.
        instances: its labels.
        provenance: what it was made from.
        ignore: pixels that training ignores; None if there are none.
        is_doubtful: for each instance, whether training ignores it.
    """

    path: Path
    size_hw: tuple[int, int]
    instances: tuple[Instance, ...]
    provenance: Mapping[str, Any]
    ignore: Rle | None = None
    is_doubtful: tuple[bool, ...] = ()

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Return the ids of the images that its background and its masks come from."""
        return tuple(self.provenance["image_ids"])

    @property
    def scale(self) -> float:
        """Return the pixels of this image per pixel of the image that its background was cut from."""
        return float(self.provenance["scale"])

    @property
    def is_frame(self) -> bool:
        """Return whether it is a whole image with inserted defects, in that image's depth and range."""
        return self.provenance["form"] == "frame"

    @property
    def drafts(self) -> tuple[Mapping[str, Any], ...]:
        """Return what is recorded of each draft in it."""
        return tuple(self.provenance["drafts"])

    @property
    def fidelity(self) -> float:
        """Return the fidelity of its least faithful draft."""
        return min(float(draft["fidelity"]) for draft in self.drafts)

    @property
    def checks(self) -> dict[str, float]:
        """Return the highest figure of each check over its drafts, since a check passes up to its limit."""
        names = dict.fromkeys(name for draft in self.drafts for name in draft["checks"])
        return {name: max(float(d["checks"][name]) for d in self.drafts if name in d["checks"]) for name in names}


def load_synthetic(folder: Path) -> list[SyntheticImage]:
    """Load the synthetic set from `annotations.json` (COCO, RLE), `provenance.jsonl` and, if there, `ignore.json`."""
    content = json.loads((folder / layout.ANNOTATIONS).read_bytes())
    lines = (folder / layout.PROVENANCE).read_text(encoding="utf-8").splitlines()
    records = {record["image"]: record for record in map(json.loads, lines)}
    ignored, doubtful = _ignored(folder)
    instances: dict[int, list[Instance]] = {}
    flags: dict[int, list[bool]] = {}
    for row in content["annotations"]:
        rle = Rle(size_hw=tuple(row["segmentation"]["size"]), counts=row["segmentation"]["counts"])
        instances.setdefault(row["image_id"], []).append(Instance(category_id=row["category_id"], rle=rle))
        flags.setdefault(row["image_id"], []).append(row["id"] in doubtful)
    return [
        SyntheticImage(
            path=folder / layout.IMAGES / about["file_name"],
            size_hw=(about["height"], about["width"]),
            instances=tuple(instances.get(about["id"], ())),
            provenance=records[about["file_name"]],
            ignore=ignored.get(about["id"]),
            is_doubtful=tuple(flags.get(about["id"], ())),
        )
        for about in content["images"]
    ]


def _ignored(folder: Path) -> tuple[dict[int, Rle], set[int]]:
    """Return the ignored pixels by image id, and the ids of doubtful annotations; nothing without the file."""
    path = folder / layout.IGNORE_FILE
    if not path.is_file():
        return {}, set()
    rows = json.loads(path.read_bytes())["images"]
    pixels = {
        row["image_id"]: Rle(size_hw=tuple(row["ignore"]["size"]), counts=row["ignore"]["counts"])
        for row in rows
        if row["ignore"] is not None
    }
    return pixels, {number for row in rows for number in row["doubtful_annotation_ids"]}
