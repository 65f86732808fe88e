"""`import`: names, copies, equal content, classes, remarks, and folders that are not touched."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from defectory.artifacts.dataset import Dataset
from defectory.dataset.config import DataConfig
from defectory.dataset.importer import ImportResult, import_dataset
from defectory.dataset.intake import safe_names
from defectory.errors import ConfigError, InputError, OutputError
from defectory.formats import registry
from defectory.formats.raw import LoadOptions, RawDataset
from defectory.formats.registry import Format

HEIGHT, WIDTH = 40, 60
RING = [8.0, 10.0, 30.0, 7.0, 33.0, 16.0, 10.0, 19.0]
Content = dict[str, Any]


def picture(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(60, 200, (HEIGHT, WIDTH, 3), np.uint8)


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path)


def coco(names: list[str], *, labelled: int = 2) -> Content:
    images = [{"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH} for n, name in enumerate(names)]
    annotations = [
        {"id": n, "image_id": n, "category_id": n % 2, "segmentation": [RING], "iscrowd": 0} for n in range(labelled)
    ]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 0, "name": "scratch"}, {"id": 1, "name": "dent"}],
    }


def write(
    root: Path, names: list[str], edit: Callable[[Content], object] = lambda content: None, **options: Any
) -> Path:
    for number, name in enumerate(names):
        write_image(root / name, number)
    content = coco(names, **options)
    edit(content)
    (root / "annotations.json").write_text(json.dumps(content))
    return root / "annotations.json"


def imported(path: Path, out: Path, **options: Any) -> ImportResult:
    return import_dataset(DataConfig(path=str(path), **options), out)


def refusal(path: Path, out: Path, **options: Any) -> str:
    before = tree_of(path.parent)
    with pytest.raises(InputError) as caught:
        imported(path, out, **options)
    assert "\n" not in str(caught.value)
    assert tree_of(path.parent) == before
    return str(caught.value)


def tree_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


PLAIN = ["a.png", "b.png", "c.png"]


def test_images_are_copied_byte_for_byte_and_their_digests_kept(tmp_path: Path) -> None:
    dataset = imported(write(tmp_path / "set", PLAIN), tmp_path / "out").dataset
    for record in dataset.images:
        data = (tmp_path / "out" / "images" / record.file_name).read_bytes()
        assert data == (tmp_path / "set" / record.file_name).read_bytes()
        assert record.sha256 == hashlib.sha256(data).hexdigest()
    assert dataset == Dataset.load(tmp_path / "out" / "dataset.json")
    assert (dataset.layout, dataset.remarks, dataset.value_range) == ("COCO instances", (), None)


def test_the_data_set_is_the_same_wherever_the_source_lies(tmp_path: Path) -> None:
    def edit(content: Content) -> None:
        content["annotations"][0]["segmentation"].append([1.0, 1.0, 2.0, 2.0])
        content["images"][2]["file_name"] = "/mnt/c.png"

    one = imported(write(tmp_path / "one", PLAIN, edit), tmp_path / "a").dataset
    other = imported(write(tmp_path / "deep" / "other", PLAIN, edit), tmp_path / "b").dataset
    assert one == other
    assert len(one.remarks) == 2
    assert (tmp_path / "a" / "dataset.json").read_bytes() == (tmp_path / "b" / "dataset.json").read_bytes()


def test_a_data_set_of_ours_is_imported_again_to_the_same_data_set(tmp_path: Path) -> None:
    def edit(content: Content) -> None:
        content["images"][0]["group"] = 0

    first = imported(write(tmp_path / "set", ["l/a.png", "r/a.png", "c.png"], edit), tmp_path / "one")
    again = imported(tmp_path / "one", tmp_path / "two")
    assert again.layout == "Defectory data set"
    assert again.dataset.images == first.dataset.images
    assert [record.group for record in again.dataset.images] == ["0", "r/a", "c"]


def test_equal_names_in_two_folders_stay_two_images(tmp_path: Path) -> None:
    dataset = imported(write(tmp_path / "set", ["left/001.png", "right/001.png", "c.png"]), tmp_path / "out").dataset
    assert [record.file_name for record in dataset.images] == ["left/001.png", "right/001.png", "c.png"]
    for number, record in enumerate(dataset.images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "images" / record.file_name)), picture(number))


def test_names_that_differ_in_capitals_alone_are_told_apart(tmp_path: Path) -> None:
    dataset = imported(write(tmp_path / "set", ["A.png", "a.png", "X/b.png", "x/B.png"]), tmp_path / "out").dataset
    assert len({record.file_name.casefold() for record in dataset.images}) == 4
    for number, record in enumerate(dataset.images):
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "images" / record.file_name)), picture(number))
    assert any("2 images get file names" in remark for remark in dataset.remarks)


@pytest.mark.parametrize(
    "name", ["aux.png", "a:b?.png", "x" * 200 + ".png", "dot./a.png", "tab\there.png", "prüfung 7.PNG", ".hidden/a.png"]
)
def test_names_that_some_system_cannot_hold_are_changed_and_keep_their_suffix(name: str, tmp_path: Path) -> None:
    dataset = imported(write(tmp_path / "set", [name, "b.png", "c.png"]), tmp_path / "out").dataset
    kept = dataset.images[0].file_name
    assert kept.lower().endswith(".png")
    assert all(len(part.encode()) <= 125 and not set(part) & set(':?\t"<>|*') for part in kept.split("/"))
    assert (tmp_path / "out" / "images" / kept).is_file()
    assert (kept != name) == any("file name" in remark for remark in dataset.remarks)


@given(
    st.lists(
        st.text(st.sampled_from("aA/.-2é \\:"), min_size=1, max_size=8).filter(
            lambda t: t.strip("/.") != "" and ".." not in t
        ),
        max_size=12,
    )
)
def test_safe_names_are_distinct_and_none_is_the_folder_of_another(names: list[str]) -> None:
    safe = safe_names([f"{name.strip('/')}.png" for name in names])
    assert len({name.casefold() for name in safe}) == len(names)
    folders = {"/".join(name.casefold().split("/")[:n]) for name in safe for n in range(1, name.count("/") + 1)}
    assert not folders & {name.casefold() for name in safe}
    assert not any(part in ("", ".", "..") for name in safe for part in name.split("/"))


@pytest.mark.parametrize("group", [0, False, "0"])
def test_group_0_is_a_group(group: object, tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN, lambda content: [image.update(group=group) for image in content["images"]])
    assert len({record.group for record in imported(path, tmp_path / "out").dataset.images}) == 1


@pytest.mark.parametrize(
    "name", ["../../../x", "/etc", "", "weld [/x]", "CON", "long " * 60 + "end", "\x1b[2Jred", "裂纹", "a/b"]
)
def test_class_names_are_any_text(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN, lambda content: content["categories"][0].update(name=name))
    dataset = imported(path, tmp_path / "out").dataset
    assert [category.name for category in dataset.categories] == [name, "dent"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "set"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")) == [
        "annotations.json",
        "dataset.json",
        "images",
    ]


def test_spaces_around_class_names_are_left_out_and_equal_names_become_one_class(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN, lambda content: content["categories"][0].update(name=" dent "))
    result = imported(path, tmp_path / "out")
    assert [category.name for category in result.dataset.categories] == ["dent"]
    assert {i.category_id for record in result.dataset.images for i in record.instances} == {1}
    assert result.remarks == ("class ' dent ' is read as 'dent'", "2 classes are called 'dent' and are merged")


def test_half_characters_are_written_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "set",
        PLAIN,
        lambda content: (content["categories"][0].update(name="x\ud800"), content["images"][0].update(group="\udfff")),
    )
    dataset = imported(path, tmp_path / "out").dataset
    assert dataset.categories[0].name == "x\\ud800"
    assert dataset.images[0].group == "\\udfff"


def test_wanted_classes_are_kept_and_images_of_other_defects_are_left_out(tmp_path: Path) -> None:
    dataset = imported(write(tmp_path / "set", PLAIN), tmp_path / "out", classes=("dent ",)).dataset
    assert [record.file_name for record in dataset.images] == ["b.png", "c.png"]
    with pytest.raises(ConfigError, match="'hole' is not a class"):
        imported(tmp_path / "set" / "annotations.json", tmp_path / "other", classes=("hole",))


@pytest.mark.parametrize("out", [".", "set", "set/images", "set/../set"])
def test_an_out_folder_that_is_or_holds_the_source_is_refused(out: str, tmp_path: Path) -> None:
    write(tmp_path / "set" / "images", PLAIN)
    (tmp_path / "notes.txt").write_text("mine")
    before = tree_of(tmp_path)
    with pytest.raises(OutputError, match=r"to import from|to be imported"):
        imported(tmp_path / "set" / "images" / "annotations.json", tmp_path / out)
    assert tree_of(tmp_path) == before


def test_an_out_folder_that_holds_the_defect_free_images_is_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "more" / "good" / "x.png", 9)
    with pytest.raises(OutputError, match="contains"):
        imported(write(tmp_path / "set", PLAIN), tmp_path / "more", defect_free=str(tmp_path / "more" / "good"))
    assert (tmp_path / "more" / "good" / "x.png").is_file()


def test_an_out_folder_with_a_users_files_is_refused_and_one_inside_the_source_is_made(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert "mine" in refusal(path, tmp_path / "mine")
    first = imported(path, tmp_path / "set" / "data").dataset
    # and is no part of the source, the next time
    write(tmp_path / "set", PLAIN, lambda content: content["images"][2].update(file_name="/mnt/c.png"))
    again = imported(path, tmp_path / "set" / "data").dataset
    assert again.images == first.images


def test_defect_free_images_that_are_the_labelled_ones_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    said = refusal(path, tmp_path / "out", defect_free=str(tmp_path / "set"))
    assert "2 defect-free images have the content of labelled ones" in said
    assert "a.png" in said
    assert not (tmp_path / "out").exists()


def test_defect_free_images_of_equal_pixels_in_another_file_of_that_size_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "set", ["a.bmp", "b.bmp", "c.bmp"])
    data = bytearray((tmp_path / "set" / "a.bmp").read_bytes())
    data[38] ^= 1  # pixels per metre
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "fine.bmp").write_bytes(data)
    assert "fine.bmp is a.bmp" in refusal(path, tmp_path / "out", defect_free=str(tmp_path / "good"))


def test_further_defect_free_images_are_taken_and_equal_ones_once(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    for number, name in ((11, "a.png"), (12, "x.png"), (12, "again.png"), (2, "c2.png")):
        write_image(tmp_path / "good" / name, number)
    (tmp_path / "good" / "._x.png").write_bytes(b"litter")
    result = imported(path, tmp_path / "out", defect_free=str(tmp_path / "good"))
    assert [record.file_name for record in result.dataset.images] == [
        "a.png",
        "b.png",
        "c.png",
        "defect_free/a.png",
        "again.png",
    ]
    assert any("one is kept (2 times" in remark for remark in result.remarks)
    on_disk = {
        path.relative_to(tmp_path / "out" / "images").as_posix()
        for path in (tmp_path / "out" / "images").rglob("*.png")
    }
    assert on_disk == {record.file_name for record in result.dataset.images}


def test_a_defect_free_listed_image_with_the_content_of_a_labelled_one_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    write_image(tmp_path / "set" / "c.png", 0)
    result = imported(path, tmp_path / "out")
    assert [record.file_name for record in result.dataset.images] == ["a.png", "b.png"]
    assert "c.png" in result.remarks[0]
    assert "left out" in result.remarks[0]


@pytest.mark.parametrize("folder", ["nowhere", "empty"])
def test_a_folder_of_defect_free_images_that_is_none_is_refused(folder: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"defect.free"):
        imported(write(tmp_path / "set", PLAIN), tmp_path / "out", defect_free=str(tmp_path / folder))


def test_nothing_but_crowd_is_remarked(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN, lambda content: [a.update(iscrowd=1) for a in content["annotations"]])
    assert any("crowd" in remark for remark in imported(path, tmp_path / "out").remarks)


def test_a_split_of_the_data_is_kept_and_offered(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for number, (subset, name) in enumerate((("train", "a.png"), ("train", "b.png"), ("val", "c.png"))):
        write_image(root / "images" / name, number)
        content = coco([name], labelled=1)
        path = root / "annotations" / f"instances_{subset}{name[0]}.json"
        path.parent.mkdir(exist_ok=True)
        if name != "b.png":
            path.with_name(f"instances_{subset}.json").write_text(json.dumps(content))
    result = imported(root, tmp_path / "out")
    assert [record.subset for record in result.dataset.images] == ["train", "val"]
    assert any("own split (train 1, val 1)" in remark for remark in result.remarks)
    assert [record.subset for record in imported(tmp_path / "out", tmp_path / "again").dataset.images] == [
        "train",
        "val",
    ]


def test_deep_images_bring_their_range_along(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    for number, name in enumerate(PLAIN):
        Image.fromarray(picture(number)[..., 0].astype(np.uint16) * 14).save(tmp_path / "set" / name)
    result = imported(path, tmp_path / "out")
    assert result.dataset.value_range is not None
    assert result.dataset.value_range.high == 4095
    assert any("16" in remark for remark in result.remarks)


def test_a_format_is_forced_by_its_name_and_an_unknown_one_lists_them(tmp_path: Path) -> None:
    path = write(tmp_path / "set", PLAIN)
    assert imported(path, tmp_path / "out", format="coco").layout == "COCO instances"
    with pytest.raises(ConfigError, match="choose among defectory, cvat, label-studio, coco, voc, labelme"):
        imported(path, tmp_path / "other", format="pascal")
    assert "SegmentationClass" in refusal(path, tmp_path / "other", format="voc")


def test_an_unknown_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(ConfigError, match=r"looked for: .*COCO.*labelme.*YOLO"):
        imported(tmp_path / "set", tmp_path / "out")


def test_a_folder_of_several_layouts_says_which_was_read(tmp_path: Path) -> None:
    write(tmp_path / "set", PLAIN)
    (tmp_path / "set" / "a.json").write_text(json.dumps({"shapes": [], "imagePath": "a.png"}))
    remarks = imported(tmp_path / "set", tmp_path / "out").remarks
    assert remarks[0].startswith("read as COCO instances; it could also be labelme")


def test_a_format_from_outside_is_one_value(tmp_path: Path) -> None:
    def load(path: Path, options: LoadOptions) -> RawDataset:
        raise ConfigError(path, "read by the new format", f"skip_bad was {options.skip_bad}")

    mine = Format(
        name="mine", title="my own", recognise=lambda path: "mine" if path.suffix == ".mine" else None, load=load
    )
    (tmp_path / "set.mine").write_text("x")
    for name in ("auto", "mine"):
        with registry.FORMATS.registered("mine", mine), pytest.raises(ConfigError, match="skip_bad was True"):
            imported(tmp_path / "set.mine", tmp_path / "out", skip_bad=True, format=name)
