"""labelme: one JSON per image, its kinds of shapes, and images without a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import InputError
from defectory.rle import area_px, decode

from .annotation_sets import (
    HEIGHT,
    WIDTH,
    Content,
    assert_as_drawn,
    labelme_content,
    patch_text,
    read,
    truth,
    write_images,
    write_json,
    write_labelme,
)


def with_shapes(root: Path, *shapes: Content) -> Path:
    """The set whose first file has these shapes."""
    write_labelme(root)
    write_json(root / "p0.json", labelme_content("p0") | {"shapes": list(shapes)})
    return root


def shape(points: list[list[float]], kind: str = "polygon", **more: object) -> Content:
    return {"label": "scratch", "points": points, "shape_type": kind, "group_id": None, **more}


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_json_beside_each_image_is_recognised_and_read(tmp_path: Path) -> None:
    raw = read(write_labelme(tmp_path))
    assert_as_drawn(raw)
    assert "labelme" in raw.layout
    assert raw.remarks == ()


@pytest.mark.parametrize("image_path", ["../images/{}.png", "..\\images\\{}.png", "/home/anna/{}.png", "{}.png", None])
def test_files_in_a_folder_of_their_own_find_their_images(image_path: str | None, tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    for name in ("p0", "p1", "p2"):
        path = None if image_path is None else image_path.format(name)
        write_json(tmp_path / "labels" / f"{name}.json", labelme_content(name) | {"imagePath": path})
    if image_path is None:
        assert "no imagePath" in refusal(tmp_path)
    else:
        assert_as_drawn(read(tmp_path))


def test_an_image_path_outside_the_set_is_not_followed(tmp_path: Path) -> None:
    write_images(tmp_path / "outside")
    write_json(tmp_path / "set" / "x.json", labelme_content("p0") | {"imagePath": "../outside/p0.png"})
    assert "no such file under" in refusal(tmp_path / "set")


def test_shapes_of_one_group_are_one_instance_and_0_is_a_group(tmp_path: Path) -> None:
    left, right = [[5, 5], [15, 5], [15, 15]], [[30, 20], [45, 20], [45, 30]]
    raw = read(with_shapes(tmp_path, shape(left, group_id=0), shape(right, group_id=0), shape(left), shape(right)))
    both, *single = (area_px(i.rle) for i in raw.images[0].instances)
    assert both == sum(single)
    assert len(single) == 2


def test_circles_and_masks_are_read(tmp_path: Path) -> None:
    patch = truth()["p0"][7:20, 8:34]
    raw = read(
        with_shapes(
            tmp_path, shape([[30, 20], [30, 30]], "circle"), shape([[8, 7], [33, 19]], "mask", mask=patch_text(patch))
        )
    )
    circle, mask = raw.images[0].instances
    assert area_px(circle.rle) == pytest.approx(np.pi * 100, rel=0.03)
    assert np.array_equal(decode(mask.rle), truth()["p0"])


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (shape([[1, 1], [9, 9]], "rectangle"), "'rectangle' is a box, not a mask"),
        (shape([[1, 1], [9, 9]], "linestrip"), "is a line, not a mask"),
        (shape([[1, 1], [9, 9]], "star"), "'star' is not known"),
        (shape([[1, 1], [9, 9]]), "2 points"),
        (shape([[1, 1], [9, "x"], [5, 5]]), "x"),
        (shape([[1, 1], [9], [5, 5]]), "a point is a list"),
        (shape([[1, 1], [9, 9], [5, None]]), "no x or y"),
        (shape([[30, 20]], "circle"), "circle with 1 points, but 2 are expected"),
        (shape([[8, 7], [9, 9]], "mask"), "without pixels"),
        (shape([[8, 7], [9, 9]], "mask", mask="AAAA"), "not a PNG in base64"),
        (shape([[8, 7], [9, 9]], "mask", mask=5), "mask is the number 5"),
        (shape([[50, 30], [9, 9]], "mask", mask=patch_text(np.ones((20, 20), bool))), "extends beyond the image"),
        (shape([[0, 0], [9, 9]], "mask", mask=patch_text(np.ones((HEIGHT, WIDTH + 1), bool))), "mask is 40x61"),
        (shape([[0, 0], [9, 9]], "mask", mask=patch_text(np.zeros((5, 6), bool))), "covers no pixel"),
        ({"points": []}, "no label"),
        ({"label": [], "points": []}, "label is a list"),
        (shape([[1, 1], [30, 9], [5, 25]], group_id=[]), "group_id is a list"),
    ],
)
def test_a_bad_shape_is_one_line_and_may_be_skipped(bad: Content, words: str, tmp_path: Path) -> None:
    root = with_shapes(tmp_path, bad)
    assert words in refusal(root)
    first = next((image for image in read(root, skip_bad=True).images if image.file_name == "p0.png"), None)
    assert first is None or (first.instances == () and not first.is_defect_free)


def test_boxes_alone_are_told_as_that(tmp_path: Path) -> None:
    write_images(tmp_path)
    for name in ("p0", "p1"):
        write_json(
            tmp_path / f"{name}.json", labelme_content(name) | {"shapes": [shape([[1, 1], [9, 9]], "rectangle")]}
        )
    assert "none of 2 shapes is a mask, only rectangle" in refusal(tmp_path)


def test_an_image_without_a_file_is_not_defect_free_unless_the_import_asks(tmp_path: Path) -> None:
    root = write_labelme(tmp_path)
    (root / "p2.json").unlink()
    raw = read(root)
    assert [image.file_name for image in raw.images] == ["p0.png", "p1.png"]
    assert "p2.png" in raw.remarks[0]
    assert "p2.png" in refusal(root, unlabelled="refuse")
    assert_as_drawn(read(root, unlabelled="defect-free"))


@pytest.mark.parametrize("damage", [lambda path: path.write_text("{"), lambda path: path.write_text('{"shapes": 5}')])
def test_the_image_of_a_file_that_cannot_be_read_is_never_defect_free(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    root = write_labelme(tmp_path)
    damage(root / "p0.json")
    raw = read(root, name="labelme", skip_bad=True, unlabelled="defect-free")
    by_name = {image.file_name: image for image in raw.images}
    if (
        "p0.png" in by_name
    ):  # what does not look like labelme's is no label file: the image has none, and the import asks
        assert any("not from labelme" in remark for remark in raw.remarks)
    else:
        assert len(raw.rejected) == 1
    assert set(by_name) >= {"p1.png", "p2.png"}


def test_two_files_of_one_image_are_refused(tmp_path: Path) -> None:
    root = write_labelme(tmp_path)
    write_json(root / "again.json", labelme_content("p0"))
    assert "annotated twice" in refusal(root)


def test_names_of_subsets_are_kept(tmp_path: Path) -> None:
    for subset in ("train", "test"):
        write_labelme(tmp_path / subset)
    raw = read(tmp_path)
    assert [image.subset for image in raw.images] == ["test"] * 3 + ["train"] * 3
    assert raw.images[0].file_name == "test/p0.png"
