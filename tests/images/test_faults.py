"""What cannot be read is refused in one line, whatever the bytes are."""

from __future__ import annotations

import os
import random
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.errors import ImageError
from defectory.images.facts import image_size_hw, measure_value_range, remarks_of
from defectory.images.frames import load_frame, load_native
from defectory.images.load import load_class_mask, load_image, load_rgb
from defectory.images.save import encode_png, save_png
from defectory.images.tiff import encode_tiff

from .samples import SIZE_HW, colour, exif_of, file_of, grey, written


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
