"""Deep images: which value is black and which is white, alone and in a set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.images import facts
from defectory.images.facts import measure_value_range, remarks_of
from defectory.images.frames import load_native
from defectory.images.load import load_image, load_rgb
from defectory.images.tiff import encode_tiff
from defectory.images.valuerange import ValueRange, levels_of, own_range, to_eight_bit

from .samples import SIZE_HW, Pixels, colour, file_of, grey, written


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_twelve_bits_in_sixteen_are_read_as_the_eight_bit_image_that_they_come_from(
    tmp_path: Path, suffix: str
) -> None:
    deep = grey().astype(np.uint16) * 16
    path = written(tmp_path / f"a.{suffix}", encode_tiff(deep) if suffix == "tif" else file_of(deep))
    loaded = load_image(path)
    assert np.abs(loaded.rgb[..., 0].astype(int) - grey()).max() <= 1
    assert "black 0, white 4095" in loaded.conversion
    assert load_native(path).dtype == np.uint16
    np.testing.assert_array_equal(load_native(path), deep)


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        (np.array([0, 2368], np.uint16), 0, 4095),
        (np.array([3, 200], np.uint16), 0, 255),
        (np.array([0, 54365], np.uint16), 0, 65535),
        (np.array([0.0, 0.9], np.float32), 0, 1),
        (np.array([9.0, 221.0], np.float32), 0, 255),
        (np.array([0.0, 7.5e6], np.float32), 0, 7.5e6),
        (np.array([-40.0, 60.0], np.float32), -40, 60),
        (np.array([-300, 500], np.int16), -300, 500),
        (np.array([0, 1], np.uint16), 0, 1),
        (np.array([0, 0], np.uint16), 0, 1),
        (np.array([np.nan, np.inf], np.float32), 0, 1),
        (np.array([0, 4_000_000_000], np.uint32), 0, 2**32 - 1),
        (np.array([0, 20_000], np.int16), 0, 2**15 - 1),
    ],
)
def test_an_image_alone_is_read_in_the_bit_depth_that_holds_its_values(values: Pixels, low: float, high: float) -> None:
    assert own_range(levels_of(np.tile(values, (5, 4)))) == ValueRange(low=low, high=high)


def write_set(folder: Path, images: dict[str, Pixels]) -> list[Path]:
    folder.mkdir()
    return [
        written(folder / name, encode_tiff(pixels) if name.endswith(".tif") else file_of(pixels))
        for name, pixels in images.items()
    ]


@pytest.mark.parametrize(
    ("make", "low", "high", "says"),
    [
        (lambda g: g.astype(np.uint16) * 16, 0, 4095, "16-bit images hold values"),
        (lambda g: g.astype(np.float32), 0, 255, "32-bit float images hold values"),
        (lambda g: (g / np.float32(255)).astype(np.float32), 0, 1, "read as black 0, white 1"),
        # a thermal camera: all values in a narrow band
        (lambda g: g.astype(np.uint16) * 8 + 29000, None, None, "16-bit images hold values 290"),
        (lambda g: g.astype(np.float32) / 50 - 2, None, None, "read as black -1.9"),
        # underexposed: a quarter of 12 bits is filled
        (lambda g: g.astype(np.uint16) * 11 // 2, 0, None, "16-bit images hold values 27 to 11"),
    ],
)
def test_a_set_has_one_range_and_comes_out_neither_black_nor_clipped(
    tmp_path: Path, make: Callable[[Pixels], Pixels], low: float | None, high: float | None, says: str
) -> None:
    files = write_set(tmp_path / "set", {f"{number}.tif": make(grey(number)) for number in range(4)})
    found, remarks = measure_value_range(iter(files))
    assert found is not None
    every = np.concatenate([load_native(path).ravel() for path in files])
    expected = every.min() if low is None else low, every.max() if high is None else high
    assert (found.low, found.high) == pytest.approx(expected)
    assert says in remarks[0]
    for path in files:
        levels = load_rgb(path, found)
        assert 60 < levels.mean() < 190
        assert levels.std() > 20
        assert np.mean(levels == 255) < 1e-3 + 2 / levels[..., 0].size
        assert np.mean(levels == 0) < 1e-3 + 2 / levels[..., 0].size
    rgb = np.concatenate([load_rgb(path, found)[..., 0].ravel() for path in files]).astype(float)
    assert np.corrcoef(rgb, every.astype(float))[0, 1] > 0.999, "the same line for all images of a set"


def test_hot_pixels_do_not_darken_a_set(tmp_path: Path) -> None:
    deep = grey(size_hw=(120, 170)).astype(np.uint16) * 16
    deep[7, 9] = 65535
    found, _ = measure_value_range(write_set(tmp_path / "set", {"a.png": deep}))
    assert found == ValueRange(low=0, high=4095)


def test_eight_bit_images_are_never_scaled_and_only_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_set(tmp_path / "set", {"a.png": grey(1), "b.png": colour(), "c.tif": grey(2)})
    np.testing.assert_array_equal(load_rgb(files[1], ValueRange(low=0, high=17)), colour())
    facts._remembered_facts.clear()
    monkeypatch.setattr(facts, "decode", lambda path: pytest.fail(f"{path} was decoded"))
    assert measure_value_range(files) == (None, ())


def test_a_mixed_set_is_told(tmp_path: Path) -> None:
    files = write_set(
        tmp_path / "set",
        {"a.png": grey(), "b.png": grey().astype(np.uint16) * 200, "c.png": np.full(SIZE_HW, 700, np.uint16)},
    )
    found, remarks = measure_value_range(files)
    assert found == ValueRange(low=0, high=65535)
    assert any("1 images have 8 bits and are not scaled, 2 have more" in remark for remark in remarks)
    assert any(remark.startswith("c.png is") for remark in remarks), remarks


def test_fractions_among_larger_floats_are_read_as_what_they_are(tmp_path: Path) -> None:
    files = write_set(
        tmp_path / "set",
        {"a.tif": grey(0).astype("f4"), "b.tif": grey(1).astype("f4") / 255, "c.tif": grey(2).astype("f4")},
    )
    found, remarks = measure_value_range(files)
    assert found == ValueRange(low=0, high=255)
    assert "b.tif is outside that range and read with its own" in remarks
    loaded = load_image(files[1], found)
    np.testing.assert_array_equal(loaded.rgb[..., 0], grey(1))
    assert "do not match the data set's range (black 0, white 255): read as black 0, white 1" in loaded.remarks[0]


def test_a_dark_frame_of_a_set_stays_dark(tmp_path: Path) -> None:
    path = written(tmp_path / "dark.png", file_of(np.random.default_rng(0).integers(0, 30, SIZE_HW).astype(np.uint16)))
    assert load_rgb(path, ValueRange(low=0, high=4095)).max() <= 2


def test_values_that_are_no_numbers_are_black_and_told(tmp_path: Path) -> None:
    values = grey().astype(np.float32)
    values[0, :5] = np.nan
    values[1, :2] = np.inf
    values[2, 0] = -3.4e38
    path = written(tmp_path / "a.tif", encode_tiff(values))
    loaded = load_image(path)
    assert (loaded.rgb[0, :5] == 0).all()
    assert (loaded.rgb[1, :2] == 0).all()
    np.testing.assert_array_equal(loaded.rgb[3:, :, 0], grey()[3:])
    assert "8 values are not numbers and read as black" in loaded.remarks
    assert "8 values are not numbers and read as black" in remarks_of(path)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["u2", "i2", "u4", "i4", "f4", "f8"]), st.integers(0, 2**32 - 1))
def test_scaling_is_linear_rounded_and_clipped_whatever_the_number_type(dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-3000, 6000, (7, 11)).astype(dtype)
    low, high = float(rng.integers(-500, 500)), float(rng.integers(600, 5000))
    expected = np.clip(np.round((values.astype(np.float64) - low) * 255 / (high - low)), 0, 255)
    assert np.abs(to_eight_bit(values, ValueRange(low=low, high=high)) - expected).max() <= 1
