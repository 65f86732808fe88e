"""Pascal VOC: masks of classes and objects, names from lists, tables and XML; polygons in XML; boxes alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectory.errors import InputError

from .annotation_sets import CLASS_OF, NAMES, RINGS, SIZE_HW, assert_as_drawn, read, truth, write_images, write_voc


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("objects", [True, False])
@pytest.mark.parametrize("names", ["__background__\nscratch\ndent\n", "scratch\ndent\n", None])
def test_masks_are_read_and_named_by_a_list_or_by_the_xml(objects: bool, names: str | None, tmp_path: Path) -> None:
    raw = read(write_voc(tmp_path, objects=objects, names=names))
    assert_as_drawn(raw)
    assert "VOC" in raw.layout
    assert not {"255", "1", "2"} & set(raw.class_names)


def test_the_folder_of_the_devkit_is_searched(tmp_path: Path) -> None:
    write_voc(tmp_path / "VOCdevkit" / "VOC2012")
    assert_as_drawn(read(tmp_path))


def test_objects_that_touch_stay_two_instances_and_are_named_in_the_order_of_the_xml(tmp_path: Path) -> None:
    root = write_voc(tmp_path, names=None)
    for name in ("p0", "p1"):
        classes, objects = np.zeros(SIZE_HW, np.uint8), np.zeros(SIZE_HW, np.uint8)
        classes[10:20, 10:30], classes[10:20, 30:50] = 7, 3
        objects[10:20, 10:30], objects[10:20, 30:50] = 1, 2
        Image.fromarray(classes).save(root / "SegmentationClass" / f"{name}.png")
        Image.fromarray(objects).save(root / "SegmentationObject" / f"{name}.png")
        listed = "<object><name>dent</name></object><object><name>scratch</name></object>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{listed}</annotation>")
    raw = read(root)
    assert [[i.class_name for i in image.instances] for image in raw.images] == [
        ["dent", "scratch"],
        ["dent", "scratch"],
        [],
    ]


def test_colours_are_read_by_the_label_map(tmp_path: Path) -> None:
    root = write_voc(tmp_path, names=None)
    colours = {"scratch": (220, 20, 60), "dent": (0, 90, 200)}
    for name in NAMES:
        picture = np.zeros((*SIZE_HW, 3), np.uint8)
        if name in RINGS:
            picture[truth()[name]] = colours[CLASS_OF[name]]
        Image.fromarray(picture).save(root / "SegmentationClass" / f"{name}.png")
    assert "no table explains its colours" in refusal(root)
    lines = ["background:0,0,0::", *(f"{name}:{','.join(map(str, colour))}::" for name, colour in colours.items())]
    (root / "labelmap.txt").write_text("\n".join(lines))
    assert_as_drawn(read(root))


def test_255_is_the_class_where_it_is_the_only_value(tmp_path: Path) -> None:
    root = write_voc(tmp_path, objects=False, names=None)
    for name in NAMES:
        Image.fromarray(truth().get(name, np.zeros(SIZE_HW, bool)).astype(np.uint8) * 255).save(
            root / "SegmentationClass" / f"{name}.png"
        )
    raw = read(root)
    assert [len(image.instances) for image in raw.images] == [1, 1, 0]


def test_lists_of_subsets_are_kept_and_images_without_a_mask_are_not_defect_free(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("p0\n")
    (lists / "val.txt").write_text("p1\r\n")
    (root / "SegmentationClass" / "p2.png").unlink()
    raw = read(root)
    assert [(image.file_name, image.subset) for image in raw.images] == [("p0.png", "train"), ("p1.png", "val")]
    assert any("p2.png" in remark for remark in raw.remarks)
    assert [image.is_defect_free for image in read(root, unlabelled="defect-free").images] == [False, False, True]


def test_a_mask_of_another_size_or_without_an_image_is_one_line(tmp_path: Path) -> None:
    root = write_voc(tmp_path / "a")
    Image.fromarray(np.ones((39, 60), np.uint8)).save(root / "SegmentationClass" / "p0.png")
    assert "mask is 39x60, image is 40x60" in refusal(root)
    assert [image.file_name for image in read(root, skip_bad=True, unlabelled="defect-free").images] == [
        "p1.png",
        "p2.png",
    ]
    other = write_voc(tmp_path / "b")
    (other / "JPEGImages" / "p0.png").unlink()
    assert "a mask without an image" in refusal(other)


def write_xml(root: Path, polygon: str) -> Path:
    write_images(root)
    for name in NAMES:
        listed = (
            f"<object><name>{CLASS_OF[name]}</name>{polygon.format(*RINGS[name])}</object>" if name in RINGS else ""
        )
        (root / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><size><width>0</width><height>0</height></size>{listed}</annotation>"
        )
    return root


@pytest.mark.parametrize(
    "polygon",
    [
        "<polygon><x1>{}</x1><y1>{}</y1><x2>{}</x2><y2>{}</y2><x3>{}</x3><y3>{}</y3><x4>{}</x4><y4>{}</y4></polygon>",
        "<polygon><username>a</username>" + "<pt><x>{}</x><y>{}</y></pt>" * 4 + "</polygon>",
    ],
)
def test_polygons_in_xml_are_read(polygon: str, tmp_path: Path) -> None:
    assert_as_drawn(read(write_xml(tmp_path, polygon)))


def test_boxes_alone_are_told_as_that(tmp_path: Path) -> None:
    root = write_xml(tmp_path, "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>")
    assert "2 boxes and no masks" in refusal(root)


def test_the_image_of_a_bad_xml_is_never_defect_free(tmp_path: Path) -> None:
    root = write_xml(tmp_path, "<polygon><x1>{}</x1><y1>{}</y1><x2>{}</x2><y2>{}</y2><x3>{}</x3><y3>{}</y3></polygon>")
    (root / "p0.xml").write_text("<annotation><object></annotation>")
    assert "is not XML" in refusal(root)
    raw = read(root, skip_bad=True, unlabelled="defect-free")
    assert [image.file_name for image in raw.images] == ["p1.png", "p2.png"]


def test_masks_go_before_xml_with_boxes(tmp_path: Path) -> None:
    root = write_voc(tmp_path)
    (root / "SegmentationClass").rename(root / "masks")
    (root / "SegmentationObject").rename(tmp_path.parent / "objects")
    (root / "JPEGImages").rename(root / "images")
    raw = read(root)
    assert "mask folders" in raw.layout
    assert any("Pascal VOC (XML)" in remark for remark in raw.remarks)
