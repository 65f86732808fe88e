"""CVAT for images: polygons, masks, ellipses, and XML that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import InputError
from defectory.rle import area_px, decode

from .annotation_sets import RINGS, assert_as_drawn, cvat_polygon, cvat_xml, read, truth, write_cvat, write_images


def only_first(shape: str) -> Callable[[str], str]:
    return lambda name: shape if name == "p0" else cvat_polygon(name)


def refusal(path: Path, **options: object) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_folder_and_the_file_are_recognised(tmp_path: Path) -> None:
    root = write_cvat(tmp_path)
    for path in (root, root / "annotations.xml"):
        raw = read(path)
        assert_as_drawn(raw)
        assert "CVAT" in raw.layout
        assert raw.class_names == ("scratch", "dent")
        assert raw.remarks == ()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1251", "gb18030"])
def test_the_declared_encoding_is_used(encoding: str, tmp_path: Path) -> None:
    write_cvat(tmp_path)
    name = "Ω" if encoding == "utf-16" else "трещина" if encoding != "gb18030" else "裂纹"
    text = cvat_xml(lambda image: cvat_polygon(image).replace("scratch", name))
    declared = "utf-8" if encoding == "utf-8-sig" else encoding
    (tmp_path / "annotations.xml").write_bytes(f'<?xml version="1.0" encoding="{declared}"?>{text}'.encode(encoding))
    assert name in read(tmp_path).class_names


def mask_element(mask: np.ndarray, *, rle: str | None = None, **places: object) -> str:
    ys, xs = np.nonzero(mask)
    patch = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    flat = np.concatenate([[False], patch.reshape(-1), [not patch.reshape(-1)[-1]]])
    runs = np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1])]))
    about = {"left": xs.min(), "top": ys.min(), "width": patch.shape[1], "height": patch.shape[0], **places}
    text = " ".join(f'{key}="{value}"' for key, value in about.items())
    return f'<mask label="scratch" rle="{", ".join(map(str, runs)) if rle is None else rle}" {text}/>'


def test_masks_are_run_lengths_row_by_row_within_a_box(tmp_path: Path) -> None:
    raw = read(write_cvat(tmp_path, only_first(mask_element(truth()["p0"]))))
    assert_as_drawn(raw)


def test_ellipses_are_filled(tmp_path: Path) -> None:
    shapes = '<ellipse label="scratch" cx="30" cy="20" rx="15" ry="6" rotation="90"/>'
    (ellipse,) = read(write_cvat(tmp_path, only_first(shapes))).images[0].instances
    assert area_px(ellipse.rle) == pytest.approx(np.pi * 90, rel=0.04)
    assert np.ptp(np.nonzero(decode(ellipse.rle))[0]) > np.ptp(np.nonzero(decode(ellipse.rle))[1])


def test_shapes_of_a_group_are_one_instance_and_group_0_is_none(tmp_path: Path) -> None:
    def of_group(number: int) -> str:
        return "".join(
            cvat_polygon(name).replace("dent", "scratch").replace("<polygon", f'<polygon group_id="{number}"')
            for name in RINGS
        )

    assert len(read(write_cvat(tmp_path / "a", only_first(of_group(3)))).images[0].instances) == 1
    assert len(read(write_cvat(tmp_path / "b", only_first(of_group(0)))).images[0].instances) == 2


def test_subsets_are_kept(tmp_path: Path) -> None:
    write_cvat(tmp_path)
    text = (tmp_path / "annotations.xml").read_text()
    (tmp_path / "annotations.xml").write_text(
        text.replace('<image id="0"', '<image subset="Train" id="0"').replace(
            '<image id="1"', '<image subset="Validation" id="1"'
        )
    )
    assert [image.subset for image in read(tmp_path).images] == ["train", "val", None]


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ('<box label="scratch" xtl="1" ytl="1" xbr="9" ybr="9"/>', "'box' is a box, not a mask"),
        ('<polyline label="scratch" points="1,1;9,9"/>', "is a line, not a mask"),
        ('<polygon points="1,1;9,9;5,20"/>', "has no label"),
        ('<polygon label="scratch"/>', "points are ''"),
        ('<polygon label="scratch" points="1,1;9;5,20"/>', "points are '1,1;9;5,20'"),
        ('<polygon label="scratch" points="1,1;9,x;5,20"/>', "other than numbers"),
        ('<polygon label="scratch" points="1,1;9,nan;5,20"/>', "not finite"),
        ('<ellipse label="scratch" cx="30" cy="20" rx="15"/>', "has no ry"),
        ('<ellipse label="scratch" cx="30" cy="20" rx="15" ry="1e999"/>', "ry is the text"),
        (mask_element(truth()["p0"], rle="5, 900000"), "malformed RLE"),
        (mask_element(truth()["p0"], rle="-5, 9"), "numbers and commas are expected"),
        (mask_element(truth()["p0"], rle=""), "numbers and commas are expected"),
        (mask_element(truth()["p0"], height=41), "mask is 41x"),
        (mask_element(truth()["p0"], height="None"), "height is the text"),
        (mask_element(truth()["p0"], left=55), "extends beyond the image"),
    ],
)
def test_a_bad_shape_is_one_line_and_may_be_skipped(shape: str, words: str, tmp_path: Path) -> None:
    root = write_cvat(tmp_path, only_first(shape))
    assert words in refusal(root)
    raw = read(root, skip_bad=True)
    assert raw.images[0].instances == ()
    assert not raw.images[0].is_defect_free
    assert len(raw.rejected) == 1


def test_boxes_alone_are_told_as_that(tmp_path: Path) -> None:
    root = write_cvat(tmp_path, lambda name: '<box label="scratch" xtl="1" ytl="1" xbr="9" ybr="9"/>')
    assert "none of 3 shapes is a mask, only box" in refusal(root)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("<annotations><track><polygon/></track></annotations>", "tracks of a video"),
        ("<annotations></annotations>", "no image in it"),
        ("<annotations><image></annotations>", "is not XML"),
        ('<annotations><image id="1"/></annotations>', "has no name"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><annotations><image name="&a;"/></annotations>', "XML entities"),
        (f"<annotations><image name='p0.png'>{'<a>' * 5000}", "nested too deeply"),
    ],
)
def test_xml_that_is_none_of_images_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "annotations.xml").write_text(text)
    assert words in refusal(tmp_path, name="cvat")


def test_nested_entities_do_not_grow(tmp_path: Path) -> None:
    entities = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    (tmp_path / "annotations.xml").write_text(
        f'<!DOCTYPE x [<!ENTITY a0 "ha">{entities}]><annotations><image name="&a11;"/></annotations>'
    )
    assert "XML entities" in refusal(tmp_path, name="cvat")


def test_images_that_are_not_listed_are_told(tmp_path: Path) -> None:
    root = write_cvat(tmp_path)
    write_images(root / "images", ("p0", "p1", "p2", "x1"))
    raw = read(root)
    assert_as_drawn(raw)
    assert "x1.png" in raw.remarks[0]
