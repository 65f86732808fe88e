"""YOLO segmentation: data.yaml of every kind, where labels lie, what they hold."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import AnnotationError, InputError
from defectory.formats.writers.yolo import label_line, outlines_of
from defectory.formats.yolo_yaml import load_data_yaml
from defectory.rle import decode, encode

from .folder_sets import SIZE_HW, box, by_name, load, picture, union, write, yolo_set

LINE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n"
"""A rectangle over the middle half."""


def middle() -> np.ndarray:
    return box(9, 6, 18, 12)


def labelled(
    root: Path, images: str, labels: str, yaml: str | None, *, count: int = 3, at: str = "data.yaml", first: int = 0
) -> Path:
    for number in range(first, first + count):
        write(root / images / f"y{number}.png", picture(number))
        write(root / labels / f"y{number}.txt", LINE)
    return root / at if yaml is None else write(root / at, yaml)


def test_outlines_are_read_and_empty_files_say_defect_free(tmp_path: Path) -> None:
    raw = load(yolo_set(tmp_path))
    assert raw.class_names == ("scratch", "dent")
    assert [image.is_defect_free for image in raw.images] == [False] * 4 + [True] * 2
    assert raw.remarks == ()
    assert {image.subset for image in raw.images} == {None}


@pytest.mark.parametrize(
    ("images", "labels", "yaml", "at"),
    [
        ("images", "labels", "names: [a]\ntrain: images\n", "data.yaml"),
        ("images", "labels", "names: [a]\n", "data.yaml"),
        ("Images", "Labels", "names: [a]\ntrain: Images\n", "data.yaml"),
        ("images/train", "labels/train", "names: [a]\ntrain: images/train\n", "data.yaml"),
        ("train/images", "train/labels", "names: [a]\ntrain: ../train/images\n", "data.yaml"),
        ("train/images", "train/labels", "names: [a]\ntrain: train\n", "data.yaml"),
        ("train/images", "train/labels", "names: [a]\n", "data.yaml"),
        ("images", "images", "names: [a]\ntrain: images\n", "data.yaml"),
        (".", ".", "names: [a]\ntrain: .\n", "data.yaml"),
        ("set/images", "set/labels", "path: ../set\nnames: [a]\ntrain: images\n", "cfg/data.yaml"),
        ("images", "labels", "path: C:\\data\\set\nnames: [a]\ntrain: images\n", "data.yaml"),
        ("images", "labels", "path: /home/anna/nowhere/set\nnames: [a]\ntrain: images\n", "data.yaml"),
        ("train/images", "train/labels", "names: [a]\ntrain: /content/drive/MyDrive/set/train/images\n", "data.yaml"),
        ("images", "labels", "names: [a]\ntrain: [images]\nval:\n", "my set.yaml"),
        ("images/train", "labels/train", "names: [a]\ntrain: .\\images\\train\n", "data.yml"),
    ],
)
def test_images_and_labels_are_found_wherever_tools_put_them(
    tmp_path: Path, images: str, labels: str, yaml: str, at: str
) -> None:
    raw = load(labelled(tmp_path, images, labels, yaml, at=at))
    assert len(raw.images) == 3
    for image in raw.images:
        found = union(image, "a")
        assert (found & middle()).sum() / (found | middle()).sum() > 0.9
    assert load((tmp_path / at).parent).class_names == ("a",)


def test_roboflow_subsets_are_the_data_own_split_and_copies_one_group(tmp_path: Path) -> None:
    for at, subset in enumerate(("train", "valid", "test")):
        for copy in range(2):
            stem = f"p{at}_jpg.rf.{copy}{'ab01' * 7}"
            write(tmp_path / subset / "images" / f"{stem}.jpg", picture(at))
            write(tmp_path / subset / "labels" / f"{stem}.txt", LINE)
    write(
        tmp_path / "data.yaml",
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 1\nnames: ['a']\n",
    )
    write(tmp_path / "README.roboflow.txt", "exported\n")
    raw = load(tmp_path / "data.yaml")
    assert [image.subset for image in raw.images] == ["train", "train", "val", "val", "test", "test"]
    assert len({image.group for image in raw.images}) == 3


def test_names_with_composed_and_decomposed_letters_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "images" / f"{unicodedata.normalize('NFD', 'prüf')}.png", picture(0))
    write(tmp_path / "labels" / f"{unicodedata.normalize('NFC', 'prüf')}.txt", LINE)
    write(tmp_path / "data.yaml", "names: [a]\n")
    assert len(load(tmp_path).images) == 1


def test_lists_of_images_are_subsets(tmp_path: Path) -> None:
    labelled(tmp_path, "images", "labels", None, count=4)
    write(tmp_path / "train.txt", "./images/y0.png\nimages/y1.png\r\n/home/anna/set/images/y2.png\n\n")
    write(tmp_path / "val.txt", "images\\y3.png\n")
    raw = load(write(tmp_path / "data.yaml", "names: {0: a}\ntrain: train.txt\nval: val.txt\n"))
    assert [image.subset for image in raw.images] == ["train", "train", "train", "val"]


def test_a_list_cannot_name_images_outside_the_set(tmp_path: Path) -> None:
    labelled(tmp_path / "set", "images", "labels", None)
    secret = write(tmp_path / "private.png", picture(9))
    write(tmp_path / "set" / "train.txt", f"images/y0.png\n{secret}\n../private.png\n")
    path = write(tmp_path / "set" / "data.yaml", "names: [a]\ntrain: train.txt\n")
    with pytest.raises(AnnotationError, match=r"train\.txt:2: no image file"):
        load(path)
    raw = load(path, skip_bad=True)
    assert [image.file_name for image in raw.images] == ["y0.png"]
    assert len(raw.rejected) == 2


def test_images_named_in_two_subsets_have_no_split(tmp_path: Path) -> None:
    raw = load(labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\nval: images\n"))
    assert {image.subset for image in raw.images} == {None}
    assert any("same images" in remark for remark in raw.remarks)


def test_classes_txt_serves_without_a_yaml(tmp_path: Path) -> None:
    labelled(tmp_path, "images", "labels", None)
    write(tmp_path / "labels" / "classes.txt", "\ufeffscratch\r\ndent\r\n")
    raw = load(tmp_path)
    assert raw.class_names == ("scratch",)
    assert len(raw.images) == 3


def test_images_without_a_label_file_are_not_defect_free(tmp_path: Path) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\n")
    write(tmp_path / "images" / "more.png", picture(40))
    raw = load(path)
    assert "more.png" not in by_name(raw)
    assert any("1 image without a label file left out (first: more.png" in remark for remark in raw.remarks)
    with pytest.raises(AnnotationError, match="1 image has no label file"):
        load(path, unlabelled="refuse")
    assert by_name(load(path, unlabelled="defect-free"))["more.png"].is_defect_free


def test_label_files_without_an_image_are_one_line_and_litter_is_not(tmp_path: Path) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\n")
    for litter in ("classes.txt", "README.txt", "labels.cache"):
        write(tmp_path / "labels" / litter, "a\n")
    assert len(load(path).images) == 3
    write(tmp_path / "labels" / "gone.txt", LINE)
    with pytest.raises(AnnotationError, match=r"^labels/gone\.txt: a label file without an image"):
        load(path)
    assert [entry.id for entry in load(path, skip_bad=True).rejected] == ["labels/gone.txt"]


def test_two_label_files_that_differ_are_refused(tmp_path: Path) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\n")
    write(tmp_path / "images" / "y0.txt", LINE)
    assert len(load(path).images) == 3
    write(tmp_path / "images" / "y0.txt", "0 0.1 0.1 0.2 0.1 0.2 0.2\n")
    with pytest.raises(AnnotationError, match="2 label files that differ"):
        load(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be", "cp1252"])
def test_labels_and_yaml_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    labelled(tmp_path, "images", "labels", None)
    for path in (tmp_path / "labels").glob("*.txt"):
        path.write_bytes(LINE.encode(encoding))
    write(tmp_path / "data.yaml", "train: images\nnames: [größe]\n".encode(encoding))
    assert load(tmp_path).class_names == ("größe",)


@pytest.mark.parametrize(
    "line",
    [
        "0.0 .25 .25 .75 .25 .75 .75 .25 .75",
        "0\t0.25\t0.25\t0.75\t0.25\t0.75\t0.75\t0.25\t0.75",
        "0 0.25,0.25 0.75,0.25 0.75,0.75 0.25,0.75",
    ],
)
def test_numbers_may_be_written_in_other_ways(tmp_path: Path, line: str) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\n")
    write(tmp_path / "labels" / "y0.txt", line)
    assert len(load(path).images[0].instances) == 1


LINES = {
    "0 0.5 0.5 0.2 0.1": "box",
    "3 0.1 0.1 0.5 0.1 0.5 0.5": "class 3 is not in data.yaml",
    "-1 0.1 0.1 0.5 0.1 0.5 0.5": "class -1",
    "0.5 0.1 0.1 0.5 0.1 0.5 0.5": r"class 0\.5",
    "scratch 0.1 0.1 0.5 0.1 0.5 0.5": "something other than numbers",
    "0 0.1 0.1 0.5 0.1 0.5 0.5 0.7": "even count",
    "0 10 10 50 10 50 50": "0 to 1 is expected",
    "0 nan 0.1 0.5 0.1 0.5 0.5": "finite",
    "0 1e999 0.1 0.5 0.1 0.5 0.5": "0 to 1|finite",
    "nan 0.1 0.1 0.5 0.1 0.5 0.5": "class nan",
    "1e400 0.1 0.1 0.5 0.1 0.5 0.5": "class 1e400",
    "0 0.1 0.1 0.5": "point|number",
    "0": "point|number",
}


@pytest.mark.parametrize("line", LINES)
def test_a_bad_label_line_is_one_line_with_its_number(tmp_path: Path, line: str) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\n")
    write(tmp_path / "labels" / "y1.txt", f"{LINE}{line}\n")
    with pytest.raises(AnnotationError, match=LINES[line]) as caught:
        load(path)
    assert str(caught.value).startswith("labels/y1.txt:2: ")
    assert len(load(path, skip_bad=True).images) == 2


def test_an_outline_a_little_outside_is_clipped_and_said(tmp_path: Path) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\n")
    write(tmp_path / "labels" / "y0.txt", "0 -0.06 0.25 0.75 0.25 0.75 0.75 -0.06 0.75\n")
    raw = load(path)
    assert union(raw.images[0], "a")[10, 0]
    assert any("left border" in remark for remark in raw.remarks)


NAMES = {
    "names: crack": ("crack",),
    "names: [scratch, dent]": ("scratch", "dent"),
    "names: {0: scratch, 1: dent}": ("scratch", "dent"),
    'names: {"0": scratch, "1": dent}': ("scratch", "dent"),
    "names:\n  0: scratch\n  4: dent": ("scratch", "dent"),
    "names:\n- no\n- on\n- 12\n- 1.0": ("no", "on", "12", "1.0"),
    "base: &b scratch\nnames: [*b, dent]": ("scratch", "dent"),
    "names: ['weld [/x]', \"a: b\"]": ("weld [/x]", "a: b"),
}


@pytest.mark.parametrize("text", NAMES)
def test_names_are_a_list_a_mapping_or_one_name(tmp_path: Path, text: str) -> None:
    assert tuple(load_data_yaml(write(tmp_path / "data.yaml", text)).names.values()) == NAMES[text]


BOMB = "".join(f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
BAD_YAML = {
    "names: {scratch: 0, dent: 1}": "'scratch' where the number of a class is expected",
    "names: [dent, dent]": "'dent' twice",
    "names: [a, [b]]": "class 1 is a list",
    "names: [a, '']": "class 1",
    "names: [a, null]": "class 1",
    "names:": "class 0",
    "names: []": "0 classes",
    "names: {}": "0 classes",
    "names: {-1: a}": "'-1'",
    "names: {1.5: a}": r"'1\.5'",
    "names: {1: a, 01: b}": "twice",
    "names: [a]\nnames: [b]": "key 'names' twice",
    "train: images": "no class list 'names'",
    "- a\n- b": "a list, but a mapping",
    "just text": "the text 'just text'",
    "": "nothing",
    "names: [a": "is not YAML",
    "names:\n\t- a": "spaces, not tabs",
    "names: [a]\nnc: two": "nc is 'two'",
    "names: [a]\nnc: [1]": "nc is",
    "names: [a]\ntrain: {a: b}": "train is a mapping",
    "names: [a]\npath: [x]": "path is a list",
    "names: *nothing": "refers to nothing|undefined alias|not YAML",
    f"a: &a [x]\n{BOMB}names: *i": "aliases",
    "names: " + "[" * 60_000: "nested|YAML",
    "names: [a]\nx: " + "{a: " * 5_000: "nested|YAML",
    "? [a, b]\n: c\nnames: [a]": "key that is a list",
    "names: !!python/object/apply:os.system [echo]": "",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:30])
def test_a_bad_yaml_is_one_line_and_fast(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "data.yaml", text)
    began = time.process_time()
    if BAD_YAML[text]:
        with pytest.raises(AnnotationError, match=BAD_YAML[text]) as caught:
            load_data_yaml(path)
        assert "\n" not in str(caught.value)
    else:
        # tags construct nothing
        assert load_data_yaml(path).names == {0: "echo"}
    assert time.process_time() - began < 2


def test_a_count_that_differs_is_said(tmp_path: Path) -> None:
    raw = load(labelled(tmp_path, "images", "labels", "names: [a, b]\nnc: 1\ntrain: images\n"))
    assert any("nc is 1, names lists 2 classes" in remark for remark in raw.remarks)


def test_a_subset_that_is_not_there(tmp_path: Path) -> None:
    path = labelled(tmp_path, "images", "labels", "names: [a]\ntrain: images\ntest: nowhere\n")
    assert any("'nowhere' does not exist" in remark for remark in load(path).remarks)
    write(path, "names: [a]\ntrain: nowhere\n")
    with pytest.raises(AnnotationError, match="'nowhere' does not exist"):
        load(path)


def test_equal_names_in_several_folders_stay_distinct(tmp_path: Path) -> None:
    for at, folder in enumerate(("images", "more/images", ".")):
        write(tmp_path / folder / "y0.png", picture(at))
        write(tmp_path / folder / "y0.txt", LINE)
    raw = load(write(tmp_path / "data.yaml", "names: [a]\ntrain: [images, more/images, .]\n"))
    assert {image.file_name for image in raw.images} == {"images/y0.png", "more/images/y0.png", "y0.png"}
    for at, folder in enumerate(("a", "b")):
        write(tmp_path / "x" / folder / "images" / "y0.png", picture(at))
        write(tmp_path / "x" / folder / "labels" / "y0.txt", LINE)
    raw = load(write(tmp_path / "x" / "cfg" / "data.yaml", "names: [a]\ntrain: [../a/images, ../b/images]\n"))
    assert len({image.file_name for image in raw.images}) == 2
    assert not any(".." in image.file_name for image in raw.images)


def test_linked_images_are_read_only_with_follow_links(tmp_path: Path) -> None:
    real = labelled(tmp_path / "real", "images", "labels", "names: [a]\ntrain: images\n").parent
    root = tmp_path / "set"
    path = labelled(root, "images", "labels", "names: [a]\ntrain: images\n", first=10)
    (root / "images" / "y0.png").symlink_to(real / "images" / "y0.png")
    write(root / "labels" / "y0.txt", LINE)
    raw = load(path)
    assert len(raw.images) == 3
    assert any("--follow-links" in remark for remark in raw.remarks)
    assert len(load(path, follow_links=True).images) == 4


def test_an_image_root_may_be_given(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "pictures" / f"y{number}.png", picture(number))
        write(tmp_path / "set" / "labels" / f"y{number}.txt", LINE)
    write(tmp_path / "set" / "data.yaml", "names: [a]\n")
    assert len(load(tmp_path / "set" / "data.yaml", image_root=tmp_path / "pictures").images) == 3


def test_names_of_300_characters_in_a_list_are_one_line(tmp_path: Path) -> None:
    labelled(tmp_path, "images", "labels", None)
    write(tmp_path / "train.txt", f"images/{'x' * 300}.png\n")
    with pytest.raises(InputError, match="no image file"):
        load(write(tmp_path / "data.yaml", "names: [a]\ntrain: train.txt\n"))


def test_labels_round_trip(tmp_path: Path) -> None:
    truth = box(5, 4, 20, 12)
    write(tmp_path / "images" / "a.png", picture(0))
    (ring,) = outlines_of(encode(truth)).rings
    write(tmp_path / "labels" / "a.txt", label_line(0, ring, SIZE_HW))
    write(tmp_path / "data.yaml", "names: [a]\n")
    (image,) = load(tmp_path).images
    assert np.array_equal(decode(image.instances[0].rle), truth)
