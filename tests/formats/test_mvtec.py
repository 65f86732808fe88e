"""MVTec AD's tree and its relatives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectory.errors import AnnotationError

from .folder_sets import SIZE_HW, box, by_name, load, mvtec_set, picture, union, values, write


def test_classes_are_folders_and_good_images_the_pool(tmp_path: Path) -> None:
    raw = load(mvtec_set(tmp_path))
    assert raw.layout == "MVTec AD tree"
    assert raw.class_names == ("dent", "scratch")
    assert len(raw.images) == 12
    assert {image.file_name for image in raw.images if image.is_defect_free} == {
        f"{p}/good/{n:03d}.png" for p in ("train", "test") for n in range(3)
    }
    assert np.array_equal(union(by_name(raw)["test/scratch/001.png"], "scratch"), box(13, 4))
    assert len({image.group for image in raw.images}) == 12
    assert {image.subset for image in raw.images} == {None}
    assert any("not kept as a split" in remark for remark in raw.remarks)


def test_several_objects_are_listed_and_one_is_read(tmp_path: Path) -> None:
    mvtec_set(tmp_path / "bottle")
    assert len(load(tmp_path).images) == 12
    mvtec_set(tmp_path / "cable")
    with pytest.raises(AnnotationError, match=r"holds 2 objects \(bottle, cable\); give the folder of one"):
        load(tmp_path)


def test_a_defect_without_a_mask_is_never_defect_free(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    (tmp_path / "ground_truth/dent/001_mask.png").unlink()
    raw = load(tmp_path)
    assert "test/dent/001.png" not in by_name(raw)
    assert any("1 image without a mask left out (first: test/dent/001.png" in remark for remark in raw.remarks)
    with pytest.raises(AnnotationError, match="1 image has no mask"):
        load(tmp_path, unlabelled="refuse")


def test_an_empty_mask_of_a_defect_is_left_out_and_said(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    write(tmp_path / "ground_truth/dent/001_mask.png", np.zeros(SIZE_HW, bool))
    raw = load(tmp_path)
    image = by_name(raw)["test/dent/001.png"]
    assert not image.is_defect_free
    assert image.instances == ()
    assert any("the mask is empty" in remark for remark in raw.remarks)


def test_a_mask_without_an_image_is_one_line(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    (tmp_path / "test/dent/001.png").unlink()
    with pytest.raises(AnnotationError, match=r"^ground_truth/dent/001_mask\.png: a mask without an image"):
        load(tmp_path)


def test_a_good_image_with_a_drawn_mask_is_refused(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    write(tmp_path / "ground_truth/good/000_mask.png", np.zeros(SIZE_HW, bool))
    assert by_name(load(tmp_path))["test/good/000.png"].is_defect_free
    write(tmp_path / "ground_truth/good/000_mask.png", box(1, 1))
    with pytest.raises(AnnotationError, match="called good, but its mask shows a defect"):
        load(tmp_path)


def test_btad_names_are_read(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / "train/ok" / f"{number:04d}.bmp", picture(number))
        write(tmp_path / "test/ko" / f"{number:04d}.bmp", picture(10 + number))
        write(tmp_path / "test/ok" / f"{number:04d}.bmp", picture(20 + number))
        write(tmp_path / "ground_truth/ko" / f"{number:04d}.png", box(4, 3 + number))
    raw = load(tmp_path)
    assert raw.class_names == ("ko",)
    assert sum(image.is_defect_free for image in raw.images) == 6


def test_mvtec_loco_has_a_folder_of_masks_per_image(tmp_path: Path) -> None:
    for number in range(2):
        write(tmp_path / "train/good" / f"{number:03d}.png", picture(number))
        write(tmp_path / "validation/good" / f"{number:03d}.png", picture(5 + number))
        write(tmp_path / "test/logical_anomalies" / f"{number:03d}.png", picture(10 + number))
        for at in range(2):
            write(
                tmp_path / "ground_truth/logical_anomalies" / f"{number:03d}" / f"{at:03d}.png",
                values((255, box(3 + 12 * at, 5))),
            )
    raw = load(tmp_path)
    assert len(raw.images) == 6
    assert [len(image.instances) for image in raw.images if not image.is_defect_free] == [2, 2]


def test_images_in_capitals_and_masks_of_another_suffix(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    for path in sorted((tmp_path / "test").rglob("*.png")):
        path.rename(path.with_suffix(".PNG"))
    assert len(load(tmp_path).images) == 12


def test_litter_in_every_folder_is_passed_over(tmp_path: Path) -> None:
    mvtec_set(tmp_path)
    for place in (
        "test/.ipynb_checkpoints/x.png",
        "ground_truth/dent/._000_mask.png",
        "test/dent/.DS_Store",
        "train/good/@eaDir/000.png",
    ):
        write(tmp_path / place, b"\0\1")
    assert len(load(tmp_path).images) == 12


def test_another_tree_is_not_taken_for_it(tmp_path: Path) -> None:
    write(tmp_path / "train/images/a.png", picture(0))
    write(tmp_path / "test/images/a.png", picture(1))
    with pytest.raises(StopIteration):
        load(tmp_path)
    with pytest.raises(AnnotationError, match="good"):
        load(tmp_path, "mvtec")
