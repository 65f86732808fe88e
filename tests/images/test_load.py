"""Every kind of number, channel, page and orientation is read, and written again where that is possible."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from defectory.errors import ImageError
from defectory.images.decode import _turned_array
from defectory.images.facts import image_size_hw, remarks_of
from defectory.images.frames import load_frame, load_native
from defectory.images.load import load_image, load_rgb
from defectory.images.save import encode_png
from defectory.images.tiff import encode_tiff

from .samples import SIZE_HW, colour, exif_of, file_of, grey, written


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
