"""Mutated annotation files: each is read, or refused in one line, within two seconds."""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from defectory.errors import InputError

from .annotation_sets import (
    damaged,
    mutated,
    read,
    write_coco,
    write_coco_rle,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
)

SETS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "COCO polygons": ("coco", write_coco),
    "COCO RLE": ("coco", write_coco_rle),
    "labelme": ("labelme", write_labelme),
    "Pascal VOC": ("voc", write_voc),
    "CVAT": ("cvat", write_cvat),
    "Label Studio": ("label-studio", write_label_studio),
}
NUM_CASES = 300


@pytest.mark.parametrize("kind", SETS)
def test_a_mutated_file_is_read_or_refused_in_one_line_within_two_seconds(kind: str, tmp_path: Path) -> None:
    name, write = SETS[kind]
    source = write(tmp_path / "set")
    root = tmp_path / "set"
    files = sorted(
        path
        for path in root.rglob("*")
        if path.suffix in (".json", ".xml", ".txt") or "Segmentation" in path.parent.name
    )
    whole = {path: path.read_bytes() for path in files}
    rng = random.Random(kind)
    num_read = num_refused = 0
    for _ in range(NUM_CASES):
        path = rng.choice(files)
        if path.suffix == ".json" and rng.random() < 0.8:
            path.write_text(json.dumps(mutated(json.loads(whole[path]), rng)))
        else:
            path.write_bytes(damaged(whole[path], rng))
        options = {"skip_bad": rng.random() < 0.3, "unlabelled": rng.choice(["skip", "refuse", "defect-free"])}
        said = ""
        began = time.monotonic()
        try:
            read(source, rng.choice(["auto", name]), **options)
        except InputError as error:
            said = str(error)
        assert time.monotonic() - began < 2
        # where, what was found, what to do
        assert not said or re.fullmatch(r".+: .+; .+", said)
        num_read, num_refused = num_read + (not said), num_refused + bool(said)
        path.write_bytes(whole[path])
    assert num_read >= 5
    assert num_refused > 10
