from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectory.masks.placement import (
    GAP_PX,
    NUM_CONTACTS,
    RELATIONS,
    Sides,
    Site,
    borders_of,
    filled_where_cut,
    place,
    place_like,
    relation_of,
    relation_shares,
    site_of,
    site_of_square,
)
from defectory.rle import box_xyxy
from defectory.surface import solid_pixels

SIZE_HW = (40, 64)
BAR = np.ones((5, 12), bool)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_mask_lies_whole_on_allowed_pixels_everywhere_on_the_tile() -> None:
    allowed = np.zeros(SIZE_HW, bool)
    allowed[6:36, 10:60] = True
    corners: set[tuple[int, int]] = set()
    for seed in range(200):
        placed = place(BAR, size_hw=SIZE_HW, allowed=allowed, taken=np.zeros(SIZE_HW, bool), rng=rng(seed))
        assert placed is not None
        assert placed.shape == SIZE_HW
        assert not (placed & ~allowed).any()
        x0, y0, x1, y1 = box_xyxy(placed)
        assert (y1 - y0, x1 - x0) == BAR.shape
        corners.add((y0, x0))
    ys, xs = {y for y, _ in corners}, {x for _, x in corners}
    assert (min(ys), max(ys)) == (6, 31)
    assert (min(xs), max(xs)) == (10, 48)


def test_the_same_seed_gives_the_same_place() -> None:
    def once(seed: int) -> bytes:
        placed = place(
            BAR, size_hw=SIZE_HW, allowed=np.ones(SIZE_HW, bool), taken=np.zeros(SIZE_HW, bool), rng=rng(seed)
        )
        assert placed is not None
        return placed.tobytes()

    assert once(1) == once(1)
    assert len({once(seed) for seed in range(10)}) > 5


def test_defects_keep_a_gap_between_them() -> None:
    for seed in range(60):
        generator = rng(seed)
        taken = np.zeros(SIZE_HW, bool)
        count = 0
        for _ in range(8):
            placed = place(BAR, size_hw=SIZE_HW, allowed=np.ones(SIZE_HW, bool), taken=taken, rng=generator)
            if placed is not None:
                near = cv2.dilate(placed.astype(np.uint8), np.ones((2 * GAP_PX + 1,) * 2, np.uint8)) > 0
                assert not (near & taken).any()
                taken |= placed
                count += 1
        assert cv2.connectedComponents(taken.astype(np.uint8))[0] - 1 == count > 2


def test_where_no_place_is_left_there_is_none() -> None:
    taken = np.zeros(SIZE_HW, bool)
    taken[::5, ::5] = True
    assert place(BAR, size_hw=SIZE_HW, allowed=np.ones(SIZE_HW, bool), taken=taken, rng=rng(0)) is None
    assert (
        place(BAR, size_hw=SIZE_HW, allowed=np.zeros(SIZE_HW, bool), taken=np.zeros(SIZE_HW, bool), rng=rng(0)) is None
    )


def test_a_mask_larger_than_the_window_is_cut_at_its_border() -> None:
    allowed = np.zeros(SIZE_HW, bool)
    allowed[4:36, 4:60] = True
    large = np.ones((40, 30), bool)
    for seed in range(20):
        placed = place(large, size_hw=SIZE_HW, allowed=allowed, taken=np.zeros(SIZE_HW, bool), rng=rng(seed))
        assert placed is not None
        assert not (placed & ~allowed).any()
        assert placed.sum() >= 0.4 * large.sum()


Mask = NDArray[np.bool_]
PART_HW = (80, 112)


def part() -> NDArray[np.uint8]:
    """A bright disc with two dark holes in dark surroundings, grain on it."""
    ys, xs = np.mgrid[: PART_HW[0], : PART_HW[1]]
    image = np.full((*PART_HW, 3), 5, np.uint8)
    image[np.hypot((ys - 40) / 0.8, xs - 56) < 45] = 120
    for x in (40, 72):
        image[np.hypot(ys - 40, xs - x) < 7] = 8
    noise = np.random.default_rng(0).integers(-4, 5, PART_HW)[..., None]
    return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)


def bar(y: int, x: int, height: int, width: int) -> Mask:
    mask = np.zeros(PART_HW, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def test_the_surface_is_what_is_neither_hole_nor_background() -> None:
    image = part()
    image[30:32, 50:52] = 0  # a dark speck of texture
    solid = solid_pixels(image, PART_HW)
    assert solid[31, 51]
    assert not solid[40, 40]
    assert not solid[40, 72]
    assert not solid[2, 2]
    truth = image.mean(axis=2) > 60
    assert (solid ^ truth).mean() < 0.02
    dark_defect = bar(50, 50, 8, 14)
    image[dark_defect] = 3
    assert not solid_pixels(image, PART_HW)[54, 57]
    assert solid_pixels(image, PART_HW, [dark_defect])[54, 57]


def test_a_dark_surface_is_surface_and_padding_is_not() -> None:
    dark = np.random.default_rng(1).integers(10, 22, (40, 64, 3)).astype(np.uint8)
    solid = solid_pixels(dark, (30, 50))
    assert solid[:30, :50].all()
    assert not solid[30:].any()
    assert not solid[:, 50:].any()
    black = np.zeros((40, 64, 3), np.uint8)
    assert solid_pixels(black, (40, 64)).all()


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (bar(38, 48, 3, 14), "end at a hole"),
        (bar(48, 35, 2, 11), "around a hole"),
        (bar(46, 43, 3, 12), "along a hole"),
        (bar(60, 50, 3, 10), "in the open"),
        (bar(52, 38, 3, 6), "near either"),
        (bar(5, 54, 18, 3), "end at the outside"),
    ],
)
def test_how_a_mask_lies_to_the_part_is_told(mask: Mask, name: str) -> None:
    assert RELATIONS[relation_of(mask, borders_of(solid_pixels(part(), PART_HW)))] == name


def test_without_any_border_every_mask_is_in_the_open() -> None:
    assert relation_of(bar(10, 10, 3, 9), borders_of(np.ones(PART_HW, bool))) == len(RELATIONS) - 1


def test_shares_are_counted_by_class_and_lean_on_all() -> None:
    assert relation_shares([]) == {}
    shares = relation_shares([(1, 0, 1.0)] * 9 + [(2, 7, 1.0)])
    assert shares[1].sum() == pytest.approx(1)
    assert shares[1][0] == pytest.approx((9 + 0.9) / 10)
    assert shares[2].tolist() == pytest.approx([0.45, 0, 0, 0, 0, 0, 0, 0.55])


@pytest.mark.parametrize("wanted", [("end at a hole",), ("in the open",), ("end at a hole", "near either")])
def test_masks_are_placed_as_they_lie_in_train(wanted: tuple[str, ...]) -> None:
    site = site_of(part(), PART_HW)
    shares = np.array([1.0 if name in wanted else 0.0 for name in RELATIONS])
    shares /= shares.sum()
    thin = np.ones((3, 12), bool)
    told: list[str] = []
    for seed in range(80):
        placed = place_like(thin, shares, site=site, taken=np.zeros(PART_HW, bool), rng=rng(seed))
        assert placed is not None
        assert not (placed & ~site.allowed).any()
        assert placed.sum() >= 0.75 * thin.sum()
        told.append(RELATIONS[relation_of(placed, site.borders)])
    for name in wanted:
        assert told.count(name) / 80 == pytest.approx(1 / len(wanted), abs=0.2)


def test_where_no_place_is_like_train_any_place_will_do() -> None:
    site = Site(allowed=np.ones(SIZE_HW, bool), borders=borders_of(np.ones(SIZE_HW, bool)))
    only_holes = np.eye(len(RELATIONS))[0]
    taken = np.zeros(SIZE_HW, bool)
    taken[:, :20] = True
    for seed in range(20):
        placed = place_like(BAR, only_holes, site=site, taken=taken, rng=rng(seed))
        assert placed is not None
        assert placed.sum() == BAR.sum()
        assert not (placed & taken).any()
    nowhere = Site(allowed=np.zeros(SIZE_HW, bool), borders=site.borders)
    assert place_like(BAR, only_holes, site=nowhere, taken=taken, rng=rng(0)) is None


@pytest.mark.parametrize("degrees", [0, 50, 135, 200, 300])
def test_the_border_lies_where_distances_fall(degrees: int) -> None:
    borders = borders_of(solid_pixels(part(), PART_HW))
    angle = np.deg2rad(degrees)
    y, x = round(40 + 9 * np.sin(angle)), round(40 + 9 * np.cos(angle))
    found = borders.towards(0, y, x)
    assert np.cos(found - (angle + np.pi)) > np.cos(np.deg2rad(25)), "to the middle of the hole"
    assert np.cos(borders.towards(NUM_CONTACTS, 40, 16) - np.pi) > 0.9, (
        "at the left of the part its outside is to the left"
    )


def test_a_crack_that_ends_at_a_hole_does_not_cross_it() -> None:
    site = site_of(part(), PART_HW)
    at_holes, crack = np.eye(len(RELATIONS))[0], np.ones((4, 22), bool)
    shares: list[float] = []
    for seed in range(30):
        placed = place_like(crack, at_holes, site=site, taken=np.zeros(PART_HW, bool), rng=rng(seed))
        assert placed is not None
        assert relation_of(placed, site.borders) == 0
        shares.append(placed.sum() / crack.sum())
    assert min(shares) >= 0.9


def test_a_crack_across_a_hole_becomes_one_piece_and_its_end_at_one_is_not_hollow() -> None:
    borders = borders_of(solid_pixels(part(), PART_HW))
    hole = borders.to_hole == 0
    across = bar(37, 20, 6, 42) & ~hole
    filled = filled_where_cut(across, borders)
    assert (count_pieces(across), count_pieces(filled)) == (2, 1)
    assert np.array_equal(filled & ~hole, across), "nothing is added on the surface"
    askew = bar(42, 40, 6, 22) & ~hole
    added = filled_where_cut(askew, borders) & ~askew
    assert added.any()
    assert (added & ~hole).sum() == 0
    assert np.nonzero(added)[0].min() >= 42, "it ends as wide as it is"


def count_pieces(mask: Mask) -> int:
    return cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] - 1


def test_gaps_that_holes_cut_into_a_defect_are_filled() -> None:
    ys, xs = np.mgrid[: PART_HW[0], : PART_HW[1]]
    hole = np.hypot(ys - 40, xs - 40) < 7
    borders = borders_of(solid_pixels(part(), PART_HW))
    around = (np.hypot(ys - 40, xs - 42) < 19) & ~hole
    filled = filled_where_cut(around, borders)
    assert filled[hole].all()
    assert (filled & ~around & ~(np.hypot(ys - 40, xs - 40) < 11)).sum() == 0
    beside = bar(38, 48, 3, 14)
    assert np.array_equal(filled_where_cut(beside, borders), beside)
    ring = (np.hypot(ys - 40, xs - 40) < 10) & ~hole
    assert np.array_equal(filled_where_cut(ring, borders), ring), "a crack around a hole is no disc"
    assert np.array_equal(filled_where_cut(around, borders_of(np.ones(PART_HW, bool))), around)


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 100_000), ends=st.tuples(*[st.booleans()] * 4), learned=st.booleans())
def test_no_label_has_a_straight_run_along_the_border_of_its_square(
    seed: int, ends: tuple[bool, bool, bool, bool], learned: bool
) -> None:
    own, margin_px = rng(seed), 6
    height, width = SIZE_HW
    mask = _blob(own)
    image = np.full((*SIZE_HW, 3), 120, np.uint8)
    image[15:20, 20:26] = 5
    sides = Sides(top=ends[0], left=ends[1], bottom=ends[2], right=ends[3])
    site = site_of_square(image, SIZE_HW, ends=sides, margin_px=margin_px)
    taken = np.zeros(SIZE_HW, bool)
    if learned:
        placed = place_like(mask, np.full(len(RELATIONS), 1 / len(RELATIONS)), site=site, taken=taken, rng=own)
    else:
        placed = place(mask, size_hw=SIZE_HW, allowed=site.allowed, taken=taken, rng=own, within=site.within)
    if placed is None:
        return
    assert not (placed & ~solid_pixels(image, SIZE_HW)).any()
    # what reaches a side at all would be cut there
    for open_side, line in zip(
        ends,
        (placed[:margin_px], placed[:, :margin_px], placed[height - margin_px :], placed[:, width - margin_px :]),
        strict=True,
    ):
        assert open_side or not line.any()


def _blob(own: np.random.Generator) -> NDArray[np.bool_]:
    """A random connected mask of at most 44x60 pixels, cropped to its box."""
    canvas = np.zeros((60, 80), np.uint8)
    at = np.array([40.0, 30.0])
    for _ in range(int(own.integers(2, 9))):
        to = np.clip(at + own.normal(0, 9, 2), (8, 8), (72, 52))
        start, end = at.round().astype(int).tolist(), to.round().astype(int).tolist()
        cv2.line(canvas, start, end, 1, int(own.integers(1, 8)))
        at = to
    x0, y0, x1, y1 = box_xyxy(canvas > 0)
    return (canvas > 0)[y0:y1, x0:x1]


def test_a_mask_may_continue_beyond_the_border_of_the_image() -> None:
    image = np.full((*SIZE_HW, 3), 120, np.uint8)
    ends = Sides(top=True, left=False, bottom=False, right=False)
    site = site_of_square(image, SIZE_HW, ends=ends, margin_px=6)
    tall = np.ones((36, 4), bool)
    found = [
        place(
            tall, size_hw=SIZE_HW, allowed=site.allowed, taken=np.zeros(SIZE_HW, bool), rng=rng(s), within=site.within
        )
        for s in range(30)
    ]
    placed = [mask for mask in found if mask is not None]
    assert placed
    assert all(mask[0].any() and not mask[-6:].any() for mask in placed)
