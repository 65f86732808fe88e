"""Outlines: filled as pycocotools fills them, bit for bit; what is left out, clipped and refused."""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as pycoco

from defectory.errors import AnnotationError
from defectory.formats import polygons
from defectory.formats.polygons import polygons_to_rle
from defectory.rle import area_px, decode

from .annotation_sets import HEIGHT, RINGS, SIZE_HW, WIDTH, filled

SQUARE = [10.0, 5.0, 40.0, 5.0, 40.0, 30.0, 10.0, 30.0]
INNER_OTHER_WAY = [20.0, 10.0, 20.0, 20.0, 30.0, 20.0, 30.0, 10.0]
BOW = [10.0, 5.0, 40.0, 30.0, 40.0, 5.0, 10.0, 30.0]


def fill(rings: Any, size_hw: tuple[int, int] = SIZE_HW) -> tuple[np.ndarray, list[tuple[str, str]]]:
    said: list[tuple[str, str]] = []
    rle = polygons_to_rle(rings, size_hw, "here", notice=lambda what, detail: said.append((what, detail)))
    return decode(rle), said


def refusal(rings: Any, size_hw: tuple[int, int] = SIZE_HW) -> str:
    with pytest.raises(AnnotationError) as caught:
        fill(rings, size_hw)
    return str(caught.value)


coordinates = st.one_of(
    st.floats(-5, 45, allow_nan=False),
    st.integers(-5, 45).map(float),
    st.integers(-50, 450).map(lambda v: v / 10),
    st.integers(-10, 90).map(lambda v: v / 2),
)


@settings(max_examples=400)
@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=12), st.integers(1, 41), st.integers(1, 43))
def test_a_ring_is_filled_as_pycocotools_fills_it(points: list[tuple[float, float]], height: int, width: int) -> None:
    ring = np.array(points)
    edges = polygons._filled(polygons._crossings(ring, (height, width)))
    mine = decode(polygons.rle_of_edges(edges, (height, width)))
    assert np.array_equal(mine, filled(ring.reshape(-1).tolist(), (height, width)))


def test_a_long_ring_in_pieces_is_filled_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polygons, "_CHUNK_STEPS", 23)
    rng = np.random.default_rng(3)
    for _ in range(50):
        ring = (rng.random((15, 2)) * (WIDTH, HEIGHT)).reshape(-1).tolist()
        assert np.array_equal(fill([ring])[0], filled(ring))


@given(
    st.lists(
        st.lists(st.tuples(st.integers(0, WIDTH), st.integers(0, HEIGHT)), min_size=3, max_size=6),
        min_size=2,
        max_size=5,
    )
)
def test_several_rings_are_joined_as_pycocotools_joins_them_but_for_holes(rings: list[list[tuple[int, int]]]) -> None:
    flat = [[float(value) for point in ring for value in point] for ring in rings]
    masks = [filled(ring) for ring in flat]
    areas = [polygons._signed_area(np.array(ring, float)) for ring in rings]
    holes = {
        i
        for i in range(len(masks))
        for o in range(len(masks))
        if areas[i] * areas[o] < 0 and abs(areas[o]) > abs(areas[i]) and not (masks[i] & ~masks[o]).any()
    }
    expected = np.any([m for i, m in enumerate(masks) if i not in holes], axis=0) & ~np.any(
        [m for i, m in enumerate(masks) if i in holes] or [masks[0] & False], axis=0
    )
    if expected.any():
        assert np.array_equal(fill(flat)[0], expected)
    else:
        assert re.search("covers no pixel|normalised", refusal(flat))


def test_a_ring_inside_another_that_turns_the_other_way_is_a_hole() -> None:
    mask, said = fill([SQUARE, INNER_OTHER_WAY])
    assert np.array_equal(mask, filled(SQUARE) & ~filled(INNER_OTHER_WAY))
    assert not said


@pytest.mark.parametrize(
    "rings",
    [
        SQUARE,
        [SQUARE],
        np.reshape(SQUARE, (-1, 2)).tolist(),
        [np.reshape(SQUARE, (-1, 2)).tolist()],
        [[str(v) for v in SQUARE]],
    ],
)
def test_flat_lists_pairs_and_numbers_as_text_are_one_outline(rings: Any) -> None:
    assert np.array_equal(fill(rings)[0], filled(SQUARE))


def test_a_stray_ring_of_two_points_is_left_out_with_a_remark() -> None:
    mask, said = fill([SQUARE, [1.0, 1.0, 2.0, 2.0]])
    assert np.array_equal(mask, filled(SQUARE))
    assert [what for what, _ in said] == ["a stray ring of fewer than 3 points is left out"]


@pytest.mark.parametrize(
    "ring",
    [BOW, [8.0, 10.0, 30.0, 7.0, 10.0, 19.0, 33.0, 16.0], [10, 10, 11, 30, 12, 10, 13.5, 30, 12.5, 30, 14, 10.0]],
)
def test_an_outline_that_crosses_itself_is_filled_with_a_remark(ring: list[float]) -> None:
    mask, said = fill([ring])
    assert np.array_equal(mask, filled(ring))
    assert "crosses itself" in said[0][0]


def test_an_outline_that_touches_or_retraces_itself_has_no_remark() -> None:
    spike = [10.0, 5.0, 40.0, 5.0, 50.0, 2.0, 40.0, 5.0, 40.0, 30.0, 10.0, 30.0]
    touching = [10.0, 5.0, 40.0, 5.0, 40.0, 30.0, 25.0, 5.0, 10.0, 30.0]
    for ring in (spike, touching):
        mask, said = fill([ring])
        assert np.array_equal(mask, filled(ring))
        assert said == []


def test_outlines_around_a_centre_do_not_cross_themselves() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        angles = np.sort(rng.random(40)) * 2 * np.pi
        radii = rng.uniform(3, 18, 40)
        ring = np.stack([30 + radii * np.cos(angles), 20 + radii * np.sin(angles)], axis=1).reshape(-1).tolist()
        if np.diff(angles, append=angles[0] + 2 * np.pi).max() < np.pi:
            assert fill([ring])[1] == []


@pytest.mark.parametrize(
    ("end", "shift"), [("left", (-11.0, 0.0)), ("right", (31.0, 0.0)), ("top", (0.0, -11.0)), ("bottom", (0.0, 24.0))]
)
def test_a_few_pixels_beyond_the_border_are_clipped_and_the_end_is_named(end: str, shift: tuple[float, float]) -> None:
    ring = (np.reshape(RINGS["p0"], (-1, 2)) + shift).reshape(-1).tolist()
    mask, said = fill([ring])
    assert np.array_equal(mask, filled(ring))
    assert any(f"beyond the {end} border" in what and detail.startswith("by ") for what, detail in said)
    far = (np.reshape(RINGS["p0"], (-1, 2)) + np.multiply(shift, 3)).reshape(-1).tolist()
    assert f"beyond the {end} border" in refusal([far])


def test_two_hundredths_of_a_large_image_may_be_clipped() -> None:
    assert "left" in fill([[-15.0, 10, 60, 10, 60, 90]], (400, 900))[1][0][0]
    assert "19 px" in refusal([[-19.0, 10, 60, 10, 60, 90]], (400, 900))


@pytest.mark.parametrize(
    ("rings", "words"),
    [
        ([], "empty list"),
        ([[]], "0 points"),
        ([[1.0, 1.0, 5.0, 5.0]], "2 points"),
        ([[1.0, 1.0, 5.0, 5.0, 9.0, 9.0, 4.0]], "even count"),
        ([[0.1, 0.2, 0.9, 0.2, 0.9, 0.8]], "normalised"),
        ([[10.0, 10.0, float("nan"), 5.0, 20.0, 20.0]], "not finite"),
        ([[10.0, 10.0, float("inf"), 5.0, 20.0, 20.0]], "not finite"),
        ([["a", "b", "c", "d", "e", "f"]], "other than numbers"),
        ([[10, 10, None, 5, 20, 20]], "other than numbers"),
        ([[10, 10, True, 5, 20, 20]], "other than numbers"),
        ([[10, 10, 10**400, 5, 20, 20]], "other than numbers"),
        ([SQUARE, 5], "no list"),
        ({"x": 1}, "a list was expected"),
        ([[10.0, 10.0, 20.0, 20.0, 30.0, 30.0]], "covers no pixel"),
        ([[1e300, 1e300, 0, 0, 5, 5]], "beyond the right border"),
    ],
)
def test_what_is_no_outline_is_told_as_what_it_is(rings: Any, words: str) -> None:
    assert words in refusal(rings)


def test_a_dense_outline_takes_time_in_proportion() -> None:
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    points = np.stack([1200 + 1100 * np.cos(angles), 900 + 800 * np.sin(angles)], axis=1)
    looped = points.copy()
    looped[[60_000, 60_900]] = looped[[60_900, 60_000]]
    for ring, num_remarks in ((points, 0), (looped, 1)):
        flat, said = ring.reshape(-1).tolist(), list[str]()
        began = time.process_time()
        rle = polygons_to_rle([flat], (1800, 2400), "here", notice=lambda what, _, said=said: said.append(what))
        assert time.process_time() - began < 2
        assert area_px(rle) == pycoco.area(pycoco.frPyObjects([flat], 1800, 2400))[0]
        assert len(said) == num_remarks


def test_an_outline_that_runs_over_the_whole_image_time_and_again_is_refused() -> None:
    ring = (np.random.default_rng(0).random((40_000, 2)) * (3000, 2000)).reshape(-1).tolist()
    assert "million pixels long" in refusal([ring], (2000, 3000))


def test_five_hundred_small_outlines_in_a_large_image_are_cheap() -> None:
    ring = [2000.5, 1500.0, 2040.0, 1490.0, 2050.0, 1530.0]
    began = time.process_time()
    for _ in range(500):
        polygons_to_rle([ring], (2000, 2500), "here")
    assert time.process_time() - began < 2.5  # 5 ms each
