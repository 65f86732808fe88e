"""Images of every kind that people have: read with their own values, or refused in one line that names the cause."""

from __future__ import annotations

import io
import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from defectory import imageio
from defectory.errors import ImageError
from defectory.imagefile import _turned_array, decode
from defectory.imageio import (
    ValueRange,
    encode_png,
    image_size_hw,
    load_class_mask,
    load_frame,
    load_image,
    load_native,
    load_rgb,
    measure_value_range,
    remarks_of,
    save_jpeg,
    save_png,
)
from defectory.tiff import encode_tiff
from defectory.valuerange import levels_of, own_range, to_eight_bit

SIZE_HW = (21, 34)
Pixels = NDArray[Any]


def grey(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> NDArray[np.uint8]:
    """Return a part in mid-grey with noise and a dark scratch."""
    values = np.random.default_rng(seed).normal(120, 25, size_hw)
    values[size_hw[0] // 2, 4:-4] -= 70
    return np.clip(np.round(values), 5, 230).astype(np.uint8)


def colour(channels: int = 3) -> NDArray[np.uint8]:
    return np.stack([grey(seed) for seed in range(channels)], axis=2)


def file_of(content: Image.Image | Pixels, kind: str = "PNG", **options: Any) -> bytes:
    image = content if isinstance(content, Image.Image) else Image.fromarray(content)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# ---- depth and range


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
    imageio._remembered_facts.clear()
    monkeypatch.setattr(imageio, "decode", lambda path: pytest.fail(f"{path} was decoded"))
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


# ---- every kind of number and channel


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", ["u2", "i2", "u4", "i4", "u8", "f4", "f8"])
def test_deep_tiffs_keep_every_value_and_their_number_type(
    tmp_path: Path, dtype: str, channels: int, big_endian: bool
) -> None:
    pixels = colour(channels).astype(dtype) if channels > 1 else grey().astype(dtype)
    path = written(tmp_path / "a.tif", encode_tiff(pixels, big_endian=big_endian))
    native = load_native(path)
    assert native.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(native, pixels)
    frame = load_frame(path)
    assert frame.suffix == ".tif"
    assert frame.encode(frame.pixels) == path.read_bytes()


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colour_pngs_lose_nothing(tmp_path: Path, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (*SIZE_HW, channels)).astype(np.uint16)
    path = written(tmp_path / "a.png", encode_png(pixels))
    np.testing.assert_array_equal(load_native(path), pixels)
    independent = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(independent[..., 0], pixels[..., 0 if channels == 2 else 2])
    assert load_frame(path).encode(pixels) == path.read_bytes()
    opaque = pixels.copy()
    if channels in (2, 4):
        opaque[..., -1] = 65535
    written(path, encode_png(opaque))
    levels = np.round(opaque[..., 0] / 257)
    np.testing.assert_array_equal(load_rgb(path)[..., 0], levels)


@pytest.mark.parametrize("compression", [5, 8, 32946, 32773])
@pytest.mark.parametrize("kind", ["grey16", "rgb16", "rgb float", "float"])
def test_compressed_deep_tiffs_are_read(tmp_path: Path, compression: int, kind: str) -> None:
    pixels = {
        "grey16": grey().astype(np.uint16) * 100,
        "rgb16": colour().astype(np.uint16) * 100,
        "rgb float": colour().astype(np.float32) / 255,
        "float": grey().astype(np.float32),
    }[kind]
    stored = pixels if pixels.ndim == 2 else np.ascontiguousarray(pixels[..., ::-1])
    data = cv2.imencode(".tif", stored, [cv2.IMWRITE_TIFF_COMPRESSION, compression])[1].tobytes()
    np.testing.assert_array_equal(load_native(written(tmp_path / "a.tif", data)), pixels)


@pytest.mark.parametrize(
    ("mode", "kind", "shape", "says"),
    [
        ("L", "PNG", (), "grey to RGB"),
        ("RGB", "BMP", (3,), "none"),
        ("RGB", "WEBP", (3,), "none"),
        ("RGBA", "PNG", (4,), "alpha over black"),
        ("LA", "PNG", (2,), "alpha over black"),
        ("RGBA", "TIFF", (4,), "alpha over black"),
    ],
)
def test_kinds_of_eight_bits_are_read_and_can_be_written_again(
    tmp_path: Path, mode: str, kind: str, shape: tuple[int, ...], says: str
) -> None:
    image = Image.fromarray(colour()).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(grey(7)))
    path = written(tmp_path / "a.bin", file_of(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert says in load_image(path).conversion
    frame = load_frame(path)
    assert frame.pixels.shape == (*SIZE_HW, *shape)
    np.testing.assert_array_equal(frame.pixels, np.asarray(image))
    again = load_frame(written(tmp_path / f"again{frame.suffix}", frame.encode(frame.pixels)))
    np.testing.assert_array_equal(again.pixels, frame.pixels)
    assert frame.container == ("TIFF" if kind == "TIFF" else "PNG")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: file_of(Image.fromarray(colour()).quantize(8)), "a palette image"),
        (lambda: file_of(Image.fromarray(grey()).convert("1")), "a black-and-white image"),
        (lambda: file_of(Image.fromarray(colour()).convert("CMYK"), "JPEG"), "a CMYK image"),
        (lambda: file_of(grey(), "GIF"), "cannot be drawn"),
    ],
)
def test_kinds_that_cannot_be_written_again_are_read_and_refused_as_frames(
    tmp_path: Path, make: Callable[[], bytes], says: str
) -> None:
    path = written(tmp_path / "a.bin", make())
    if "palette" in says or "can be" not in says:
        assert load_rgb(path).shape == (*SIZE_HW, 3)
        with pytest.raises(ImageError, match=f"{says}.*without changing its kind; save it as grey or RGB first"):
            load_frame(path)
    np.testing.assert_array_equal(load_native(path), load_frame(path, convert=True).pixels)


@pytest.mark.parametrize("kind", ["RGBA", "LA", "P", "PA", "RGBA16"])
def test_wholly_transparent_images_keep_their_colours(tmp_path: Path, kind: str) -> None:
    if kind == "P":
        image = Image.fromarray(np.full(SIZE_HW, 2, np.uint8)).convert("P")
        image.putpalette([0, 0, 0, 9, 9, 9, 200, 100, 50])
        data, expected = file_of(image, transparency=2), [200, 100, 50]
    elif kind == "RGBA16":
        pixels = np.zeros((*SIZE_HW, 4), np.uint16)
        pixels[..., :3] = np.array([200, 100, 50]) * 257
        data, expected = encode_png(pixels), [200, 100, 50]
    elif kind == "PA":
        image = Image.new("RGB", SIZE_HW[::-1], (200, 100, 50)).quantize(4).convert("PA")
        image.putalpha(0)
        data, expected = file_of(image.convert("RGBA")), [200, 100, 50]
    else:
        image = Image.new("RGB", SIZE_HW[::-1], (200, 100, 50)).convert(kind)
        image.putalpha(0)
        data, expected = file_of(image), list(image.convert("RGB").getpixel((0, 0)))  # pyright: ignore[reportArgumentType]
    path = written(tmp_path / "a.png", data)
    loaded = load_image(path)
    assert loaded.rgb[3, 5].tolist() == expected
    assert "wholly transparent: alpha dropped" in loaded.remarks
    assert "wholly transparent: alpha dropped" in load_image(path).conversion


def test_palette_transparency_in_places_is_laid_over_black(tmp_path: Path) -> None:
    indices = np.zeros(SIZE_HW, np.uint8)
    indices[:, 20:] = 1
    image = Image.fromarray(indices).convert("P")
    image.putpalette([250, 240, 230, 90, 80, 70])
    path = written(tmp_path / "a.png", file_of(image, transparency=0))
    rgb = load_rgb(path)
    assert rgb[2, 3].tolist() == [0, 0, 0]
    assert rgb[2, 25].tolist() == [90, 80, 70]
    assert remarks_of(path) == ("alpha over black",)


def test_white_is_zero_tiffs_keep_their_values_and_are_told(tmp_path: Path) -> None:
    deep = grey().astype(np.uint16) * 200
    path = written(tmp_path / "a.tif", encode_tiff(deep, white_is_zero=True))
    np.testing.assert_array_equal(load_native(path), deep)
    assert "0 is white" in " ".join(remarks_of(path))
    assert load_frame(path).encode(deep) == path.read_bytes()


# ---- pages and orientation


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "WEBP", "GIF"])
def test_the_first_of_several_pages_is_read_and_told(tmp_path: Path, kind: str) -> None:
    pages = [Image.fromarray(grey(number)) for number in range(3)]
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    path = written(tmp_path / "a.bin", file_of(pages[0], kind, save_all=True, append_images=pages[1:], **options))
    loaded = load_image(path)
    np.testing.assert_array_equal(loaded.rgb[..., 0], grey(0))
    assert "page 1 of 3 is read" in loaded.conversion
    assert "page 1 of 3 is read" in remarks_of(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "PNG16", "TIFF16"])
def test_every_exif_orientation_is_applied_and_told(tmp_path: Path, kind: str, orientation: int) -> None:
    pixels = grey()
    if kind.endswith("16"):
        pixels = pixels.astype(np.uint16) * 100
    expected = _turned_array(pixels, orientation)
    options: dict[str, Any] = {"lossless": True} if kind == "WEBP" else {}
    path = written(tmp_path / "a.bin", file_of(pixels, kind.removesuffix("16"), exif=exif_of(orientation), **options))
    loaded = load_native(path)
    np.testing.assert_array_equal(loaded[..., 0] if loaded.ndim == 3 else loaded, expected)
    assert image_size_hw(path) == expected.shape == load_rgb(path).shape[:2]
    remarks = " ".join(remarks_of(path))
    assert ("EXIF" in remarks) == (orientation != 1)
    assert ("half-turn" in remarks) == (orientation == 3)


def test_turns_are_those_of_pillow() -> None:
    from PIL import ImageOps

    for orientation in range(1, 9):
        image = Image.open(io.BytesIO(file_of(grey(), exif=exif_of(orientation))))
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), _turned_array(grey(), orientation))


def test_images_with_broken_exif_are_read_with_a_remark(tmp_path: Path) -> None:
    chunk = b"eXIf" + b"II*\0\xff\xff\xff\x7f" + b"\xee" * 30
    whole = file_of(colour())
    broken = whole[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + whole[33:]
    path = written(tmp_path / "a.png", broken)
    np.testing.assert_array_equal(load_rgb(path), colour())
    jpeg = file_of(colour(), "JPEG")
    app1 = b"Exif\0\0" + b"MM\0*\0\0\0\x08\xff\xff" + b"\xab" * 20
    told = written(tmp_path / "a.jpg", jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:])
    np.testing.assert_array_equal(load_rgb(told), load_rgb(written(tmp_path / "plain.jpg", jpeg)))
    assert image_size_hw(told) == SIZE_HW


# ---- what cannot be read


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: b"", "the file is empty"),
        (lambda: b"no image", "not an image in a supported format"),
        (lambda: file_of(colour())[:300], "damaged or truncated"),
        (lambda: file_of(colour(), "JPEG")[:200], "damaged or truncated"),
        (lambda: encode_png(colour().astype(np.uint16) * 200)[:500], "damaged or truncated"),
        (lambda: encode_tiff(colour().astype(np.float32))[:900], "damaged or truncated"),
        (lambda: file_of(Image.new("RGB", (5, 4)), "PPM"), "a PNM image, not a supported image format"),
        (lambda: b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 40, "a JPEG 2000 image, not a supported"),
        (lambda: b"\0\0\0\x18ftypheic" + b"\0" * 40, "an HEIC image, not a supported"),
        (lambda: b"%PDF-1.4 ....", "a PDF, not a supported"),
        (lambda: b"8BPS" + b"\0" * 60, "a Photoshop file"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (
            lambda: encode_tiff(np.repeat(grey()[..., None], 2, axis=2).astype(np.uint16)),
            "a TIFF with 2 channels of 16-bit integers",
        ),
        (
            lambda: with_wrong_pixels(file_of(colour())),
            r"damaged or truncated \(the checksum of its IDAT part is wrong\)",
        ),
        (lambda: encode_tiff(grey().astype(np.float16)), "a TIFF with 1 channel of 16-bit floats"),
        (lambda: bomb(50_000, 50_000), "more than 178 megapixels"),
        (lambda: bomb(13_000, 14_000), "more than 178 megapixels"),
        (lambda: bomb(12_000, 14_000), r"damaged or truncated \(header says 14000x12000 pixels in 68 bytes\)"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_cause(tmp_path: Path, make: Callable[[], bytes], says: str) -> None:
    path = written(tmp_path / "a.png", make())
    for read in (load_image, image_size_hw, load_frame, load_native, remarks_of):
        with pytest.raises(ImageError, match=says) as caught:
            read(path)
        assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 260


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("JPEG", {"progressive": True}), ("GIF", {}), ("WEBP", {"lossless": True})]
)
def test_large_images_of_one_colour_are_no_bombs(tmp_path: Path, kind: str, options: dict[str, Any]) -> None:
    path = written(tmp_path / "a.bin", file_of(Image.new("1" if kind == "PNG" else "L", (4100, 4000)), kind, **options))
    assert image_size_hw(path) == (4000, 4100)


def with_wrong_pixels(png: bytes) -> bytes:
    """Flip a bit of the compressed pixels; most such files decode to other pixels."""
    at = png.index(b"IDAT") + 40
    return png[:at] + bytes([png[at] ^ 1]) + png[at + 1 :]


def bomb(width: int, height: int) -> bytes:
    """Return a small PNG that says that it is huge."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 9)) + chunk(b"IEND", b"")


def with_tags(tiff: bytes, **values: int) -> bytes:
    """Change width (256) or height (257) of a TIFF as `encode_tiff` writes it."""
    data = bytearray(tiff)
    for at in range(len(data) - 200, len(data) - 12):
        for name, tag in (("width", 256), ("height", 257)):
            if name in values and struct.unpack_from("<HHI", data, at) == (tag, 4, 1):
                struct.pack_into("<I", data, at + 8, values[name])
    return bytes(data)


@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_a_tiff_that_says_it_is_larger_than_its_pixels_is_damaged(tmp_path: Path, dtype: str) -> None:
    whole = encode_tiff(colour().astype(dtype))
    assert load_rgb(written(tmp_path / "a.tif", with_tags(whole, height=SIZE_HW[0]))).shape == (*SIZE_HW, 3)
    for changes in ({"height": 60}, {"width": 60_000, "height": 60_000}):
        with pytest.raises(ImageError, match=r"damaged or truncated|more than 178 megapixels"):
            load_image(written(tmp_path / "a.tif", with_tags(whole, **changes)))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.png", "no such image file"),
        ("a\0b.png", "holds a NUL byte"),
        ("x" * 300 + ".png", "longer than the file system allows"),
        ("file/inner.png", "no such image file"),
        ("folder", "is a folder"),
        ("loop", "leads back to itself"),
        ("pipe", "is not a regular file"),
        ("line\nbreak\x1b[31m.png", r"line\\nbreak\\x1b\[31m\.png: no such image file"),
    ],
)
def test_impossible_paths_are_told_with_their_cause(tmp_path: Path, name: str, says: str) -> None:
    written(tmp_path / "file", b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ImageError, match=says) as caught:
        load_image(Path(f"{tmp_path}/{name}"))
    assert "\n" not in str(caught.value)
    assert "\0" not in str(caught.value)


def test_permission_denied_is_not_called_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.png", file_of(colour()))
    if os.geteuid() != 0:
        path.chmod(0)
    else:
        # no file is closed to this user

        def denied(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", denied)
    with pytest.raises(ImageError, match=r"cannot be read \(permission denied\)"):
        load_image(path)


@pytest.mark.parametrize("name", ["A.PNG", "a.JPEG", "noext", "wrong.jpg", "ümlaut ß.png", "x" * 240 + ".png"])
def test_names_do_not_decide_what_an_image_is(tmp_path: Path, name: str) -> None:
    save_png(tmp_path / name, colour())
    np.testing.assert_array_equal(load_rgb(tmp_path / name), colour())


def test_a_mask_of_more_than_eight_bits_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "a.png", file_of(grey().astype(np.uint16)))
    with pytest.raises(ImageError, match="mask has mode L of 16 bit"):
        load_class_mask(path)


# ---- remembering and writing


def test_a_file_is_decoded_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "a.png", file_of(grey().astype(np.uint16) * 16))
    decoded: list[Path] = []

    def counted(file: Path) -> Any:
        decoded.append(file)
        return decode(file)

    monkeypatch.setattr(imageio, "decode", counted)
    monkeypatch.setattr(imageio, "_SETTLED_S", 0.0)
    time.sleep(0.02)
    assert image_size_hw(path) == SIZE_HW
    assert measure_value_range([path])[0] == ValueRange(low=0, high=4095)
    assert remarks_of(path) == ()
    assert len(decoded) == 1
    time.sleep(0.02)
    written(path, file_of(Image.new("L", (9, 5))))
    assert image_size_hw(path) == (5, 9)


def test_a_fresh_file_is_looked_at_each_time(tmp_path: Path) -> None:
    whole = file_of(colour())
    path = written(tmp_path / "a.png", whole)
    assert image_size_hw(path) == SIZE_HW
    half = whole[: len(whole) // 2] + b"\0" * (len(whole) - len(whole) // 2)
    written(path, half)
    with pytest.raises(ImageError, match="damaged or truncated"):
        image_size_hw(path)


def test_pictures_for_people_say_who_made_them_and_data_do_not(tmp_path: Path) -> None:
    save_png(tmp_path / "data.png", colour())
    save_png(tmp_path / "sheet.png", colour(), software=True, durable=False)
    save_jpeg(tmp_path / "sheet.jpg", colour(), software=True)
    assert (tmp_path / "data.png").read_bytes() == encode_png(colour()) == file_of(colour(), compress_level=3)
    np.testing.assert_array_equal(load_rgb(tmp_path / "sheet.png"), colour())
    assert Image.open(tmp_path / "sheet.png").info["Software"] == "defectory"
    assert b"Software: defectory" in (tmp_path / "sheet.jpg").read_bytes()


# ---- anything at all


def seeds_of_fuzz() -> dict[str, bytes]:
    exif, page = exif_of(6), Image.fromarray(colour()[..., ::-1])
    animated: dict[str, Any] = {"save_all": True, "append_images": [page, page]}
    return {
        "png": file_of(colour()),
        "png grey": file_of(grey()),
        "png 16": file_of(grey().astype(np.uint16) * 16),
        "png rgb 16": encode_png(colour().astype(np.uint16) * 200),
        "png exif": file_of(colour(), exif=exif),
        "apng": file_of(colour(), **animated),
        "jpeg": file_of(colour(), "JPEG"),
        "jpeg exif": file_of(colour(), "JPEG", exif=exif),
        "jpeg progressive": file_of(colour(), "JPEG", progressive=True),
        "bmp": file_of(colour(), "BMP"),
        "webp": file_of(colour(), "WEBP"),
        "webp animated": file_of(colour(), "WEBP", **animated),
        "gif": file_of(grey(), "GIF"),
        "gif animated": file_of(colour(), "GIF", **animated),
        "tiff": file_of(colour(), "TIFF"),
        "tiff lzw": file_of(colour(), "TIFF", compression="tiff_lzw"),
        "tiff jpeg": file_of(colour(), "TIFF", compression="jpeg"),
        "tiff pages": file_of(colour(), "TIFF", **animated),
        "tiff exif": file_of(colour(), "TIFF", exif=exif),
        "tiff 16": encode_tiff(grey().astype(np.uint16)),
        "tiff rgb 16": encode_tiff(colour().astype(np.uint16)),
        "tiff rgb float": encode_tiff(colour().astype(np.float32)),
        "tiff float": file_of(grey().astype(np.float32), "TIFF", compression="tiff_deflate"),
    }


def mutated(data: bytes, rng: random.Random) -> bytes:
    result, kind = bytearray(data), rng.randrange(5)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        for _ in range(rng.choice((1, 1, 2, 8))):
            result[rng.randrange(min(len(data), 120) if rng.random() < 0.6 else len(data))] = rng.randrange(256)
    elif kind == 2:
        at = rng.randrange(len(data))
        result[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x80"))
    elif kind == 3:
        first, last = sorted((rng.randrange(len(data)), rng.randrange(len(data))))
        del result[first:last]
    else:
        at = rng.randrange(len(data))
        result[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 40)))
    return bytes(result)


def test_standard_error_is_there_again_after_many_threads_read_damaged_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files = [
        written(tmp_path / f"{number}.tif", file_of(colour(), "TIFF", compression="tiff_lzw")[:700])
        for number in range(40)
    ]

    def read(path: Path) -> int:
        with pytest.raises(ImageError):
            load_image(path)
        return 1

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(read, files)) == 40
    os.write(2, b"still there")
    assert capfd.readouterr().err == "still there"


def test_nothing_but_image_errors_comes_out_of_600_mutated_files(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rng, path = random.Random(29), tmp_path / "a.bin"
    read, refused, told = 0, 0, set[str]()
    seeds = list(seeds_of_fuzz().values())
    for number in range(600):
        path.write_bytes(mutated(seeds[number % len(seeds)], rng))
        began = time.monotonic()
        for door in (load_image, load_frame, image_size_hw, load_class_mask, lambda file: measure_value_range([file])):
            try:
                door(path)
                read += 1
            except ImageError as error:
                refused += 1
                told.add(str(error))
        assert time.monotonic() - began < 5 * 2
    assert read > 300
    assert refused > 600
    assert not any("\n" in line for line in told)
    assert capfd.readouterr().err == "", "libraries are kept off the terminal"
