"""Outlines that every reader fills to the mask they were made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from defectory.formats.outlines import INSET_PX, MAX_CORNERS, rle_to_outlines, rle_to_ring
from defectory.formats.polygons import polygons_to_rle
from defectory.procedural.borescope import render
from defectory.rle import decode, encode

Mask = np.ndarray[Any, np.dtype[np.bool_]]
Rings = Sequence[np.ndarray[Any, Any]]


def by_pycocotools(rings: Rings, size_hw: tuple[int, int]) -> Mask:
    from pycocotools import mask as coco

    return coco.decode(coco.merge(coco.frPyObjects([ring.reshape(-1).tolist() for ring in rings], *size_hw))).astype(
        bool
    )


def by_opencv(rings: Rings, size_hw: tuple[int, int]) -> Mask:
    canvas = np.zeros(size_hw, np.uint8)
    for ring in rings:
        cv2.fillPoly(canvas, [ring.astype(np.int32)], (1,))
    return canvas > 0


def by_pillow(rings: Rings, size_hw: tuple[int, int]) -> Mask:
    image = Image.new("L", size_hw[::-1])
    for ring in rings:
        ImageDraw.Draw(image).polygon([tuple(point) for point in ring], outline=1, fill=1)
    return np.asarray(image) > 0


FILLERS: dict[str, Callable[[Rings, tuple[int, int]], Mask]] = {
    "pycocotools": by_pycocotools,
    "opencv": by_opencv,
    "pillow": by_pillow,
}


def iou(one: Mask, other: Mask) -> float:
    return float((one & other).sum() / (one | other).sum())


def shoelace_px(ring: np.ndarray[Any, Any]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def drawn(*strokes: tuple[tuple[int, int], tuple[int, int]], size_hw: tuple[int, int] = (30, 44)) -> Mask:
    canvas = np.zeros(size_hw, np.uint8)
    for begin, end in strokes:
        cv2.line(canvas, begin, end, (1,), 1)
    return canvas > 0


def filled(*boxes: tuple[int, int, int, int], holes: Sequence[tuple[int, int, int, int]] = ()) -> Mask:
    mask = np.zeros((30, 44), bool)
    for value, some in ((True, boxes), (False, holes)):
        for x0, y0, x1, y1 in some:
            mask[y0:y1, x0:x1] = value
    return mask


SHAPES = {
    "a line of 20 x 1": filled((5, 7, 25, 8)),
    "a line of 1 x 20": filled((7, 5, 8, 25)),
    "a lone pixel": filled((9, 9, 10, 10)),
    "a diagonal line": drawn(((3, 2), (40, 27))),
    "a staircase": drawn(((2, 2), (28, 28))),
    "two lines that cross": drawn(((2, 2), (40, 25)), ((40, 3), (3, 26))),
    "a hole": filled((4, 4, 30, 24), holes=[(10, 9, 20, 15)]),
    "a hole of one pixel": filled((4, 4, 30, 24), holes=[(10, 9, 11, 10)]),
    "holes side by side": filled((4, 4, 40, 24), holes=[(8, 9, 12, 15), (16, 9, 20, 15), (24, 12, 30, 20)]),
    "holes that share an edge's rows": filled((4, 4, 40, 24), holes=[(8, 6, 12, 9), (8, 12, 12, 16), (20, 5, 22, 20)]),
    "a part in a hole": filled((2, 2, 40, 28), (14, 12, 20, 16), holes=[])
    & ~(filled((8, 6, 30, 22)) & ~filled((14, 12, 20, 16))),
    "several parts": filled((2, 2, 8, 9), (20, 5, 34, 6), (30, 20, 41, 28)),
    "corners that touch": filled((4, 4, 10, 10), (10, 10, 16, 16), (16, 4, 20, 10)),
    "a ring closed by a corner": filled((4, 4, 10, 5), (4, 4, 5, 10), (4, 9, 10, 10), (9, 5, 10, 9), (10, 10, 12, 12)),
    "the whole image": filled((0, 0, 44, 30)),
    "the image's rim": filled((0, 0, 44, 30), holes=[(1, 1, 43, 29)]),
}


@pytest.mark.parametrize("filler", FILLERS)
@pytest.mark.parametrize("name", SHAPES)
def test_filling_gives_the_mask_back(name: str, filler: str) -> None:
    mask = SHAPES[name]
    found = rle_to_outlines(encode(mask))
    assert not found.reason
    assert np.array_equal(FILLERS[filler](found.rings, (30, 44)), mask)


@pytest.mark.parametrize("name", SHAPES)
def test_rings_have_the_area_of_the_mask_by_any_formula(name: str) -> None:
    found = rle_to_outlines(encode(SHAPES[name]))
    inset_px = sum(INSET_PX * float(np.abs(np.diff(ring, axis=0, append=ring[:1])).sum()) for ring in found.rings)
    assert sum(map(shoelace_px, found.rings)) == pytest.approx(int(SHAPES[name].sum()), abs=1.2 * inset_px + 0.1)
    thin = rle_to_outlines(encode(SHAPES["a line of 20 x 1"])).rings
    assert shoelace_px(thin[0]) == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_no_ring_touches_itself_so_that_geometry_libraries_take_it(name: str) -> None:
    for ring in rle_to_outlines(encode(SHAPES[name])).rings:
        assert len({tuple(point) for point in ring.tolist()}) == len(ring)
        assert (ring >= 0).all()
        assert (ring <= (44, 30)).all()


@pytest.mark.parametrize("name", SHAPES)
def test_one_ring_holds_all_parts(name: str) -> None:
    mask = SHAPES[name]
    found = rle_to_ring(encode(mask))
    assert len(found.rings) == 1
    assert np.array_equal(by_pycocotools(found.rings, (30, 44)), mask)


def test_parts_that_touch_at_a_corner_are_one_ring_for_readers_that_draw_outlines_too() -> None:
    for name in ("a diagonal line", "corners that touch", "a staircase"):
        found = rle_to_ring(encode(SHAPES[name]))
        assert np.array_equal(by_opencv(found.rings, (30, 44)), SHAPES[name])
        assert np.array_equal(by_pillow(found.rings, (30, 44)), SHAPES[name])


def test_many_parts_are_joined_from_left_to_right() -> None:
    mask = np.zeros((41, 73), bool)
    mask[1::4, 1::4] = True
    found = rle_to_ring(encode(mask))
    assert len(found.rings) == 1
    assert np.array_equal(by_pycocotools(found.rings, (41, 73)), mask)


@st.composite
def masks(draw: st.DrawFn) -> Mask:
    height, width = draw(st.integers(1, 26)), draw(st.integers(1, 37))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["noise", "blobs", "lines", "holes"]))
    if kind == "noise":
        mask = rng.random((height, width)) < draw(st.floats(0.02, 0.98))
    elif kind == "blobs":
        mask = cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), draw(st.floats(0.5, 3))) > 0
    elif kind == "holes":
        mask = rng.random((height, width)) < 0.9
    else:
        mask = drawn(
            *(((int(a), int(b)), (int(c), int(d))) for a, b, c, d in rng.integers(0, 37, (4, 4))),
            size_hw=(height, width),
        )
    mask = np.asarray(mask, bool)
    # a pixel in the corner of an image alone would be read as an outline in shares of the image
    mask[0, 0] &= mask.sum() > 1
    return mask


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(masks())
def test_any_mask_comes_back_in_all_conventions(mask: Mask) -> None:
    rle, size_hw = encode(mask), (mask.shape[0], mask.shape[1])
    found = rle_to_outlines(rle)
    if not mask.any():
        assert found.reason == "empty mask"
        assert found.rings == ()
        return
    assert not found.reason
    for fill in FILLERS.values():
        assert np.array_equal(fill(found.rings, size_hw), mask)
    assert polygons_to_rle(found.flat, size_hw, "test") == rle
    one = rle_to_ring(rle)
    assert len(one.rings) == 1
    assert np.array_equal(by_pycocotools(one.rings, size_hw), mask)


def test_masks_of_the_procedural_borescope_come_back_exactly() -> None:
    ious = [
        iou(fill(rle_to_outlines(encode(mask)).rings, mask.shape), mask)
        for seed in range(24)
        for _, mask in render(seed, scene_seed=seed, size_hw=(120, 160), defects=True).instances
        for fill in FILLERS.values()
    ]
    assert len(ious) > 12
    assert min(ious) == 1.0


def test_what_has_too_many_corners_stays_run_lengths_with_a_reason() -> None:
    mask = np.zeros((2 * 180, 2 * 200), bool)
    mask[::2, ::2] = True
    found = rle_to_outlines(encode(mask))
    assert found.rings == ()
    assert f"{MAX_CORNERS:,} corners" in found.reason


def test_a_lone_pixel_in_the_corner_stays_run_lengths_with_a_reason() -> None:
    mask = np.zeros((30, 44), bool)
    mask[0, 0] = True
    found = rle_to_outlines(encode(mask))
    assert found.rings == ()
    assert "normalised" in found.reason


def test_corners_and_places_are_those_of_the_whole_image() -> None:
    (ring,) = rle_to_outlines(encode(filled((5, 7, 25, 8)))).rings
    assert ring.tolist() == [[5.005, 7.995], [5.005, 7.005], [24.995, 7.005], [24.995, 7.995]]
    assert decode(polygons_to_rle([ring.reshape(-1).tolist()], (30, 44), "test")).sum() == 20
