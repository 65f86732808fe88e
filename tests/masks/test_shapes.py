from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.masks.generate import at_quantile, draw_shape, fit
from defectory.masks.shapes import BlobShape, LineShape, measure

Mask = NDArray[np.bool_]
SIZE_HW = (90, 120)


def line(*points: tuple[int, int], width: int = 3) -> Mask:
    canvas = np.zeros(SIZE_HW, np.uint8)
    cv2.polylines(canvas, [np.array(points, np.int32)], isClosed=False, color=1, thickness=width)
    return canvas > 0


def flower(radius: float, amplitude: float, petals: int) -> Mask:
    ys, xs = np.indices(SIZE_HW) - np.array([45, 60])[:, None, None]
    return np.hypot(ys, xs) <= radius * (1 + amplitude * np.cos(petals * np.arctan2(ys, xs)))


def as_line(mask: Mask) -> LineShape:
    shape = measure(mask)
    assert isinstance(shape, LineShape)
    return shape


def as_blob(mask: Mask) -> BlobShape:
    shape = measure(mask)
    assert isinstance(shape, BlobShape)
    return shape


def test_a_straight_line_has_its_length_width_and_direction() -> None:
    mask = line((10, 20), (90, 60), width=3)
    shape = as_line(mask)
    assert shape.length_px == pytest.approx(np.hypot(80, 40), rel=0.1)
    assert shape.width_px == pytest.approx(mask.sum() / np.hypot(80, 40), rel=0.2)
    assert shape.angle == pytest.approx(np.arctan2(40, 80), abs=0.05)
    assert shape.wander < 0.1
    assert shape.branches == ()


def test_a_zigzag_wanders_and_a_branch_is_counted_with_its_length() -> None:
    straight = as_line(line((10, 40), (110, 40)))
    crooked = as_line(line((10, 40), (30, 55), (50, 30), (70, 55), (90, 30), (110, 45)))
    assert crooked.wander > 0.4 > 5 * straight.wander
    assert crooked.length_px > 1.2 * straight.length_px
    branched = as_line(line((10, 40), (110, 40)) | line((50, 40), (70, 70)))
    assert len(branched.branches) == 1
    assert branched.branches[0] * branched.length_px == pytest.approx(30, abs=8)  # rows of its skeleton


def test_a_disc_is_round_and_smooth_and_an_ellipse_long() -> None:
    disc = as_blob(flower(20, 0.0, 3))
    assert disc.diameter_px == pytest.approx(40, abs=0.7)
    assert disc.elongation == pytest.approx(1, abs=0.05)
    assert disc.roughness < 0.03
    ellipse = np.zeros(SIZE_HW, np.uint8)
    cv2.ellipse(ellipse, (60, 45), (30, 12), 30, 0, 360, 1, -1)
    shape = as_blob(ellipse > 0)
    assert shape.elongation == pytest.approx(2.5, rel=0.1)
    assert shape.angle == pytest.approx(np.deg2rad(30), abs=0.05)


@pytest.mark.parametrize("petals", [3, 5])
def test_the_waves_of_an_outline_are_found(petals: int) -> None:
    shape = as_blob(flower(24, 0.2, petals))
    assert int(np.argmax(shape.harmonics)) + 2 == petals
    assert max(shape.harmonics) == pytest.approx(0.2, abs=0.05)


@pytest.mark.parametrize(
    "mask", [line((10, 20), (90, 60)), line((10, 70), (40, 60), (70, 75), (105, 50), width=5), flower(18, 0.15, 4)]
)
def test_drawn_masks_have_the_figures_they_were_drawn_from(mask: Mask) -> None:
    shape = measure(mask)
    drawn = [measure(draw_shape(shape, np.random.default_rng(seed))) for seed in range(12)]
    assert all(type(d) is type(shape) for d in drawn)
    assert np.median([d.area_px for d in drawn]) == pytest.approx(shape.area_px, rel=0.25)
    if isinstance(shape, LineShape):
        lines = [d for d in drawn if isinstance(d, LineShape)]
        assert np.median([d.length_px for d in lines]) == pytest.approx(shape.length_px, rel=0.15)
        assert np.median([d.width_px for d in lines]) == pytest.approx(shape.width_px, rel=0.2)
        assert np.median([d.wander for d in lines]) == pytest.approx(shape.wander, abs=0.12)
    else:
        blobs = [d for d in drawn if isinstance(d, BlobShape)]
        assert np.median([d.roughness for d in blobs]) == pytest.approx(shape.roughness, abs=0.05)


def test_new_masks_are_seeded_one_piece_cropped_and_no_copies() -> None:
    masks = [
        (1, line((10, 20), (90, 60))),
        (1, line((10, 70), (100, 50), width=4)),
        (2, flower(14, 0.2, 4)),
        (2, flower(9, 0.3, 3)),
    ]
    model = fit(masks)
    for category_id in (1, 2):
        drawn = [model.draw(category_id, seed=seed) for seed in range(10)]
        assert all(np.array_equal(d, model.draw(category_id, seed=seed)) for seed, d in enumerate(drawn))
        for mask in drawn:
            assert cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] == 2
            assert mask.any(axis=0)[[0, -1]].all()
            assert mask.any(axis=1)[[0, -1]].all()
            for own_id, own in masks:
                if own_id == category_id:
                    assert overlap(mask, own) < 0.97
        assert len({d.tobytes() for d in drawn}) == 10


def overlap(first: Mask, second: Mask) -> float:
    """IoU at the best shift, by correlation."""
    ys, xs = np.nonzero(second)
    second = second[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    pad = max(*first.shape, *second.shape)
    found = cv2.matchTemplate(np.pad(first, pad).astype(np.float32), second.astype(np.float32), cv2.TM_CCORR)
    common = float(found.max())
    return common / (first.sum() + second.sum() - common)


def test_severity_chooses_among_training_sizes() -> None:
    model = fit([(1, flower(radius, 0.1, 4)) for radius in (6, 8, 10, 16, 20, 24)])
    small = [int(model.draw(1, seed=seed, severity=(0.0, 0.5)).sum()) for seed in range(12)]
    large = [int(model.draw(1, seed=seed, severity=(0.5, 1.0)).sum()) for seed in range(12)]
    assert max(small) < min(large)
    rng = np.random.default_rng(0)
    assert {at_quantile(4, (0.5, 1.0), rng) for _ in range(50)} == {2, 3}
    assert {at_quantile(4, (1.0, 1.0), rng) for _ in range(5)} == {3}
