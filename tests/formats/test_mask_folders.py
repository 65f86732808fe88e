"""Mask folders: which mask belongs to which image, and what an image without one is."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from defectory.errors import AnnotationError, ImageError

from .folder_sets import (
    SIZE_HW,
    box,
    by_name,
    class_folder_set,
    index_set,
    load,
    mask_folder_set,
    picture,
    union,
    values,
    write,
)


def test_masks_of_indices_beside_images_are_read_onto_the_right_pixels(tmp_path: Path) -> None:
    raw = load(mask_folder_set(tmp_path))
    assert raw.class_names == ("scratch", "dent")
    assert len(raw.images) == 6
    assert np.array_equal(union(by_name(raw)["p2.png"], "scratch"), box(8, 3))
    assert [image.file_name for image in raw.images if image.is_defect_free] == ["p5.png"]


@pytest.mark.parametrize(
    "name",
    [
        "p{}.png",
        "p{}.PNG",
        "p{}.bmp",
        "p{}.tif",
        "P{}.png",
        "p{}_mask.png",
        "p{}-mask.png",
        "p{}_label.bmp",
        "p{}_GT.png",
        "p{}_seg.png",
        "p{}.mask.png",
        "p{}.png.png",
        "mask_p{}.png",
    ],
)
def test_a_mask_is_found_under_every_usual_name(tmp_path: Path, name: str) -> None:
    for number in range(3):
        write(tmp_path / "images" / f"p{number}.png", picture(number))
        write(tmp_path / "masks" / "dent" / name.format(number), box(4 + number, 5))
    raw = load(tmp_path)
    assert len(raw.images) == 3
    assert all(np.array_equal(union(image, "dent"), box(4 + at, 5)) for at, image in enumerate(raw.images))


@pytest.mark.parametrize(
    ("images", "masks"), [("img", "mask"), ("Images", "Labels"), ("rgb", "ground_truth"), ("images", "annotations")]
)
def test_folders_may_have_any_usual_name(tmp_path: Path, images: str, masks: str) -> None:
    write(tmp_path / images / "a.jpg", picture(0))
    write(tmp_path / masks / "a.png", box(3, 3))
    raw = load(tmp_path)
    assert raw.class_names == ("defect",)
    assert np.array_equal(union(raw.images[0], "defect"), box(3, 3))


def test_two_masks_that_may_be_an_images_own_are_refused(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    write(tmp_path / "masks" / "p1_mask.png", box(1, 1))
    with pytest.raises(
        AnnotationError, match=r"p1\.png: 2 masks may be its own: masks/p1\.png, masks/p1_mask\.png; keep one"
    ):
        load(tmp_path)
    raw = load(tmp_path, skip_bad=True)
    assert len(raw.images) == 5
    assert [entry.id for entry in raw.rejected] == ["p1.png"]


def test_a_stem_with_a_suffix_of_masks_is_first_of_all_an_image_of_its_own(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 2))), "a_mask": values((1, box(20, 12)))})
    images = by_name(load(tmp_path))
    assert np.array_equal(union(images["a.png"], "defect"), box(2, 2))
    assert np.array_equal(union(images["a_mask.png"], "defect"), box(20, 12))


def test_images_of_one_stem_do_not_share_a_mask(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    write(tmp_path / "images" / "p1.jpg", picture(9))
    with pytest.raises(AnnotationError, match=r"share the mask p1\.png"):
        load(tmp_path)


def test_stems_that_differ_in_capitals_are_two_images(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 2))), "A": values((1, box(20, 12)))})
    images = by_name(load(tmp_path))
    assert np.array_equal(union(images["A.png"], "defect"), box(20, 12))
    assert np.array_equal(union(images["a.png"], "defect"), box(2, 2))


def test_images_without_a_mask_are_left_out_and_said(tmp_path: Path) -> None:
    class_folder_set(tmp_path)
    write(tmp_path / "images" / "q.png", picture(50))
    raw = load(tmp_path)
    assert "q.png" not in by_name(raw)
    (remark,) = raw.remarks
    assert remark.startswith("1 image without a mask left out (first: q.png; looked for")
    assert "--unlabelled defect-free" in remark
    with pytest.raises(AnnotationError, match=r"1 image has no mask \(first: q\.png; looked for .*_mask.*--unlabelled"):
        load(tmp_path, unlabelled="refuse")
    assert by_name(load(tmp_path, unlabelled="defect-free"))["q.png"].is_defect_free


def test_a_set_in_which_no_mask_is_found_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "images" / "a.png", picture(0))
    write(tmp_path / "masks" / "zzz.png", box(1, 1))
    with pytest.raises(AnnotationError, match="a mask without an image"):
        load(tmp_path)
    with pytest.raises(AnnotationError, match="no image has a mask"):
        load(tmp_path, skip_bad=True)


def test_a_mask_without_an_image_is_one_line_or_a_rejection(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    write(tmp_path / "masks" / "spare.png", box(1, 1))
    with pytest.raises(
        AnnotationError, match=r"^masks/spare\.png: a mask without an image; add the image or remove the mask$"
    ):
        load(tmp_path)
    assert [entry.id for entry in load(tmp_path, skip_bad=True).rejected] == ["masks/spare.png"]


def test_a_mask_named_after_image_and_class_is_told_the_layout(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((255, box(1, 1))), "b": values((255, box(9, 9)))})
    for path in sorted((tmp_path / "masks").iterdir()):
        path.rename(path.with_name(f"{path.stem}_scratch.png"))
    with pytest.raises(
        AnnotationError,
        match=r"a_scratch\.png: a mask without an image \(2 such masks\) by that name; .*masks/<class>/",
    ):
        load(tmp_path)


def test_an_all_zero_mask_says_defect_free_and_a_missing_one_does_not(tmp_path: Path) -> None:
    class_folder_set(tmp_path)
    write(tmp_path / "images" / "good.png", picture(50))
    write(tmp_path / "masks" / "dent" / "good.png", np.zeros(SIZE_HW, bool))
    assert by_name(load(tmp_path))["good.png"].is_defect_free


def test_litter_is_passed_over(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    for place in (
        "masks/.ipynb_checkpoints/p0-checkpoint.png",
        "images/@eaDir/p0.png",
        "images/._p0.png",
        "masks/.hidden.png",
    ):
        write(tmp_path / place, picture(1))
    write(tmp_path / "images" / "Thumbs.db", b"\xd0\xcf")
    raw = load(tmp_path)
    assert len(raw.images) == 6
    assert raw.remarks == ()


def test_equal_names_in_two_folders_stay_two_images(tmp_path: Path) -> None:
    for at, line in enumerate(("line1", "line2")):
        write(tmp_path / "images" / line / "000.png", picture(at))
        write(tmp_path / "masks" / line / "000.png", values((1, box(3 + 12 * at, 4))))
    images = by_name(load(tmp_path))
    assert set(images) == {"line1/000.png", "line2/000.png"}
    assert images["line1/000.png"].group != images["line2/000.png"].group
    assert np.array_equal(union(images["line2/000.png"], "defect"), box(15, 4))


@pytest.mark.parametrize("place", ["{subset}/{kind}/{name}", "{kind}/{subset}/{name}"])
def test_folders_of_subsets_are_the_data_own_split(tmp_path: Path, place: str) -> None:
    for at, subset in enumerate(("train", "valid", "test")):
        for kind, content in (("images", picture(at)), ("masks", box(3 + at, 4))):
            write(tmp_path / place.format(subset=subset, kind=kind, name="000.png"), content)
    raw = load(tmp_path)
    assert [image.subset for image in sorted(raw.images, key=lambda image: image.file_name)] == ["test", "train", "val"]
    assert len({image.file_name for image in raw.images}) == 3
    assert any("its own split" in remark for remark in raw.remarks)


def test_classes_in_folders_of_subsets(tmp_path: Path) -> None:
    for subset in ("train", "val"):
        for at, kind in enumerate(("dent", "scratch")):
            write(tmp_path / "images" / subset / f"{at}.png", picture(at))
            write(tmp_path / "masks" / subset / kind / f"{at}.png", box(3 + at, 4))
    raw = load(tmp_path)
    assert raw.class_names == ("dent", "scratch")
    assert len(raw.images) == 4


@pytest.mark.parametrize(
    "name", ["masks/{stem}/{n}.png", "masks/{stem}_{n}.png", "masks/{stem}-{n}.png", "masks/{stem}_mask_{n}.png"]
)
def test_one_mask_per_instance(tmp_path: Path, name: str) -> None:
    for stem in ("a", "b", "c"):
        write(tmp_path / "images" / f"{stem}.png", picture(ord(stem)))
        for number in range(2):
            # two parts, and the second instance touches the first
            mask = box(2 + 8 * number, 3, 8, 4) | box(2 + 8 * number, 15, 3, 3)
            write(tmp_path / name.format(stem=stem, n=number), mask)
    raw = load(tmp_path)
    assert raw.class_names == ("defect",)
    assert [len(image.instances) for image in raw.images] == [2, 2, 2]


@pytest.mark.parametrize("numbered", [True, False])
def test_files_per_instance_may_be_named_after_classes(tmp_path: Path, numbered: bool) -> None:
    for stem in ("a", "b", "c"):
        write(tmp_path / "images" / f"{stem}.png", picture(ord(stem)))
        for at, kind in enumerate(("dent", "deep scratch")):
            mask = box(2 + 12 * at, 3) | box(2 + 12 * at, 15, 3, 3)
            write(tmp_path / "masks" / stem / f"{kind}{'_0' if numbered else ''}.png", mask)
    raw = load(tmp_path)
    assert set(raw.class_names) == {"dent", "deep scratch"}
    # a numbered file is one instance, another one all of a class
    assert [len(image.instances) for image in raw.images] == [2 if numbered else 4] * 3
    assert any("deep scratch, dent" in remark for remark in raw.remarks)


def test_one_folder_per_image_with_a_mask_per_instance(tmp_path: Path) -> None:
    for number in range(3):
        write(tmp_path / f"id{number}" / "images" / f"id{number}.png", picture(number))
        for at in range(2):
            write(tmp_path / f"id{number}" / "masks" / f"{at}f3c.png", box(2 + 10 * at, 4))
    raw = load(tmp_path)
    assert [len(image.instances) for image in raw.images] == [2, 2, 2]


def test_links_are_followed_only_where_asked_and_said(tmp_path: Path) -> None:
    real = mask_folder_set(tmp_path / "real")
    root = tmp_path / "set"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
        for path in (real / kind).glob("*.png"):
            (root / kind / path.name).symlink_to(path)
    with pytest.raises(AnnotationError):
        load(root, "masks")
    assert len(load(root, "masks", follow_links=True).images) == 6
    write(root / "images" / "own.png", picture(60))
    write(root / "masks" / "own.png", values((1, box(2, 2))))
    raw = load(root)
    assert [image.file_name for image in raw.images] == ["own.png"]
    assert any("--follow-links" in remark for remark in raw.remarks)


@pytest.mark.parametrize("name", [b"\xff\xfe.png", b"a\nb.png", b"bell\x07.png"])
def test_names_that_no_annotation_can_hold_are_one_line(tmp_path: Path, name: bytes) -> None:
    mask_folder_set(tmp_path)
    odd = Path(os.fsdecode(os.fsencode(tmp_path / "images") + b"/" + name))
    odd.write_bytes((tmp_path / "images" / "p0.png").read_bytes())
    with pytest.raises(AnnotationError, match="name") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()
    raw = load(tmp_path, skip_bad=True)
    assert len(raw.images) == 6
    assert len(raw.rejected) == 1


def test_a_name_of_255_bytes_is_read(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    write(tmp_path / "images" / f"{'ü' * 120}{'x' * 11}.png", picture(70))
    write(tmp_path / "masks" / f"{'ü' * 120}{'x' * 11}.png", values((1, box(2, 2))))
    assert len(load(tmp_path).images) == 7


def test_a_mask_of_another_size_names_both(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    write(tmp_path / "masks" / "p1.png", np.zeros((12, 36), np.uint8))
    with pytest.raises(ImageError, match=r"p1\.png: mask is 12x36, image is 24x36 \(height x width\)"):
        load(tmp_path)
    assert len(load(tmp_path, skip_bad=True).images) == 5


def test_a_damaged_mask_rejects_its_image_alone(tmp_path: Path) -> None:
    mask_folder_set(tmp_path)
    (tmp_path / "masks" / "p1.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(ImageError, match=r"masks/p1\.png"):
        load(tmp_path)
    raw = load(tmp_path, skip_bad=True)
    assert [entry.id for entry in raw.rejected] == ["p1.png"]
    assert len(raw.images) == 5


def test_a_folder_named_good_is_no_class(tmp_path: Path) -> None:
    class_folder_set(tmp_path)
    write(tmp_path / "images" / "g.png", picture(50))
    write(tmp_path / "masks" / "good" / "g.png", np.zeros(SIZE_HW, bool))
    raw = load(tmp_path)
    assert raw.class_names == ("dent", "scratch")
    assert by_name(raw)["g.png"].is_defect_free
    write(tmp_path / "masks" / "good" / "g.png", box(1, 1))
    with pytest.raises(AnnotationError, match="good"):
        load(tmp_path)


def test_small_parts_are_left_out_and_their_image_is_not_defect_free(tmp_path: Path) -> None:
    index_set(tmp_path, {"a": values((1, box(2, 2, 2, 2))), "b": values((1, box(2, 2) | box(30, 20, 1, 1)))})
    images = by_name(load(tmp_path, min_area_px=9))
    assert images["a.png"].instances == ()
    assert not images["a.png"].is_defect_free
    assert len(images["b.png"].instances) == 1


def test_exif_orientation_turns_mask_and_image_alike(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for folder, content in (("images", picture(0)), ("masks", values((255, box(3, 4))))):
        path = tmp_path / folder / "a.png"
        path.parent.mkdir()
        Image.fromarray(content).save(path, exif=exif)
    raw = load(tmp_path)
    assert raw.images[0].size_hw == (36, 24)
    assert np.array_equal(union(raw.images[0], "defect"), np.rot90(box(3, 4), -1))
