"""COCO instances: field by field, in the layouts of the tools that write them."""

from __future__ import annotations

import base64
import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.artifacts.annotation import Category, Instance
from defectory.errors import AnnotationError, ConfigError, InputError
from defectory.formats.coco import load_coco, looks_like_coco, save_coco
from defectory.rle import decode, encode

from .annotation_sets import (
    HEIGHT,
    RINGS,
    SIZE_HW,
    WIDTH,
    Content,
    assert_as_drawn,
    coco_content,
    picture,
    read,
    rle_runs,
    rle_text,
    truth,
    write_coco,
    write_coco_rle,
    write_images,
    write_json,
)

Edit = Callable[[Content], object]


def each(kind: str, **values: Any) -> Edit:
    """Set fields of every entry; a function is called with the old value, KeyError removes the field."""

    def edit(content: Content) -> None:
        for entry in content[kind]:
            for key, value in values.items():
                if value is KeyError:
                    del entry[key]
                else:
                    entry[key] = value(entry[key]) if callable(value) else value

    return edit


def first(kind: str, **values: Any) -> Edit:
    return lambda content: content[kind][0].update(values)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "edit",
    [
        each("images", width=None, height=None),
        each("images", width="", height=""),
        each("images", width=KeyError, height=KeyError),
        each("images", width=str, height=str),
        each("images", width=float, height=float),
        each("images", id=str),
        each("annotations", image_id=str),
        each("annotations", category_id=float),
        each("categories", id=str),
        each("annotations", id=KeyError),
        each("annotations", id=None),
        each("annotations", iscrowd="0"),
        each("annotations", iscrowd=None),
        each("annotations", iscrowd=0.0),
        each("annotations", iscrowd="false"),
        each("annotations", bbox=None),
        each("annotations", segmentation=lambda rings: rings[0]),
    ],
)
def test_fields_that_can_mean_one_thing_alone_are_read_without_a_remark(edit: Edit, tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, edit))
    assert_as_drawn(raw)
    assert raw.remarks == ()
    assert not any(i.is_crowd for image in raw.images for i in image.instances)


@pytest.mark.parametrize("value", ["1", 1, True, "true", 1.0])
def test_crowd_is_read_from_text_and_truth_values(value: object, tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, first("annotations", iscrowd=value)))
    assert [i.is_crowd for image in raw.images for i in image.instances] == [True, False]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (each("images", height=0), "height is the number 0"),
        (each("images", height=-3), "-3"),
        (each("images", height=10.5), "whole number"),
        (each("images", height="tall"), "height is the text 'tall'"),
        (each("images", height=True), "height is true"),
        (each("images", height=[1]), "height is a list"),
        (each("images", height=1e300), "height is the number"),
        (each("images", height=HEIGHT + 1), "annotated as 41x60, but the image is 40x60"),
        (each("images", file_name=None), "has no file_name"),
        (each("images", file_name=["a"]), "file_name is a list"),
        (each("images", id=None), "has no id"),
        (each("images", id=True), "id is true"),
        (each("images", id=1), "id 1 in 'images' belongs to p0.png and to p1.png"),
        (each("images", file_name="p0.png"), "appears in two images"),
        (each("annotations", category_id=[1]), "category_id is a list"),
        (each("annotations", category_id=None), "has no category_id"),
        (each("annotations", category_id=9), "category_id 9 is not in"),
        (each("annotations", image_id=9), "names image 9"),
        (each("annotations", iscrowd="maybe"), "iscrowd is the text 'maybe'"),
        (each("annotations", iscrowd=2), "iscrowd is the number 2"),
        (each("annotations", segmentation="[[1]]"), "segmentation is the text"),
        (each("annotations", segmentation=7), "segmentation is the number 7"),
        (first("annotations", segmentation=[]), "a box alone is not a mask"),
        (each("annotations", segmentation=[]), "none of 2 annotations has a segmentation, only boxes"),
        (each("annotations", segmentation=None, bbox=None, keypoints=[1, 2, 2]), "only keypoints"),
        (each("categories", id=1), "category id 1 is 'scratch' and 'dent'"),
        (each("categories", name=[]), "name is a list"),
        (lambda content: content.update(images={}), "'images' is an object"),
        (lambda content: content.pop("categories"), "no list 'categories'"),
        (lambda content: content["annotations"].append(5), "annotation 3 of the list: entry is the number 5"),
    ],
)
def test_a_field_of_another_type_is_one_line_that_names_it(edit: Edit, words: str, tmp_path: Path) -> None:
    assert words in refusal(write_coco(tmp_path, edit))


def test_an_annotation_that_is_skipped_leaves_its_image_neither_labelled_nor_defect_free(tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, first("annotations", iscrowd="maybe")), skip_bad=True)
    assert [(image.file_name, len(image.instances), image.is_defect_free) for image in raw.images] == [
        ("p0.png", 0, False),
        ("p1.png", 1, False),
        ("p2.png", 0, True),
    ]
    assert [entry.id for entry in raw.rejected] == ["annotation 1"]


def test_an_image_that_is_skipped_takes_its_annotations_along(tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, first("images", height="tall")), skip_bad=True)
    assert [image.file_name for image in raw.images] == ["p1.png", "p2.png"]
    assert [entry.id for entry in raw.rejected] == ["image 1"]


def test_annotation_ids_that_repeat_are_remarked_and_each_is_read(tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, each("annotations", id=1)))
    assert_as_drawn(raw)
    assert "1 annotation repeats the id of another one" in raw.remarks[0]


def test_an_image_entry_that_repeats_is_left_out(tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, lambda content: content["images"].append(dict(content["images"][0]))))
    assert_as_drawn(raw)
    assert "repeats another one" in raw.remarks[0]


@pytest.mark.parametrize(
    ("extra", "classes", "words"),
    [
        ({"id": 0, "name": "dent", "supercategory": "none"}, ("scratch", "dent"), "unused and shares its name"),
        (
            {"id": 0, "name": "defects-x1", "supercategory": "none"},
            ("scratch", "dent"),
            "unused and the parent of others",
        ),
        ({"id": 7, "name": "stain"}, ("scratch", "dent", "stain"), None),
    ],
)
def test_unused_categories(extra: Content, classes: tuple[str, ...], words: str | None, tmp_path: Path) -> None:
    def edit(content: Content) -> None:
        for category in content["categories"]:
            category["supercategory"] = "defects-x1"
        content["categories"].insert(0, extra)

    raw = read(write_coco(tmp_path, edit))
    assert_as_drawn(raw)
    assert raw.class_names == classes
    assert [words in remark for remark in raw.remarks] == ([True] if words else [])


def test_two_used_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, each("categories", name="crack")))
    assert raw.class_names == ("crack",)
    assert {i.class_name for image in raw.images for i in image.instances} == {"crack"}
    assert "become one class" in raw.remarks[0]


@pytest.mark.parametrize(
    ("group", "expected"),
    [(0, "0"), (0.0, "0"), ("0", "0"), (False, "false"), (1.5, "1.5"), ("line 3", "line 3"), (None, "p0"), ("", "p0")],
)
def test_a_group_is_text_and_0_is_a_group(group: object, expected: str, tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, first("images", group=group)))
    assert raw.images[0].group == expected


def rle_entry(change: Callable[[list[int], str], Any], size: Any = SIZE_HW) -> Edit:
    mask = truth()["p0"]
    return first(
        "annotations",
        segmentation={
            "size": list(size) if isinstance(size, tuple) else size,
            "counts": change(rle_runs(mask), rle_text(mask)),
        },
    )


@pytest.mark.parametrize(
    ("edit", "remark"),
    [
        (rle_entry(lambda runs, text: runs), None),
        (rle_entry(lambda runs, text: text), None),
        (rle_entry(lambda runs, text: [float(run) for run in runs]), None),
        (rle_entry(lambda runs, text: [str(run) for run in runs]), None),
        (rle_entry(lambda runs, text: f"b'{text}'"), None),
        (rle_entry(lambda runs, text: repr(text.encode())), None),
        (rle_entry(lambda runs, text: [runs[0] - 5, 0, 5, *runs[1:]]), None),
        (rle_entry(lambda runs, text: runs[:-1]), "leaves out its last run"),
        (rle_entry(lambda runs, text: runs, size=None), "has no size"),
        (rle_entry(lambda runs, text: runs, size=[None, None]), "has no size"),
        (rle_entry(lambda runs, text: runs, size=["40", 60.0]), None),
        (rle_entry(lambda runs, text: runs, size=(WIDTH, HEIGHT)), "size is [width, height]"),
        (
            lambda content: rle_entry(lambda runs, text: rle_text(truth()["p0"].T), size=(WIDTH, HEIGHT))(content),
            "size is [width, height]",
        ),
    ],
)
def test_rle_of_every_kind_that_can_mean_one_mask(edit: Edit, remark: str | None, tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, edit))
    assert_as_drawn(raw)
    assert [remark in said for said in raw.remarks] == ([True] if remark else [])


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (rle_entry(lambda runs, text: None), "counts is null"),
        (rle_entry(lambda runs, text: {}), "counts is an object"),
        (rle_entry(lambda runs, text: []), "empty list"),
        (rle_entry(lambda runs, text: [[5]]), "other than numbers"),
        (rle_entry(lambda runs, text: [5.5, 1]), "not whole"),
        (rle_entry(lambda runs, text: [True, 5]), "other than numbers"),
        (rle_entry(lambda runs, text: [2**62, 2**62]), "longer than"),
        (rle_entry(lambda runs, text: [10**400]), "usable numbers"),
        (rle_entry(lambda runs, text: [float("nan")]), "longer than"),
        (rle_entry(lambda runs, text: [-5, *runs]), "negative"),
        (rle_entry(lambda runs, text: [*runs, 7]), "add up to 2407, not 2400"),
        (rle_entry(lambda runs, text: runs[:4]), "add up to"),
        (rle_entry(lambda runs, text: [HEIGHT * WIDTH]), "covers no pixel"),
        (rle_entry(lambda runs, text: "o" * 12 + "0" + text), "malformed RLE"),
        (rle_entry(lambda runs, text: text[:-1] + "o"), "inside a number"),
        (rle_entry(lambda runs, text: "\x7f\x7f!!"), "outside the code"),
        (rle_entry(lambda runs, text: base64.b64encode(text.encode()).decode()), "base64"),
        (rle_entry(lambda runs, text: runs, size=40), "RLE size is the number 40"),
        (rle_entry(lambda runs, text: runs, size=(40, 61)), "RLE size 40x61, image is 40x60"),
        (rle_entry(lambda runs, text: runs, size=["a", 60]), "RLE size is the text 'a'"),
        (
            lambda content: (
                rle_entry(lambda runs, text: runs, size=(WIDTH, HEIGHT))(content),
                content["annotations"][0].pop("bbox"),
            ),
            "no box shows",
        ),
    ],
)
def test_rle_that_is_none_of_its_image_is_one_line(edit: Edit, words: str, tmp_path: Path) -> None:
    assert words in refusal(write_coco(tmp_path, edit))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "utf-32"])
def test_any_unicode_encoding_is_read(encoding: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    assert_as_drawn(read(write_json(tmp_path / "a.json", coco_content(), encoding)))


def placed(root: Path, images: str, file: str, file_name: str = "{}.png") -> Path:
    write_images(root / images)
    return write_json(root / file, coco_content(file_name.format))


@pytest.mark.parametrize(
    ("images", "file", "file_name", "layout"),
    [
        (".", "annotations.json", "{}.png", "COCO instances"),
        ("images", "annotations.json", "{}.png", "COCO instances"),
        ("images", "result.json", "images/{}.png", "Label Studio"),
        ("images", "result.json", "images\\{}.png", "Label Studio"),
        ("images", "annotations/instances_default.json", "{}.png", "CVAT"),
        ("train2017", "annotations/instances_train2017.json", "{}.png", "annotations/"),
        ("images/train", "annotations/instances_train.json", "{}.png", "annotations/"),
        ("data", "labels.json", "{}.png", "FiftyOne"),
        ("photos", "whatever.json", "{}.png", "COCO instances"),
        ("images", "images/_annotations.coco.json", "{}.png", "Roboflow"),
        ("images", "annotations/instances_default.json", "./images/{}.png", "CVAT"),
    ],
)
def test_layouts_of_tools_are_found_by_their_folder_and_by_their_file(
    images: str, file: str, file_name: str, layout: str, tmp_path: Path
) -> None:
    path = placed(tmp_path, images, file, file_name)
    for source in (tmp_path, path):
        raw = read(source)
        assert_as_drawn(raw)
        assert layout in raw.layout or source == path
        assert raw.remarks == ()


@pytest.mark.parametrize(
    ("file_name", "remark"),
    [
        ("../../label-studio/data/media/upload/1/{}.png", "path does not exist here"),
        ("/home/anna/set/{}.png", "path does not exist here"),
        ("C:\\labels\\{}.png", "path does not exist here"),
        ("https://host/x/{}.png", "path does not exist here"),
        ("upload/0a1b2c3d-{}.png", "path does not exist here"),
        ("elsewhere/%70{}.png", None),
        ("{}.PNG", "upper and lower case"),
    ],
)
def test_a_file_name_of_another_place_is_found_by_its_last_part(
    file_name: str, remark: str | None, tmp_path: Path
) -> None:
    if remark is None:
        write_images(tmp_path / "images", ("pp0", "pp1", "pp2"))
        assert len(read(write_json(tmp_path / "a.json", coco_content(file_name.format))).images) == 3
        return
    raw = read(placed(tmp_path, "images", "a.json", file_name))
    assert_as_drawn(raw)
    assert any(remark in said for said in raw.remarks)


def test_a_name_outside_the_root_is_never_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere")
    (tmp_path / "set").mkdir()
    path = write_json(tmp_path / "set" / "a.json", coco_content("../elsewhere/{}.png".format))
    assert "no such file under" in refusal(path)
    assert "no such file under" in refusal(
        write_json(path, coco_content(lambda name: str(tmp_path / "elsewhere" / f"{name}.png")))
    )
    for name in ("p0", "p1", "p2"):
        (tmp_path / "set" / f"{name}.png").symlink_to(tmp_path / "elsewhere" / f"{name}.png")
    write_json(path, coco_content())
    assert "leads outside" in refusal(path)
    assert_as_drawn(read(path, follow_links=True))


def test_equal_last_parts_are_told_apart_by_the_folders_that_are_left(tmp_path: Path) -> None:
    for number, folder in enumerate(("a", "b", "c")):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture(number)).save(tmp_path / folder / "001.png")
    names = dict(zip(("p0", "p1", "p2"), "abc", strict=True))
    raw = read(write_json(tmp_path / "x.json", coco_content(lambda name: f"/mnt/cam/{names[name]}/001.png")))
    assert [image.file_name for image in raw.images] == ["a/001.png", "b/001.png", "c/001.png"]
    elsewhere = write_json(
        tmp_path / "y.json", coco_content(lambda name: "/mnt/001.png" if name == "p0" else f"{names[name]}/001.png")
    )
    assert "may be a/001.png or b/001.png" in refusal(elsewhere)


def test_equal_names_in_two_folders_are_not_guessed_at(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_images(tmp_path / folder)
    assert "may be a/p0.png or b/p0.png" in refusal(write_json(tmp_path / "x.json", coco_content()))
    assert_as_drawn(read(tmp_path / "x.json", image_root=tmp_path / "b"))


def test_names_with_decomposed_letters_are_found(tmp_path: Path) -> None:
    names = {name: f"prü-{name}.png" for name in ("p0", "p1", "p2")}
    write_images(tmp_path)
    for name, new in names.items():
        (tmp_path / f"{name}.png").rename(tmp_path / unicodedata.normalize("NFD", new))
    raw = read(write_json(tmp_path / "a.json", coco_content(names.__getitem__)))
    assert len(raw.images) == 3
    assert raw.remarks == ()


@pytest.mark.parametrize(
    "folders",
    ["annotations/instances_{}.json", "annotations/instances_{}2017.json", "{}/_annotations.coco.json", "{}.json"],
)
def test_one_file_per_subset_keeps_the_subsets(folders: str, tmp_path: Path) -> None:
    beside = folders.startswith("{}/")
    for subset, name in (("train", "p0"), ("valid" if beside else "val", "p1"), ("test", "p2")):
        content = coco_content()
        content["images"] = [image for image in content["images"] if image["file_name"] == f"{name}.png"]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] == content["images"][0]["id"]]
        write_json(tmp_path / folders.format(subset), content)
        write_images(tmp_path / subset if beside else tmp_path / "images")
    if beside:
        for subset, others in (("train", ("p1", "p2")), ("valid", ("p0", "p2")), ("test", ("p0", "p1"))):
            for name in others:
                (tmp_path / subset / f"{name}.png").unlink()
    raw = read(tmp_path)
    assert_as_drawn(raw)
    assert [image.subset for image in raw.images if Path(image.file_name).stem == "p0"] == ["train"]
    assert {image.subset for image in raw.images} == {"train", "val", "test"}
    assert raw.class_names == ("scratch", "dent")


def test_images_that_no_entry_lists_are_left_out_unless_the_import_asks(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    write_images(tmp_path, ("p0", "p1", "p2", "x1", "x2"))
    (tmp_path / "._x3.png").write_bytes(b"litter")
    raw = read(path)
    assert_as_drawn(raw)
    assert raw.remarks[0].startswith("2 images")
    assert "x1.png" in raw.remarks[0]
    assert "x1.png" in refusal(path, unlabelled="refuse")
    asked = read(path, unlabelled="defect-free")
    assert [image.file_name for image in asked.images if image.is_defect_free] == ["p2.png", "x1.png", "x2.png"]


@pytest.mark.parametrize(
    "edit", [first("images", height="tall"), first("images", height=HEIGHT + 1), first("images", id=[])]
)
def test_an_image_whose_entry_is_bad_is_never_taken_as_defect_free(edit: Edit, tmp_path: Path) -> None:
    raw = read(write_coco(tmp_path, edit), skip_bad=True, unlabelled="defect-free")
    assert [image.file_name for image in raw.images] == ["p1.png", "p2.png"]
    without_name = write_coco(tmp_path, first("images", file_name=None))
    assert len(read(without_name, skip_bad=True, unlabelled="defect-free").images) == 2


def test_a_file_that_is_missing_in_its_folder_is_not_replaced_by_one_of_its_name(tmp_path: Path) -> None:
    path = write_coco(tmp_path, each("images", file_name=lambda name: f"left/{name}"))
    (tmp_path / "left").mkdir()
    write_images(tmp_path / "right")
    for name in ("p1.png", "p2.png"):
        (tmp_path / name).rename(tmp_path / "left" / name)
    (tmp_path / "p0.png").unlink()
    assert "'left/p0.png': no such file" in refusal(path)
    bare = write_coco(tmp_path / "other")
    (tmp_path / "other" / "old").mkdir()
    (tmp_path / "other" / "p0.png").rename(tmp_path / "other" / "old" / "p0.png")
    assert "'p0.png': no such file" in refusal(bare)


def test_names_without_a_suffix_are_found(tmp_path: Path) -> None:
    assert_as_drawn(read(write_coco(tmp_path, each("images", file_name=lambda name: f"frames/{name[:-4]}"))))


def test_remarks_name_no_absolute_path(tmp_path: Path) -> None:
    def edit(content: Content) -> None:
        each("annotations", id=1)(content)
        first("annotations", segmentation=[[-3.0, 5, 20, 5, 20, 30, -3, 30], [1.0, 1, 2, 2]])(content)
        each("images", file_name=lambda name: f"/mnt/{name}")(content)

    raw = read(write_coco(tmp_path, edit))
    assert len(raw.remarks) >= 4
    assert str(tmp_path) not in " ".join(raw.remarks)


def test_a_quarter_turn_is_named_where_annotations_are_of_the_unturned_image(tmp_path: Path) -> None:
    path = write_coco(tmp_path, each("images", file_name=lambda name: name.replace("png", "jpg")))
    for number, name in enumerate(("p0", "p1", "p2")):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(picture(number)).save(tmp_path / f"{name}.jpg", exif=exif)
    assert "EXIF" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000, '{"a": 1}', "\0\0", '{"images": 3}'])
def test_a_file_that_is_no_coco_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    assert "a.json" in refusal(tmp_path / "a.json")
    with pytest.raises(AnnotationError):
        load_coco(tmp_path / "a.json")


def test_other_tools_json_is_not_taken_for_coco(tmp_path: Path) -> None:
    write_json(tmp_path / "notes.json", {"categories": [{"id": 0, "name": "dent"}], "info": {"year": 2026}})
    assert not looks_like_coco(tmp_path / "notes.json")


def test_there_is_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        read(tmp_path / "nowhere.json")


def test_what_is_saved_is_loaded_again_with_equal_masks_and_opens_in_pycocotools(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    write_images(tmp_path / "images")
    noise = np.random.default_rng(0).random(SIZE_HW) < 0.4
    instances = [
        (1, Instance(category_id=1, rle=encode(noise))),
        (2, Instance(category_id=2, rle=encode(truth()["p1"]), is_crowd=True)),
    ]
    images = [
        (n, f"{name}.png", SIZE_HW, {"group": "g", "subset": "val"})
        for n, name in enumerate(("p0", "p1", "p2"), start=1)
    ]
    save_coco(tmp_path / "a.json", [Category(id=1, name="scratch"), Category(id=2, name="dent")], images, instances)
    raw = load_coco(tmp_path / "a.json")
    assert [[i.rle for i in image.instances] for image in raw.images] == [
        [instances[0][1].rle],
        [instances[1][1].rle],
        [],
    ]
    assert [image.subset for image in raw.images] == ["val"] * 3
    assert raw.images[1].instances[0].is_crowd
    truth_of = COCO(str(tmp_path / "a.json"))
    assert np.array_equal(truth_of.annToMask(truth_of.loadAnns([1])[0]).astype(bool), noise)
    annotation = json.loads((tmp_path / "a.json").read_text())["annotations"][1]
    mask = decode(instances[1][1].rle)
    assert annotation["area"] == mask.sum()
    assert annotation["bbox"][2:] == [int(np.ptp(np.nonzero(mask)[1])) + 1, int(np.ptp(np.nonzero(mask)[0])) + 1]


def test_rle_sets_are_read_as_drawn(tmp_path: Path) -> None:
    assert_as_drawn(read(write_coco_rle(tmp_path)))
    assert set(RINGS) == {"p0", "p1"}


def test_a_loop_of_links_beside_the_images_is_passed_over(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    (tmp_path / "images").mkdir(exist_ok=True)
    for image in list(tmp_path.rglob("p*.png"))[:1]:
        (image.parent / "loop.png").symlink_to("loop.png")
    assert_as_drawn(read(path))
