"""Index CSV: rows, classes, groups, good parts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import AnnotationError

from .folder_sets import box, by_name, csv_set, load, picture, union, values, write


def table(root: Path, text: str, *, images: int = 4, name: str = "index.csv", masks: bool = True) -> Path:
    """`images/`, 0/255 masks, and a CSV."""
    for number in range(images):
        write(root / "images" / f"p{number}.png", picture(number))
        if masks:
            write(root / "masks" / f"p{number}.png", box(2 + 5 * number, 4))
    return write(root / name, text)


def rows(*cells: str, header: str = "image,mask,class") -> str:
    return (
        "\n".join([header, *(f"images/p{number}.png,masks/p{number}.png,{cell}" for number, cell in enumerate(cells))])
        + "\n"
    )


def test_rows_teach_what_values_are_called(tmp_path: Path) -> None:
    raw = load(csv_set(tmp_path))
    assert raw.class_names == ("scratch", "dent")
    assert raw.layout == "index CSV (index.csv)"
    images = by_name(raw)
    assert np.array_equal(union(images["images/p3.png"], "dent"), box(11, 3))
    assert images["images/p5.png"].is_defect_free
    assert [image.group for image in raw.images] == ["0", "0", "1", "1", "2", "2"]
    assert [image.subset for image in raw.images] == ["train"] * 4 + ["test"] * 2


def test_binary_masks_take_the_class_of_their_row(tmp_path: Path) -> None:
    raw = load(table(tmp_path, rows("scratch", "dent", '"scratch, deep"', "dent")))
    assert raw.class_names == ("scratch", "dent", "scratch, deep")
    assert np.array_equal(union(by_name(raw)["images/p2.png"], "scratch, deep"), box(12, 4))


def test_equal_names_in_two_folders_stay_two_images(tmp_path: Path) -> None:
    lines = ["image,mask,class"]
    for at, kind in enumerate(("dent", "scratch")):
        write(tmp_path / "test" / kind / "000.png", picture(at))
        write(tmp_path / "ground_truth" / kind / "000_mask.png", box(4 + 10 * at, 5))
        lines.append(f"test/{kind}/000.png,ground_truth/{kind}/000_mask.png,{kind}")
    raw = load(write(tmp_path / "index.csv", "\n".join(lines)))
    images = by_name(raw)
    assert set(images) == {"test/dent/000.png", "test/scratch/000.png"}
    assert len({image.group for image in raw.images}) == 2
    assert np.array_equal(union(images["test/scratch/000.png"], "scratch"), box(14, 5))


def test_several_rows_of_an_image_are_its_masks(tmp_path: Path) -> None:
    table(tmp_path, "")
    rows = ["images/p0.png,masks/p0.png,dent", "images/p0.png,masks/p3.png,scratch", "images/p1.png,masks/p1.png,dent"]
    text = "\n".join(["image,mask,class", *rows, ""])
    raw = load(write(tmp_path / "index.csv", text))
    assert len(raw.images) == 2
    assert np.array_equal(union(raw.images[0], "dent"), box(2, 4))
    assert np.array_equal(union(raw.images[0], "scratch"), box(17, 4))


@pytest.mark.parametrize("label", ["good", "normal", "OK", ""])
def test_an_empty_mask_cell_is_defect_free_where_the_row_says_so(tmp_path: Path, label: str) -> None:
    text = rows("dent", "dent", "dent").rstrip() + f"\nimages/p3.png,,{label}\n"
    raw = load(table(tmp_path, text))
    assert by_name(raw)["images/p3.png"].is_defect_free


def test_an_empty_mask_cell_of_a_defect_is_unlabelled(tmp_path: Path) -> None:
    text = rows("dent", "dent", "dent").rstrip() + "\nimages/p3.png,,dent\n"
    raw = load(table(tmp_path, text))
    assert "images/p3.png" not in by_name(raw)
    assert any("1 image without a mask left out" in remark for remark in raw.remarks)


def test_without_a_column_of_classes_an_empty_mask_cell_says_nothing(tmp_path: Path) -> None:
    text = "image,mask\nimages/p0.png,masks/p0.png\nimages/p1.png,\n"
    raw = load(table(tmp_path, text))
    assert set(by_name(raw)) == {"images/p0.png"}


def test_an_empty_mask_of_a_row_that_states_a_defect_is_no_defect_free_image(tmp_path: Path) -> None:
    table(tmp_path, rows("dent", "scratch", "dent", "scratch"))
    write(tmp_path / "masks" / "p3.png", values())
    raw = load(tmp_path)
    assert not by_name(raw)["images/p3.png"].is_defect_free
    assert any("the mask is empty" in remark for remark in raw.remarks)
    # a class that all rows state is the table's
    write(tmp_path / "index.csv", rows("dent", "dent", "dent", "dent"))
    assert by_name(load(tmp_path))["images/p3.png"].is_defect_free


@pytest.mark.parametrize(
    "header",
    ["Image,Mask,Class", "filename,mask_path,label", " IMAGE , MASK , Category ", "image_path,mask file,defect type"],
)
def test_columns_have_many_names(tmp_path: Path, header: str) -> None:
    raw = load(table(tmp_path, rows("a", "b", "a", "b", header=header)), "index-csv")
    assert raw.class_names == ("a", "b")


def test_label_is_the_mask_where_no_other_column_is(tmp_path: Path) -> None:
    text = "image,label\n" + "".join(f"images/p{n}.png,masks/p{n}.png\n" for n in range(4))
    assert len(load(table(tmp_path, text)).images) == 4


def test_classes_may_be_several_and_are_told_apart_by_value(tmp_path: Path) -> None:
    table(
        tmp_path,
        "image,mask,classes\nimages/p0.png,masks/p0.png,dent\nimages/p1.png,masks/p1.png,scratch\nimages/p2.png,masks/p2.png,dent|scratch\n",
    )
    for number, drawn in enumerate([(1,), (2,), (1, 2)]):
        write(tmp_path / "masks" / f"p{number}.png", values(*((value, box(2 + 12 * value, 4)) for value in drawn)))
    raw = load(tmp_path)
    assert [sorted(i.class_name for i in image.instances) for image in raw.images] == [
        ["dent"],
        ["scratch"],
        ["dent", "scratch"],
    ]


FAULTS = {
    "no image file": (
        rows("a", "a").replace("images/p1", "images/p9"),
        r"row 3: its image 'images/p9\.png': no such file",
    ),
    "no mask file": (rows("a", "a").replace("masks/p1", "masks/p9"), r"row 3: its mask 'masks/p9\.png': no such file"),
    "outside": (rows("a", "a").replace("images/p1", "../p1"), r"row 3: its image '\.\./p1\.png'"),
    "short": (
        rows("a", "a").replace("images/p1.png,masks/p1.png,a", "images/p1.png"),
        r"row 3: 1 cell, the header has 3",
    ),
    "good with a defect": (rows("a", "good"), "called good, but its mask shows a defect"),
    "another's mask": (rows("a", "a").replace("masks/p1", "masks/p0"), "lists the mask of images/p0"),
    "two groups": (
        rows("a,g0", header="image,mask,class,group") + "images/p0.png,masks/p0.png,a,g1\n",
        "another group",
    ),
    "two subsets": (
        rows("a,train", header="image,mask,class,split") + "images/p0.png,masks/p0.png,a,test\n",
        "another subset",
    ),
    "several classes for one value": (
        rows("a|b", "a", header="image,mask,classes"),
        "2 classes, but its mask has one value",
    ),
    "long name": (rows("a", "a").replace("images/p1", "x" * 400), "row 3"),
    "no image in the row": (rows("a", "a").replace("images/p1.png", ""), "row 3"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_row_is_one_line_with_its_number(tmp_path: Path, kind: str) -> None:
    text, words = FAULTS[kind]
    path = table(tmp_path, text)
    with pytest.raises(AnnotationError, match=words) as caught:
        load(path, "index-csv")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700


def test_values_that_contradict_the_classes_are_refused(tmp_path: Path) -> None:
    table(tmp_path, rows("dent", "scratch", "dent", "scratch"))
    for number, value in enumerate((1, 2, 2, 1)):
        write(tmp_path / "masks" / f"p{number}.png", values((value, box(3, 3))))
    with pytest.raises(AnnotationError, match=r"value 2 is 'dent' here and 'scratch' elsewhere"):
        load(tmp_path)


def test_a_bad_row_is_skipped_where_bad_entries_are(tmp_path: Path) -> None:
    raw = load(table(tmp_path, rows("a", "a", "a").replace("images/p1", "images/p9")), skip_bad=True)
    assert len(raw.images) == 2
    assert [entry.id for entry in raw.rejected] == ["images/p9.png"]


def test_names_relative_to_the_tables_parent_are_found(tmp_path: Path) -> None:
    table(tmp_path, "")
    (tmp_path / "index.csv").unlink()
    assert len(load(write(tmp_path / "lists" / "all.csv", rows("a", "b"))).images) == 2


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: text.replace("images/", "").replace("masks/", ""),
        lambda text: text.replace("images/", "/home/anna/set/images/").replace("masks/", "/home/anna/set/masks/"),
        lambda text: text.replace("images/", "C:\\set\\images\\").replace("masks/", "C:\\set\\masks\\"),
        lambda text: text.replace(".png", ""),
        lambda text: text.replace("images/", "./images/"),
        lambda text: text.replace("images/p", "Images/P"),
    ],
)
def test_names_are_found_as_people_write_them(tmp_path: Path, rewrite: Callable[[str], str]) -> None:
    raw = load(table(tmp_path, rewrite(rows("a", "b", "a", "b"))))
    assert len(raw.images) == 4
    assert np.array_equal(union(by_name(raw)["images/p2.png"], "a"), box(12, 4))
    assert np.array_equal(union(by_name(raw)["images/p3.png"], "b"), box(17, 4))


@pytest.mark.parametrize("gone", ["images/p1.png", "masks/p1.png"])
def test_a_missing_image_is_not_replaced_by_a_mask_nor_a_mask_by_an_image(tmp_path: Path, gone: str) -> None:
    path = table(tmp_path, rows("a", "b", "a", "b"))
    (tmp_path / gone).unlink()
    with pytest.raises(AnnotationError, match=rf"row 3: its (image|mask) '{gone}': no such file"):
        load(path)
    raw = load(path, skip_bad=True)
    assert [entry.id for entry in raw.rejected] == ["images/p1.png"]
    assert len(raw.images) == 3


def test_a_short_row_is_skipped_where_bad_entries_are(tmp_path: Path) -> None:
    raw = load(table(tmp_path, rows("a", "b", "a").replace(",masks/p1.png,b", "")), skip_bad=True)
    assert [entry.id for entry in raw.rejected] == ["images/p1.png"]
    assert len(raw.images) == 2


def test_a_table_that_is_no_index_is_not_recognised(tmp_path: Path) -> None:
    path = write(tmp_path / "results.csv", "epoch,loss\n1,2\n")
    with pytest.raises(StopIteration):
        load(path)
