"""What the first bytes of an image file show: its format, size and number type, and whether it can be whole.

No pixels are decoded.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass, replace
from os import stat_result
from pathlib import Path
from typing import IO, Any

from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from defectory.errors import ImageError
from defectory.images.faults import MAX_PIXELS, TIFF_MARKS, damaged, named, one_line, too_large, unreadable

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
"""Lower-case suffixes of files that are taken for images."""
LARGE_PIXELS = 16_000_000
MAX_PIXELS_PER_BYTE = {"PNG": 10_000.0, "JPEG": 2_000.0, "GIF": 4_000.0, "WEBP": 60_000.0}
"""Maximum number of pixels per byte of a file, by format.

No encoder packs more pixels of one colour into a byte; a large image that claims so would waste time and memory before
it fails.
"""
MAX_WEBP_SIDE_PX = 16_383
MAX_BYTES = 16_000_000_000
_PLUGINS = (BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)
"""Imported explicitly: if Pillow needs a plugin that is not imported, it loads the plugins of all formats."""
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
ON_ITS_SIDE = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
_SAMPLES = {1: "uint", 2: "int", 3: "float"}


@dataclass(frozen=True, kw_only=True)
class Header:
    """The properties of an image file, as far as its first bytes show them."""

    kind: str
    """Pillow's name of the format."""
    mode: str
    """Pillow's name of the channels; `L`, `LA`, `RGB` or `RGBA` for images that OpenCV reads."""
    size_hw: tuple[int, int]
    """Size as stored; an orientation is not applied yet, except in TIFF files."""
    bits: int
    sample: str
    """`uint`, `int` or `float`."""
    by_opencv: bool
    big_endian: bool = False
    white_is_zero: bool = False

    @property
    def is_deep(self) -> bool:
        """Return whether values do not fit into unsigned 8 bits."""
        return self.bits > 8 or self.sample != "uint"


def file_state(path: Path) -> stat_result:
    """Return the file system's status of an image file.

    Raises:
        ImageError: it does not exist, may not be accessed, is empty or not a regular file, or its name is invalid.
    """
    if "\0" in str(path):
        raise ImageError(named(path), "the name holds a NUL byte", "correct the file name")
    try:
        state = path.stat()
    except OSError as error:
        raise unreadable(path, error) from None
    except ValueError:  # for example a name that the file system's encoding cannot represent
        raise ImageError(named(path), "is not a valid file name", "correct the file name") from None
    if stat.S_ISDIR(state.st_mode):
        raise ImageError(named(path), "is a folder, not an image file", "give a file")
    if not stat.S_ISREG(state.st_mode):
        raise ImageError(named(path), "is not a regular file", "give an image file")
    if state.st_size == 0:
        raise ImageError(named(path), "the file is empty (0 bytes)", "copy the image again")
    if state.st_size > MAX_BYTES:
        raise ImageError(named(path), f"the file has {state.st_size / 1e9:.0f} GB", "cut the image into parts")
    return state


def read_header(path: Path) -> Header:
    """Return the properties of an image file without decoding its pixels.

    Raises:
        ImageError: as for `decode`, as far as the first bytes show it.
    """
    file_state(path)
    with one_line(path), open(path, "rb") as stream:
        return open_image(path, stream)[0]


def looks_like_image(path: Path) -> bool:
    """Return whether the first bytes of a file, for example one without suffix, are those of a readable image."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(12)
    except (OSError, ValueError):
        return False
    return start.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff", *TIFF_MARKS)) or (
        start[:4] == b"RIFF" and start[8:] == b"WEBP"
    )


def open_image(path: Path, stream: IO[bytes]) -> tuple[Header, Image.Image | None]:
    """Return the properties of an opened image file, and Pillow's image of it if Pillow knows its kind."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(4) not in TIFF_MARKS:
            raise
        stream.seek(0)
        return _small_enough(path, _tiff_header(path, _tiff_tags(stream), mode="", size_hw=None)), None
    size_hw = (image.height, image.width)
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # pyright: ignore[reportAttributeAccessIssue]
        return _small_enough(path, _tiff_header(path, tags, mode=image.mode, size_hw=size_hw)), image
    bits = 8
    if image.format == "PNG":
        stream.seek(24)
        bits = max(8, stream.read(1)[0])
    # Pillow reduces 16-bit colour to 8 bits
    by_opencv = bits > 8 and not image.mode.startswith("I")
    mode = "L" if image.mode.startswith("I") else image.mode
    header = Header(kind=str(image.format), mode=mode, size_hw=size_hw, bits=bits, sample="uint", by_opencv=by_opencv)
    if header.is_deep and by_opencv:
        stream.seek(25)
        header = replace(header, mode={2: "RGB", 4: "LA", 6: "RGBA"}.get(stream.read(1)[0], mode))
    stream.seek(0)
    return _small_enough(path, header), image


def _small_enough(path: Path, header: Header) -> Header:
    height, width = header.size_hw
    if height * width > MAX_PIXELS:
        raise too_large(path, f"{height}x{width} pixels, ")
    num_bytes = path.stat().st_size
    if height * width > max(LARGE_PIXELS, MAX_PIXELS_PER_BYTE.get(header.kind, math.inf) * num_bytes):
        raise damaged(path, f"header says {height}x{width} pixels in {num_bytes} bytes")
    if header.kind == "WEBP" and max(height, width) > MAX_WEBP_SIDE_PX:
        raise damaged(path, f"header says {height}x{width} pixels, more than WebP allows")
    if height < 1 or width < 1:
        raise ImageError(named(path), f"has {height}x{width} pixels", "copy the image again")
    return header


def _tiff_tags(stream: IO[bytes]) -> Any:
    start = stream.read(8)
    if start[2] == 43 or start[3] == 43:
        start += stream.read(8)
    tags = TiffImagePlugin.ImageFileDirectory_v2(start)
    stream.seek(tags.next)
    tags.load(stream)
    return tags


def _tiff_header(path: Path, tags: Any, *, mode: str, size_hw: tuple[int, int] | None) -> Header:
    """Return the properties of a TIFF; `mode` and `size_hw` are Pillow's, if it knows the kind."""
    _require_whole_tiff(path, tags)
    listed = tags.get(258, (1,))
    bits, sample = int(max(listed)), _SAMPLES.get(int(max(tags.get(339, (1,)))), "unknown")
    channels, photometric = int(tags.get(277, 1)), int(tags.get(262, 1))
    about: dict[str, Any] = {"kind": "TIFF", "big_endian": tags.prefix == b"MM", "white_is_zero": photometric == 0}
    deep = bits > 8 or sample in ("int", "float")
    if mode and size_hw is not None and not deep:
        return Header(mode=mode, size_hw=size_hw, bits=8, sample="uint", by_opencv=False, **about)
    if size_hw is None:
        size_hw = (int(tags[257]), int(tags[256]))
        size_hw = (size_hw[1], size_hw[0]) if tags.get(274, 1) in ON_ITS_SIDE else size_hw
    one_channel = {
        ("I;16", "uint", bits),
        ("I;16B", "uint", bits),
        ("I", "int", 16),
        ("I", "int", 32),
        ("F", "float", 32),
    }
    if (mode, sample, bits) in one_channel:
        return Header(
            mode="L", size_hw=size_hw, bits=16 if bits < 16 else bits, sample=sample, by_opencv=False, **about
        )
    # OpenCV misreads signed bytes with alpha
    readable = bits in ((32, 64) if sample == "float" else (16, 32, 64) if channels == 4 else (8, 16, 32, 64))
    if (
        not deep
        or not readable
        or channels not in (1, 3, 4)
        or photometric > 2
        or (channels > 1 and int(tags.get(284, 1)) != 1)
        or sample == "unknown"
    ):
        stored = ", stored as separate planes" if channels > 1 and int(tags.get(284, 1)) != 1 else ""
        numbers = {"uint": "integers", "int": "signed integers", "float": "floats"}.get(
            sample, "numbers of an unknown kind"
        )
        what = (
            f"a TIFF with {channels} channel{'s' if channels > 1 else ''} of {bits}-bit {numbers}{stored}, which "
            "is not supported"
        )
        raise ImageError(
            named(path),
            what,
            "save it as grey or RGB(A) of 8 or 16-bit integers or 32-bit floats, channels interleaved",
        )
    return Header(
        mode={1: "L", 3: "RGB", 4: "RGBA"}[channels], size_hw=size_hw, bits=bits, sample=sample, by_opencv=True, **about
    )


def _require_whole_tiff(path: Path, tags: Any) -> None:
    """Check that a TIFF lists enough pieces and has enough bytes; missing pixels would be decoded as black."""
    if 256 not in tags or 257 not in tags:
        raise damaged(path, "a TIFF without width or height")
    width, height = int(tags[256]), int(tags[257])
    planes = int(tags.get(277, 1)) if int(tags.get(284, 1)) == 2 else 1
    if 324 in tags:
        across, down = (-(-side // max(1, int(tags.get(tag, 1)))) for side, tag in ((width, 322), (height, 323)))
        needed, listed = across * down * planes, len(tags[324])
    else:
        needed, listed = -(-height // max(1, int(tags.get(278, height) or height))) * planes, len(tags.get(273, ()))
    bits = sum(int(value) for value in tags.get(258, (1,)))
    is_subsampled = int(tags.get(262, 1)) == 6
    missing = int(tags.get(259, 1)) == 1 and not is_subsampled and width * height * bits // 8 > path.stat().st_size
    if listed < needed or missing:
        raise damaged(path, f"pixels of a TIFF of {height}x{width} are missing")
