"""Formats out, each read back by our own importer and by a reader that is not ours."""

from __future__ import annotations

import csv
import io
import json
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image, ImageDraw

from defectory.artifacts.annotation import Category, Instance
from defectory.errors import ConfigError
from defectory.formats.raw import LoadOptions, RawDataset
from defectory.formats.registry import load
from defectory.formats.writers.base import ExportImage, ExportSet, Written
from defectory.formats.writers.label_studio import pack_mask
from defectory.formats.writers.registry import README_NAME, TABLE_NAME, WRITERS, write_export, writer_named
from defectory.formats.writers.voc import voc_colour
from defectory.images.save import save_png
from defectory.rle import decode, encode

SIZE_HW = (30, 44)
Mask = np.ndarray[Any, np.dtype[np.bool_]]
Labels = dict[str, list[tuple[str, Mask]]]


def filled(*boxes: tuple[int, int, int, int]) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = True
    return mask


THIN = filled((5, 3, 25, 4))
HOLED = filled((4, 8, 20, 24)) & ~filled((8, 12, 13, 18))
PARTS = filled((26, 8, 30, 14), (36, 18, 42, 26))
DIAGONAL = np.eye(*SIZE_HW, dtype=bool) & filled((14, 0, 44, 30))
BLOB = filled((31, 14, 38, 25))


def saver(seed: int) -> Callable[[Path], None]:
    def save(path: Path) -> None:
        save_png(path, np.random.default_rng(seed).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8))

    return save


def labelled(
    name: str, *labels: tuple[int, Mask], synthetic: bool = False, seed: int = 0, crowd: bool = False
) -> ExportImage:
    scores: dict[str, Any] = {"fidelity": 0.75, "checks": {"blur": 0.25, "novelty": 0.5}} if synthetic else {}
    return ExportImage(
        name=name,
        size_hw=SIZE_HW,
        instances=tuple(Instance(category_id=number, rle=encode(mask), is_crowd=crowd) for number, mask in labels),
        is_synthetic=synthetic,
        save=saver(seed),
        source=f"part {seed}.jpg",
        group=f"part {seed}",
        **scores,
    )


def export_set(*images: ExportImage, names: tuple[str, ...] = ("crack", "scratch, deep")) -> ExportSet:
    return ExportSet(
        categories=tuple(Category(id=n, name=name) for n, name in enumerate(names, start=1)), images=images
    )


def usual() -> ExportSet:
    return export_set(
        labelled("synthetic-000001.png", (1, THIN), (1, HOLED), synthetic=True, seed=1),
        labelled("synthetic-000002.png", (2, PARTS), synthetic=True, seed=2),
        labelled("real-000003.png", (2, BLOB), (1, DIAGONAL), seed=3),
        labelled("real-000004.png", seed=4),
        labelled("real-000005.png", seed=5),
    )


def labels_of(export: ExportSet) -> Labels:
    return {
        image.stem: [(export.name_of(i.category_id), decode(i.rle)) for i in image.instances] for image in export.images
    }


def write(name: str, export: ExportSet, folder: Path) -> Written:
    folder.mkdir(parents=True, exist_ok=True)
    return write_export(writer_named(name), export, folder)


def read_back(folder: Path) -> RawDataset:
    return load(folder, LoadOptions())


def found_in(raw: RawDataset) -> Labels:
    return {
        Path(image.file_name).stem: [(i.class_name, decode(i.rle)) for i in image.instances] for image in raw.images
    }


def same(found: list[tuple[str, Mask]], expected: list[tuple[str, Mask]]) -> bool:
    left = list(expected)
    for name, mask in found:
        match = next(
            (at for at, (other, truth) in enumerate(left) if other == name and np.array_equal(truth, mask)), None
        )
        if match is None:
            return False
        del left[match]
    return not left


def union(labels: list[tuple[str, Mask]], name: str | None = None) -> Mask:
    return np.logical_or.reduce([np.zeros(SIZE_HW, bool), *(mask for other, mask in labels if name in (None, other))])


EXACT = ("coco", "coco-polygons", "voc", "labelme", "cvat", "label-studio", "fiftyone")
"""Formats that keep every instance as it is."""
IMPORTED = (*EXACT, "yolo", "masks", "mvtec")


@pytest.mark.parametrize("name", EXACT)
def test_our_importer_reads_every_instance_back(name: str, tmp_path: Path) -> None:
    written = write(name, usual(), tmp_path)
    assert written.num_instances == 5
    assert written.remarks == ()
    raw = read_back(tmp_path)
    expected = labels_of(usual())
    found = found_in(raw)
    assert set(found) == set(expected)
    for stem, labels in expected.items():
        assert same(found[stem], labels), stem
    assert {Path(i.file_name).stem for i in raw.images if i.is_defect_free} == {"real-000004", "real-000005"}


@pytest.mark.parametrize("name", IMPORTED)
def test_our_importer_reads_every_pixel_back(name: str, tmp_path: Path) -> None:
    write(name, usual(), tmp_path)
    found, expected = found_in(read_back(tmp_path)), labels_of(usual())
    assert set(found) == set(expected)
    for stem, labels in expected.items():
        assert np.array_equal(union(found[stem]), union(labels)), stem
        if name != "mvtec":
            for kind in ("crack", "scratch, deep"):
                assert np.array_equal(union(found[stem], kind), union(labels, kind)), (stem, kind)


@pytest.mark.parametrize("name", WRITERS.names())
def test_images_lie_where_the_writer_says_with_a_readme(name: str, tmp_path: Path) -> None:
    written = write(name, usual(), tmp_path)
    assert set(written.paths) == {image.name for image in usual().images}
    for image in usual().images:
        image.save(tmp_path / "expected.png")
        assert (tmp_path / written.paths[image.name]).read_bytes() == (tmp_path / "expected.png").read_bytes()
    readme = (tmp_path / README_NAME).read_text()
    assert "5 images for training" in readme
    assert "2 are synthetic, 3 real; 2 are free of defects" in readme
    assert WRITERS.get(name).reader in readme


@pytest.mark.parametrize("name", WRITERS.names())
def test_a_set_without_defect_free_images_and_one_without_defects_are_written(name: str, tmp_path: Path) -> None:
    images = usual().images
    write(name, export_set(*images[:2]), tmp_path / "defects")
    write(name, export_set(*images[3:]), tmp_path / "free")
    if name in IMPORTED:
        assert len(read_back(tmp_path / "defects").images) == 2


@pytest.mark.parametrize("name", ["coco", "coco-polygons", "fiftyone"])
def test_pycocotools_reads_the_same_masks_and_what_is_synthetic(name: str, tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write(name, usual(), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coco = COCO(str(tmp_path / ("labels.json" if name == "fiftyone" else "annotations.json")))
    assert sorted(coco.imgs) == [1, 2, 3, 4, 5]
    assert sorted(coco.anns) == [1, 2, 3, 4, 5]
    assert [(c["id"], c["name"]) for c in coco.cats.values()] == [(1, "crack"), (2, "scratch, deep")]
    expected = labels_of(usual())
    for image_id, about in coco.imgs.items():
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        found = [(coco.cats[a["category_id"]]["name"], coco.annToMask(a).astype(bool)) for a in annotations]
        assert same(found, expected[Path(about["file_name"]).stem])
        assert about["synthetic"] is about["file_name"].startswith("synthetic")
        assert all(a["synthetic"] is about["synthetic"] for a in annotations)
        assert all(a["area"] == coco.annToMask(a).sum() for a in annotations)
        assert about.get("fidelity") == (0.75 if about["synthetic"] else None)
        assert about.get("check_blur") == (0.25 if about["synthetic"] else None)
        assert about["group"] == about["source"].removesuffix(".jpg")


def test_coco_takes_the_form_that_converts_of_reference_loops_take(tmp_path: Path) -> None:
    from pycocotools import mask as coco_mask

    write("coco", usual(), tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for annotation in content["annotations"]:
        # torchvision's references give whatever stands in the file to frPyObjects
        mask = coco_mask.decode(coco_mask.frPyObjects(annotation["segmentation"], *SIZE_HW))
        assert mask.sum() == annotation["area"]


def test_yolo_is_filled_alike_by_opencv(tmp_path: Path) -> None:
    written = write("yolo", usual(), tmp_path)
    assert written.num_instances == 6
    assert written.remarks == ("1 instances of parts that lie apart are written as one instance for each part",)
    expected = labels_of(usual())
    for stem, labels in expected.items():
        lines = (tmp_path / "labels" / "train" / f"{stem}.txt").read_text().splitlines()
        canvas = {0: np.zeros(SIZE_HW, np.uint8), 1: np.zeros(SIZE_HW, np.uint8)}
        for line in lines:
            number, *shares = line.split()
            ring = np.array(shares, float).reshape(-1, 2) * (SIZE_HW[1], SIZE_HW[0])
            cv2.fillPoly(canvas[int(number)], [ring.astype(np.int32)], (1,))
        for number, kind in enumerate(("crack", "scratch, deep")):
            assert np.array_equal(canvas[number] > 0, union(labels, kind))


def test_yolo_names_classes_from_0_and_says_that_val_is_no_validation_set(tmp_path: Path) -> None:
    write("yolo", export_set(*usual().images, names=("crack: wide", "'#é\"")), tmp_path)
    text = (tmp_path / "data.yaml").read_text()
    content = yaml.safe_load(text)
    assert content["names"] == {0: "crack: wide", 1: "'#é\""}
    assert content["train"] == content["val"] == "images/train"
    assert "name validation images of your own" in text


def test_voc_has_masks_in_its_colours_boxes_from_1_and_a_list(tmp_path: Path) -> None:
    write("voc", usual(), tmp_path)
    with Image.open(tmp_path / "SegmentationClass" / "synthetic-000001.png") as image:
        assert image.mode == "P"
        assert np.array_equal(np.asarray(image), union(labels_of(usual())["synthetic-000001"]).astype(np.uint8))
        assert (image.getpalette() or [])[:6] == [0, 0, 0, 128, 0, 0]
    assert [voc_colour(value) for value in (1, 2, 3, 15, 16)] == [
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (192, 128, 128),
        (0, 64, 0),
    ]
    root = ET.parse(tmp_path / "Annotations" / "synthetic-000001.xml").getroot()
    assert root.findtext("synthetic") == "true"
    boxes = [[int(value.text or "") for value in box] for box in root.iter("bndbox")]
    assert boxes == [[6, 4, 25, 4], [5, 9, 20, 24]]
    listed = (tmp_path / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    assert listed == [image.stem for image in usual().images]


@pytest.mark.parametrize("name", [name for name in WRITERS.names() if not WRITERS.get(name).holds_attributes])
def test_a_table_says_what_is_synthetic_where_the_format_cannot(name: str, tmp_path: Path) -> None:
    written = write(name, usual(), tmp_path)
    rows = list(csv.DictReader(io.StringIO((tmp_path / TABLE_NAME).read_text())))
    assert [row["file_name"] for row in rows] == [written.paths[image.name] for image in usual().images]
    assert [row["synthetic"] for row in rows] == ["true", "true", "false", "false", "false"]
    assert rows[0]["fidelity"] == "0.75"
    assert rows[0]["check_novelty"] == "0.5"
    assert rows[4]["fidelity"] == ""
    assert rows[4]["source"] == "part 5.jpg"


def test_labelme_draws_the_same_masks_and_flags_what_is_synthetic(tmp_path: Path) -> None:
    write("labelme", usual(), tmp_path)
    for stem, labels in labels_of(usual()).items():
        content = json.loads((tmp_path / "images" / f"{stem}.json").read_text())
        assert content["flags"] == {"synthetic": stem.startswith("synthetic")}
        assert content["imagePath"] == f"{stem}.png"
        drawn: dict[int, tuple[str, Mask]] = {}
        for shape in content["shapes"]:
            canvas = Image.new("L", SIZE_HW[::-1])
            ImageDraw.Draw(canvas).polygon([tuple(point) for point in shape["points"]], outline=1, fill=1)
            mask = np.asarray(canvas) > 0
            drawn[shape["group_id"]] = shape["label"], mask | drawn.get(shape["group_id"], ("", mask))[1]
        assert same(list(drawn.values()), labels)


def test_cvat_has_row_wise_runs_in_the_box_and_attributes(tmp_path: Path) -> None:
    write("cvat", usual(), tmp_path)
    root = ET.parse(tmp_path / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == ["crack", "scratch, deep"]
    images = {Path(image.attrib["name"]).stem: image for image in root.iter("image")}
    for stem, labels in labels_of(usual()).items():
        found: list[tuple[str, Mask]] = []
        for shape in images[stem].iter("mask"):
            left, top, width, height = (int(shape.attrib[key]) for key in ("left", "top", "width", "height"))
            runs = [int(run) for run in shape.attrib["rle"].split(",")]
            mask = np.zeros(SIZE_HW, bool)
            values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            assert len(values) == width * height
            mask[top : top + height, left : left + width] = values.reshape(height, width)
            found.append((shape.attrib["label"], mask))
            attributes = {a.attrib["name"]: a.text for a in shape.iter("attribute")}
            assert attributes["synthetic"] == ("true" if stem.startswith("synthetic") else "false")
        assert same(found, labels)


def test_label_studio_has_tasks_for_local_files_and_a_configuration(tmp_path: Path) -> None:
    write("label-studio", usual(), tmp_path)
    tasks = json.loads((tmp_path / "tasks.json").read_text())
    assert [task["id"] for task in tasks] == [1, 2, 3, 4, 5]
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=images/synthetic-000001.png"
    assert tasks[0]["data"]["synthetic"] is True
    assert tasks[0]["data"]["fidelity"] == 0.75
    assert tasks[4]["annotations"][0]["result"] == []
    config = ET.parse(tmp_path / "label_config.xml").getroot()
    labels = config.find("BrushLabels")
    assert labels is not None
    assert [label.attrib["value"] for label in labels] == ["crack", "scratch, deep"]


def test_long_runs_are_cut_to_the_lengths_that_a_brush_mask_allows(tmp_path: Path) -> None:
    mask = np.zeros((300, 400), bool)
    mask[150:, :] = True
    codes = pack_mask(mask)
    assert max(codes) < 256
    image = ExportImage(
        name="a.png",
        size_hw=mask.shape,
        instances=(Instance(category_id=1, rle=encode(mask)),),
        is_synthetic=False,
        save=lambda path: save_png(path, np.zeros((300, 400, 3), np.uint8)),
    )
    write("label-studio", export_set(image), tmp_path)
    (read,) = read_back(tmp_path).images
    assert np.array_equal(decode(read.instances[0].rle), mask)


def test_imagefolder_lines_have_the_same_columns_and_the_masks(tmp_path: Path) -> None:
    write("imagefolder", usual(), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len({tuple(line) for line in lines}) == 1
    for line in lines:
        found: list[tuple[str, Mask]] = []
        for name, runs in zip(line["objects"]["category"], line["objects"]["counts"], strict=True):
            flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
            found.append((name, flat.reshape(SIZE_HW[::-1]).T))
        assert same(found, labels_of(usual())[Path(line["file_name"]).stem])
        assert line["synthetic"] is line["file_name"].startswith("synthetic")


def test_mvtec_puts_images_of_several_classes_together_and_says_so(tmp_path: Path) -> None:
    written = write("mvtec", usual(), tmp_path)
    assert written.paths["real-000003.png"] == "test/combined/real-000003.png"
    assert written.paths["synthetic-000001.png"] == "test/crack/synthetic-000001.png"
    assert written.paths["real-000004.png"] == "train/good/real-000004.png"
    assert any("1 images of several classes lie in combined/" in remark for remark in written.remarks)


@pytest.mark.parametrize("name", ["voc", "masks"])
def test_overlapping_instances_are_told_where_a_pixel_has_one_value(name: str, tmp_path: Path) -> None:
    export = export_set(labelled("a.png", (1, filled((2, 2, 20, 20))), (2, filled((10, 10, 14, 14)))))
    written = write(name, export, tmp_path)
    assert any("overlap in 1 images (16 pixels)" in remark for remark in written.remarks)
    (image,) = read_back(tmp_path).images
    assert sorted(int(decode(i.rle).sum()) for i in image.instances) == [16, 18 * 18 - 16]


@pytest.mark.parametrize(
    "name", [name for name in WRITERS.names() if name not in ("coco", "coco-polygons", "fiftyone", "imagefolder")]
)
def test_crowds_are_left_out_with_a_remark_and_never_become_defect_free(name: str, tmp_path: Path) -> None:
    export = export_set(labelled("a.png", (1, THIN)), labelled("b.png", (1, BLOB), crowd=True), labelled("c.png"))
    written = write(name, export, tmp_path)
    assert set(written.paths) == {"a.png", "c.png"}
    assert any("1 crowd regions are left out" in remark for remark in written.remarks)
    assert any("1 images that hold crowd regions alone are left out" in remark for remark in written.remarks)


def test_coco_keeps_crowds(tmp_path: Path) -> None:
    write("coco-polygons", export_set(labelled("b.png", (1, BLOB), crowd=True)), tmp_path)
    (annotation,) = json.loads((tmp_path / "annotations.json").read_text())["annotations"]
    assert annotation["iscrowd"] == 1
    assert set(annotation["segmentation"]) == {"size", "counts"}


def test_what_no_outline_gives_back_stays_run_lengths_and_is_told(tmp_path: Path) -> None:
    corner = np.zeros(SIZE_HW, bool)
    corner[0, 0] = True
    written = write("coco-polygons", export_set(labelled("a.png", (1, corner), (1, THIN))), tmp_path / "coco")
    assert any("1 instances stay run lengths" in remark for remark in written.remarks)
    assert write("labelme", export_set(labelled("a.png", (1, corner))), tmp_path / "labelme").num_instances == 1
    for folder in ("coco", "labelme"):
        (image,) = read_back(tmp_path / folder).images
        assert any(np.array_equal(decode(i.rle), corner) for i in image.instances)


ODD_NAMES = (
    "a/b",
    "../x",
    "[/x]",
    "con",
    "Crack",
    "crack",
    "é ü",
    "x" * 300,
    "Dent.",
    "quote \" and <tag> & '",
    "3",
    "true",
)


@pytest.mark.parametrize("name", IMPORTED)
def test_odd_class_names_are_kept_or_told(name: str, tmp_path: Path) -> None:
    images = [labelled(f"im-{n}.png", (n, BLOB)) for n in range(1, len(ODD_NAMES) + 1)]
    written = write(name, export_set(*images, names=ODD_NAMES), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"], "nothing is written elsewhere"
    raw = read_back(tmp_path / "out")
    found = {Path(image.file_name).stem: image.instances[0].class_name for image in raw.images}
    for number, odd in enumerate(ODD_NAMES, start=1):
        assert found[f"im-{number}"] == odd or any(odd[:40] in remark for remark in written.remarks), odd


@pytest.mark.parametrize("name", IMPORTED)
def test_names_that_mean_something_to_a_format_are_kept_or_told(name: str, tmp_path: Path) -> None:
    kinds = ("good", "background", "combined", "ignore", "ok")
    images = [labelled(f"im-{n}.png", (n, BLOB)) for n in range(1, len(kinds) + 1)]
    written = write(name, export_set(*images, labelled("two.png", (1, THIN), (2, BLOB)), names=kinds), tmp_path)
    found = {Path(image.file_name).stem: image for image in read_back(tmp_path).images}
    for number, kind in enumerate(kinds, start=1):
        (instance,) = found[f"im-{number}"].instances
        assert instance.class_name == kind or any(f"class '{kind}'" in remark for remark in written.remarks), kind
        assert np.array_equal(decode(instance.rle), BLOB)


def test_names_with_control_characters_are_made_plain_and_distinct(tmp_path: Path) -> None:
    written = write("cvat", export_set(labelled("a.png", (2, BLOB)), names=("a b", "a\nb", "\0")), tmp_path)
    root = ET.parse(tmp_path / "annotations.xml").getroot()
    assert [label.findtext("name") for label in root.iter("label")] == ["a b", "a b 2", "class 3"]
    assert len(written.remarks) == 2


def test_a_format_that_cannot_hold_so_many_classes_says_so(tmp_path: Path) -> None:
    names = tuple(f"kind {n}" for n in range(300))
    with pytest.raises(ConfigError, match="voc holds at most 254 classes, these are 300"):
        write("voc", export_set(labelled("a.png", (299, BLOB)), names=names), tmp_path / "voc")
    write("masks", export_set(labelled("a.png", (299, BLOB)), names=names), tmp_path / "masks")
    (image,) = read_back(tmp_path / "masks").images
    assert image.instances[0].class_name == "kind 298"


def test_an_unknown_format_is_one_line() -> None:
    with pytest.raises(ConfigError, match="option --format 'coca': is not known; choose among coco, coco-polygons"):
        writer_named("coca")


def test_the_verb_lists_the_formats_of_the_registry() -> None:
    from defectory.cli.export_verb import FORMATS_OUT

    assert WRITERS.names() == FORMATS_OUT
