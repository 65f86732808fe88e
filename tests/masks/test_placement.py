from __future__ import annotations

import cv2
import numpy as np

from defectory.masks.placement import GAP_PX, place
from defectory.rle import box_xyxy

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
        placed = place(BAR, size_hw=SIZE_HW, allowed=np.ones(SIZE_HW, bool), taken=np.zeros(SIZE_HW, bool), rng=rng(seed))
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
    assert place(BAR, size_hw=SIZE_HW, allowed=np.zeros(SIZE_HW, bool), taken=np.zeros(SIZE_HW, bool), rng=rng(0)) is None


def test_a_mask_larger_than_the_window_is_cut_at_its_border() -> None:
    allowed = np.zeros(SIZE_HW, bool)
    allowed[4:36, 4:60] = True
    large = np.ones((40, 30), bool)
    for seed in range(20):
        placed = place(large, size_hw=SIZE_HW, allowed=allowed, taken=np.zeros(SIZE_HW, bool), rng=rng(seed))
        assert placed is not None
        assert not (placed & ~allowed).any()
        assert placed.sum() >= 0.4 * large.sum()
