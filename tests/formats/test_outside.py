"""A data set format that another package adds, in and out, used on a set of two images."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import ConfigError
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance
from defectory.formats.registry import FORMATS, Format, format_named, formats, load, recognise
from defectory.formats.writers.base import ExportSet, Writer, Written, save_images
from defectory.formats.writers.registry import WRITERS, write_export, writer_named
from defectory.rle import box_of, decode, encode

from .test_writers import BLOB, SIZE_HW, export_set, filled, labelled


def read_boxes(path: Path, options: LoadOptions) -> RawDataset:
    with (path / "boxes.csv").open() as file:
        rows = [(name, word, *map(int, box)) for name, word, *box in csv.reader(file)]
    images = tuple(
        RawImage(
            path=path / "boxes" / name,
            file_name=name,
            size_hw=SIZE_HW,
            group=name,
            instances=(RawInstance(class_name=word, rle=encode(filled((x0, y0, x1, y1)))),),
            is_defect_free=False,
        )
        for name, word, x0, y0, x1, y1 in rows
    )
    return RawDataset(class_names=tuple(sorted({row[1] for row in rows})), images=images, rejected=())


def write_boxes(export: ExportSet, folder: Path) -> Written:
    paths = save_images(export, folder, "boxes")
    with (folder / "boxes.csv").open("w") as file:
        for image in export.images:
            for instance in image.instances:
                csv.writer(file).writerow((image.name, export.name_of(instance.category_id), *box_of(instance.rle)))
    return Written(paths=paths, num_instances=export.num_instances)


def is_boxes(path: Path) -> str | None:
    return "boxes" if (path / "boxes.csv").is_file() else None


BOXES_IN = Format(name="boxes", title="boxes", recognise=is_boxes, load=read_boxes)
BOXES_OUT = Writer(
    name="boxes", title="boxes", content=(), reader="cat boxes.csv", holds_attributes=False, write=write_boxes
)


def test_a_format_from_outside_is_written_recognised_after_ours_and_read(tmp_path: Path) -> None:
    export = export_set(labelled("a.png", (1, BLOB), seed=1), labelled("b.png", (1, filled((3, 5, 9, 20))), seed=2))
    with WRITERS.registered("boxes", BOXES_OUT), FORMATS.registered("boxes", BOXES_IN):
        write_export(writer_named("boxes"), export, tmp_path)
        assert recognise(tmp_path).layout == "boxes"
        assert formats()[-1] is BOXES_IN
        raw = load(tmp_path, LoadOptions())
    found = {image.file_name: image.instances[0] for image in raw.images}
    assert np.array_equal(decode(found["a.png"].rle), BLOB)
    assert (sorted(found), found["b.png"].class_name) == (["a.png", "b.png"], "crack")


def test_a_format_may_be_named_by_its_place_and_every_one_has_its_own_name() -> None:
    assert format_named("defectory.formats.coco:COCO").name == "coco"
    assert tuple(known.name for known in formats()) == FORMATS.names()
    assert tuple(WRITERS.get(name).name for name in WRITERS.names()) == WRITERS.names()
    with pytest.raises(ConfigError, match=r"data.format 'boxes': is not known; choose among defectory, cvat"):
        format_named("boxes")
