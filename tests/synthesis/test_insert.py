from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from defectory.images.frames import load_frame, load_native
from defectory.images.save import encode_png
from defectory.images.tiff import encode_tiff
from defectory.images.valuerange import ValueRange
from defectory.synthesis.export import Frame
from defectory.synthesis.grain import add_grain
from defectory.synthesis.insert import feather, paste_into, with_difference

SIZE_HW = (48, 64)
Mask = NDArray[np.bool_]


def paste(frame: NDArray[Any], **arguments: Any) -> NDArray[Any]:
    changed = frame.copy()
    paste_into(changed, **arguments)
    return changed


def label_at(y: int = 20, x: int = 25) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y : y + 6, x : x + 9] = True
    return mask


def test_a_drawing_counts_fully_on_its_label_and_not_at_all_at_the_margin() -> None:
    share = feather(label_at(), 8)
    assert (share[label_at()] == 1).all()
    distance = cv2.distanceTransform((~label_at()).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    assert (share[distance >= 8] == 0).all()
    assert (share[distance < 7.9] > 0).all()
    ring = share[(distance > 2) & (distance < 7)]
    assert ((ring > 0) & (ring < 1)).all()


def test_a_tile_stays_itself_where_nothing_is_drawn_and_keeps_its_detail_where_something_is() -> None:
    rng = np.random.default_rng(0)
    tile, without = (rng.integers(60, 160, (*SIZE_HW, 3)).astype(np.uint8) for _ in range(2))
    drawn = without.copy()
    drawn[label_at()] -= 40
    share = feather(label_at(), 8)
    result = with_difference(tile, drawn, without, share)
    assert np.array_equal(result[label_at()], tile[label_at()] - 40)
    assert np.array_equal(result[~label_at()], tile[~label_at()])
    assert np.array_equal(with_difference(tile, without, without, share), tile)


@settings(deadline=None, max_examples=100)
@given(
    height=st.integers(49, 211),
    width=st.integers(65, 233),
    kind=st.sampled_from(["grey", "rgb", "rgba", "grey16"]),
    zoom=st.sampled_from([1.0, 1.7, 0.6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frame_of_any_size_and_depth_changes_under_the_change_alone(
    height: int, width: int, kind: str, zoom: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    channels = {"grey": (), "rgb": (3,), "rgba": (4,), "grey16": ()}[kind]
    top = 65536 if kind == "grey16" else 256
    frame = rng.integers(0, top, (height, width, *channels)).astype(np.uint16 if kind == "grey16" else np.uint8)
    size_hw = (min(height, round(SIZE_HW[0] * zoom)), min(width, round(SIZE_HW[1] * zoom)))
    corner = (int(rng.integers(0, height - size_hw[0] + 1)), int(rng.integers(0, width - size_hw[1] + 1)))
    before = rng.integers(60, 200, (*SIZE_HW, 3)).astype(np.uint8)
    after = before.copy()
    after[label_at()] = 10
    result = paste(frame, before=before, after=after, corner_yx=corner, size_hw=size_hw)
    assert (result.dtype, result.shape) == (frame.dtype, frame.shape)
    window = np.zeros((height, width), bool)
    inside = cv2.resize(label_at().astype(np.uint8), size_hw[::-1], interpolation=cv2.INTER_NEAREST) > 0
    window[corner[0] : corner[0] + size_hw[0], corner[1] : corner[1] + size_hw[1]] = inside
    changed = (result != frame).reshape(height, width, -1).any(axis=2)
    assert not (changed & ~window).any()
    assert changed[window].mean() > 0.7, "values at 0 can get no darker"
    if kind == "rgba":
        assert np.array_equal(result[..., 3], frame[..., 3])


def test_an_eight_bit_colour_frame_at_the_tiles_scale_gets_the_tile_itself() -> None:
    rng = np.random.default_rng(1)
    frame = rng.integers(0, 256, (90, 120, 3)).astype(np.uint8)
    before = frame[10:58, 30:94].copy()
    drawn = rng.integers(0, 256, before.shape).astype(np.uint8)
    after = with_difference(before, drawn, np.full_like(before, 90), feather(label_at(), 8))
    result = paste(frame, before=before, after=after, corner_yx=(10, 30), size_hw=SIZE_HW)
    assert np.array_equal(result[10:58, 30:94], after)


@pytest.mark.parametrize(
    ("dtype", "low", "high", "value"),
    [
        ("u2", 0, 65535, 30000),
        ("u2", 0, 2368, 1100),
        ("i2", -200, 600, 90),
        ("f4", 0, 1, 0.5),
        ("f4", -1.5, 3.25, 0.125),
        ("u4", 0, 2**24 - 1, 9_000_000),
    ],
)
def test_a_deep_frame_changes_in_units_of_its_range(dtype: str, low: float, high: float, value: float) -> None:
    frame = np.full((60, 80), value, dtype)
    before = np.full((*SIZE_HW, 3), 117, np.uint8)
    after = before.copy()
    after[label_at()] = 100
    given = ValueRange(low=low, high=high)
    result = paste(frame, before=before, after=after, corner_yx=(0, 0), size_hw=SIZE_HW, value_range=given)
    assert result.dtype == frame.dtype
    step = -17 * (high - low) / 255
    assert result[: SIZE_HW[0], : SIZE_HW[1]][label_at()] == pytest.approx(
        value + step, rel=1e-6, abs=0 if dtype[0] == "f" else 0.5
    )
    untouched = np.ones(frame.shape, bool)
    untouched[: SIZE_HW[0], : SIZE_HW[1]][label_at()] = False
    assert (result[untouched] == frame[untouched]).all()


def test_no_value_leaves_the_range_and_what_lies_beyond_stays() -> None:
    frame = np.random.default_rng(0).integers(0, 2369, (60, 80)).astype(np.uint16)
    frame[12, 20] = 3000
    before = np.full((*SIZE_HW, 3), 100, np.uint8)
    after = before.copy()
    after[label_at()] = 255
    result = paste(
        frame, before=before, after=after, corner_yx=(0, 0), size_hw=SIZE_HW, value_range=ValueRange(low=0, high=2368)
    )
    assert result.max() == 3000
    assert result[12, 20] == 3000
    assert np.delete(result.ravel(), 12 * 80 + 20).max() == 2368


@pytest.mark.parametrize(("channels", "dtype"), [(2, "u1"), (4, "u1"), (2, "u2"), (4, "u2"), (4, "f4")])
def test_alpha_stays_as_it_was(channels: int, dtype: str) -> None:
    rng = np.random.default_rng(1)
    frame = rng.integers(50, 200, (60, 80, channels)).astype(dtype)
    before = np.full((*SIZE_HW, 3), 117, np.uint8)
    after = before.copy()
    after[label_at()] = (150, 140, 130)
    given = None if dtype == "u1" else ValueRange(low=0, high=255)
    result = paste(frame, before=before, after=after, corner_yx=(5, 9), size_hw=SIZE_HW, value_range=given)
    np.testing.assert_array_equal(result[..., -1], frame[..., -1])
    changed = (result != frame).any(axis=2)[5 : 5 + SIZE_HW[0], 9 : 9 + SIZE_HW[1]]
    np.testing.assert_array_equal(changed, label_at())


@pytest.mark.parametrize(("kind", "suffix"), [("u1", ".png"), ("u2", ".png"), ("f4", ".tif"), ("i2", ".tif")])
def test_a_pool_frame_leaves_with_its_kind(tmp_path: Path, kind: str, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(50, 200, (60, 80)).astype(kind)
    path = tmp_path / f"frame{suffix}"
    path.write_bytes(encode_png(pixels) if suffix == ".png" else encode_tiff(pixels))
    before = np.full((*SIZE_HW, 3), 117, np.uint8)
    after = before.copy()
    after[label_at()] = 100
    frame = Frame(image=load_frame(path), tile=before, corner_yx=(5, 9), size_hw=SIZE_HW)
    assert frame.suffix == suffix
    frame.save(tmp_path / f"out{frame.suffix}", frame.with_defect(after))
    found = load_native(tmp_path / f"out{frame.suffix}")
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found != pixels, frame.placed(label_at()))


def test_missing_values_of_a_float_frame_stay_missing() -> None:
    frame = np.full((60, 80), np.nan, np.float32)
    before = np.full((*SIZE_HW, 3), 117, np.uint8)
    after = before.copy()
    after[label_at()] = 100
    result = paste(
        frame, before=before, after=after, corner_yx=(0, 0), size_hw=SIZE_HW, value_range=ValueRange(low=0, high=1)
    )
    assert np.isnan(result).all()


def noisy(sigma: float, *, seed: int = 0, blur: tuple[float, float] = (0, 0)) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).standard_normal(SIZE_HW).astype(np.float32)
    if any(blur):
        noise = cv2.GaussianBlur(noise, (0, 0), blur[0] or 0.01, sigmaY=blur[1] or 0.01)
        noise /= noise.std()
    return np.clip(np.round(120 + sigma * noise), 0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)


def steps(image: NDArray[np.uint8]) -> tuple[float, float]:
    grey = image[..., 0].astype(float)
    return float(np.abs(np.diff(grey, axis=0)).mean()), float(np.abs(np.diff(grey, axis=1)).mean())


@pytest.mark.parametrize("blur", [(0.0, 0.0), (0.01, 2.0)])
def test_a_smooth_draft_gets_the_grain_of_its_tile_with_its_direction(blur: tuple[float, float]) -> None:
    tile, smooth = noisy(9, blur=blur), noisy(0)
    image, without = add_grain([smooth, smooth], tile=tile, valid_hw=SIZE_HW, seed=3)
    assert np.array_equal(image, without)
    assert steps(image) == pytest.approx(steps(tile), rel=0.3, abs=0.6)


def test_a_draft_with_the_grain_of_its_tile_gets_hardly_more() -> None:
    tile, own = noisy(9, seed=1), noisy(9, seed=2)
    (image,) = add_grain([own], tile=tile, valid_hw=SIZE_HW, seed=3)
    assert steps(image) == pytest.approx(steps(own), rel=0.12)


def test_an_edge_is_no_grain_and_padding_gets_none() -> None:
    tile = noisy(0)
    tile[:, 30:] = 40
    (image,) = add_grain([noisy(0)], tile=tile, valid_hw=SIZE_HW, seed=3)
    assert np.array_equal(image, noisy(0))
    (padded,) = add_grain([noisy(0)], tile=noisy(9), valid_hw=(48, 40), seed=3)
    assert np.array_equal(padded[:, 40:], noisy(0)[:, 40:])
    assert (padded[:, :40] != noisy(0)[:, :40]).any()
