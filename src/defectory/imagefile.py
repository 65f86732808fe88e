"""Load image files with their original values: Pillow reads 8 bits, OpenCV what Pillow reads badly.

Every failure is one line. Conversion to RGB for models is done in `imageio`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import warnings
import zlib
from collections.abc import Generator
from dataclasses import dataclass, replace
from os import stat_result
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from numpy.typing import NDArray
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
from defectory.terminal import printable

MAX_PIXELS = 178_000_000
"""Larger images are refused as decompression bombs; Pillow's own limit is slightly higher."""
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
SHOWN_NAME = 160
ORIENTATION = 0x0112
_HALF_TURN, _ON_ITS_SIDE = 3, (5, 6, 7, 8)
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_SAMPLES = {1: "uint", 2: "int", 3: "float"}
_OTHERS = (
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (4, b"ftypavif", "an AVIF image"),
    (4, b"ftyphei", "an HEIC image"),
    (4, b"ftypmif1", "an HEIC image"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"%PDF", "a PDF"),
    (0, b"%!PS", "a PostScript file"),
    (128, b"DICM", "a DICOM file"),
    (0, b"\x89HDF", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy file"),
    (0, b"\x76\x2f\x31\x01", "an OpenEXR image"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"\0\0\x01\0", "an icon"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"<svg", "an SVG drawing"),
    (0, b"<?xml", "an XML file"),
    (0, b"<!DOCTYPE", "a web page"),
    (0, b"<html", "a web page"),
    (0, b"version https://git-lfs", "a Git LFS pointer"),
    *((0, mark, "a PNM image") for mark in (b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P5 ", b"P6 ")),
)
"""Other file types that a file may have: offset, first bytes, name."""
_FIX = "save it as PNG, JPEG, TIFF, BMP or WebP"


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


@dataclass(frozen=True, kw_only=True, eq=False)
class Decoded:
    """The first page of an image file, upright."""

    header: Header
    image: Image.Image | None
    """An 8-bit image, in its own mode."""
    values: NDArray[Any] | None
    """A deep image: [H,W], or [H,W,C] with C of 2 to 4: grey or RGB, then alpha."""
    remarks: tuple[str, ...]
    """What was rotated, ignored or could not be determined."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width of the upright image."""
        if self.values is not None:
            return self.values.shape[0], self.values.shape[1]
        assert self.image is not None
        return self.image.height, self.image.width


def file_state(path: Path) -> stat_result:
    """Return the file system's status of an image file.

    Raises:
        ImageError: it does not exist, may not be accessed, is empty or not a regular file, or its name is invalid.
    """
    if "\0" in str(path):
        raise ImageError(_named(path), "the name holds a NUL byte", "correct the file name")
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    except ValueError:  # for example a name that the file system's encoding cannot represent
        raise ImageError(_named(path), "is not a valid file name", "correct the file name") from None
    if stat.S_ISDIR(state.st_mode):
        raise ImageError(_named(path), "is a folder, not an image file", "give a file")
    if not stat.S_ISREG(state.st_mode):
        raise ImageError(_named(path), "is not a regular file", "give an image file")
    if state.st_size == 0:
        raise ImageError(_named(path), "the file is empty (0 bytes)", "copy the image again")
    if state.st_size > MAX_BYTES:
        raise ImageError(_named(path), f"the file has {state.st_size / 1e9:.0f} GB", "cut the image into parts")
    return state


def read_header(path: Path) -> Header:
    """Return the properties of an image file without decoding its pixels.

    Raises:
        ImageError: as for `decode`, as far as the first bytes show it.
    """
    file_state(path)
    with _one_line(path), open(path, "rb") as stream:
        return _opened(path, stream)[0]


def decode(path: Path) -> Decoded:
    """Load the first page of an image file with its original values, upright.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, too large, or of an unsupported kind.
    """
    file_state(path)
    with _one_line(path):
        with open(path, "rb") as stream:
            header, image = _opened(path, stream)
            remarks = _remarks_on_pages(image)
        with open(path, "rb") as stream:
            # counting pages may have moved away from the first one
            image = None if image is None else Image.open(stream, formats=FORMATS)
            upright, orientation = None, 1
            if image is not None:
                if header.kind == "PNG":
                    _require_png_checksums(path)
                before = _orientation(image) if header.kind == "TIFF" else None
                image.load()
                orientation = _orientation(image) if before is None else before
                # Pillow rotates TIFF files itself
                upright = image if header.kind == "TIFF" else _turned_image(image, orientation)
                if orientation is None:
                    remarks.append("EXIF data are damaged: the orientation, if any, is not applied")
            values: NDArray[Any] | None = None
            if header.is_deep:
                values = _by_opencv(path, header) if header.by_opencv else _by_pillow(image, header)
                values = values if header.kind == "TIFF" else _turned_array(values, orientation or 1)
                upright = None
    if orientation not in (None, 1):
        turn = "half-turn" if orientation == _HALF_TURN else "rotation" if orientation in (6, 8) else "orientation"
        remarks.append(f"EXIF {turn} applied: labels must have been drawn on the upright image")
    if header.white_is_zero and header.is_deep:
        remarks.append("TIFF in which 0 is white, read as if 0 were black")
    return Decoded(header=header, image=upright, values=values, remarks=tuple(remarks))


def _opened(path: Path, stream: IO[bytes]) -> tuple[Header, Image.Image | None]:
    try:
        image = Image.open(stream, formats=FORMATS)
    except UnidentifiedImageError:
        stream.seek(0)
        if stream.read(4) not in _TIFF_MARKS:
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
        raise _too_large(path, f"{height}x{width} pixels, ")
    num_bytes = path.stat().st_size
    if height * width > max(LARGE_PIXELS, MAX_PIXELS_PER_BYTE.get(header.kind, np.inf) * num_bytes):
        found = f"damaged or truncated (header says {height}x{width} pixels in {num_bytes} bytes)"
        raise ImageError(_named(path), found, "copy the image again")
    if header.kind == "WEBP" and max(height, width) > MAX_WEBP_SIDE_PX:
        raise ImageError(
            _named(path),
            f"damaged or truncated (header says {height}x{width} pixels, more than WebP allows)",
            "copy the image again",
        )
    if height < 1 or width < 1:
        raise ImageError(_named(path), f"has {height}x{width} pixels", "copy the image again")
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
        size_hw = (size_hw[1], size_hw[0]) if tags.get(274, 1) in _ON_ITS_SIDE else size_hw
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
            _named(path),
            what,
            "save it as grey or RGB(A) of 8 or 16-bit integers or 32-bit floats, channels interleaved",
        )
    return Header(
        mode={1: "L", 3: "RGB", 4: "RGBA"}[channels], size_hw=size_hw, bits=bits, sample=sample, by_opencv=True, **about
    )


def _require_png_checksums(path: Path) -> None:
    """Check the checksums of a PNG; Pillow decodes most files with wrong ones to wrong pixels."""
    size = path.stat().st_size
    with open(path, "rb") as stream:
        stream.seek(8)
        while stream.tell() + 12 <= size:
            length, name = int.from_bytes(stream.read(4), "big"), stream.read(4)
            if stream.tell() + length + 4 > size:
                return
            if name != b"IDAT":
                stream.seek(length + 4, os.SEEK_CUR)
                continue
            checksum = zlib.crc32(stream.read(length), zlib.crc32(name))
            if checksum != int.from_bytes(stream.read(4), "big"):
                raise ImageError(
                    _named(path),
                    "damaged or truncated (the checksum of its IDAT part is wrong)",
                    "copy the image again",
                )


def _require_whole_tiff(path: Path, tags: Any) -> None:
    """Check that a TIFF lists enough pieces and has enough bytes; missing pixels would be decoded as black."""
    if 256 not in tags or 257 not in tags:
        raise ImageError(_named(path), "damaged or truncated (a TIFF without width or height)", "copy the image again")
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
        raise ImageError(
            _named(path),
            f"damaged or truncated (pixels of a TIFF of {height}x{width} are missing)",
            "copy the image again",
        )


def _by_pillow(image: Image.Image | None, header: Header) -> NDArray[Any]:
    assert image is not None
    dtype = np.dtype(f"{header.sample}{header.bits}")
    return np.asarray(image).astype(dtype)


def _require_whole_chunks(path: Path) -> None:
    """Check that no chunk of a PNG extends past its end.

    OpenCV allocates as much memory as a chunk declares, up to 4 GB, before it checks.
    """
    num_bytes, at = path.stat().st_size, 8
    with open(path, "rb") as stream:
        while at < num_bytes:
            stream.seek(at)
            head = stream.read(8)
            at += 12 + int.from_bytes(head[:4], "big")
            if at > num_bytes or len(head) < 8:
                raise ImageError(
                    _named(path), "damaged or truncated (a part of the PNG is missing)", "copy the image again"
                )
            if head[4:] == b"IEND":
                return


def _by_opencv(path: Path, header: Header) -> NDArray[Any]:
    if header.kind == "PNG":
        _require_whole_chunks(path)
    read: Any = cv2.imdecode(np.memmap(path, np.uint8, mode="r"), cv2.IMREAD_UNCHANGED)
    if read is None:
        raise ImageError(_named(path), "damaged or truncated (no pixels can be decoded)", "copy the image again")
    values: NDArray[Any] = read
    channels = {"L": 1, "LA": 4, "RGB": 3, "RGBA": 4}[header.mode]
    found = 1 if values.ndim == 2 else values.shape[2]
    if (
        values.shape[:2] != header.size_hw
        or values.dtype != np.dtype(f"{header.sample}{header.bits}")
        or found not in (channels, 4)
    ):
        raise ImageError(_named(path), "cannot be decoded with the bit depth in its header", "save the image again")
    if values.ndim == 2:
        return values
    order = {"LA": [0, 3], "RGB": [2, 1, 0], "RGBA": [2, 1, 0, 3]}[header.mode]
    return np.ascontiguousarray(values[..., order])


def _remarks_on_pages(image: Image.Image | None) -> list[str]:
    if image is None:
        return []
    try:
        pages = int(getattr(image, "n_frames", 1))
    except Exception:  # noqa: BLE001, RUF100  # Pillow raises any exception here; page 1 may be intact
        return ["page 1 of several is read; the others are damaged"]
    return [f"page 1 of {pages} is read"] if pages > 1 else []


def _orientation(image: Image.Image) -> int | None:
    """Return the EXIF orientation, 1 to 8; None if EXIF is damaged."""
    try:
        value: object = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001, RUF100  # Pillow raises any exception here; the pixels are intact
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _turned_image(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation or 1)
    if turn is None:
        return image
    turned = image.transpose(turn)
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _turned_array(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation in _ON_ITS_SIDE:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)


@contextlib.contextmanager
def _one_line(path: Path) -> Generator[None]:
    """Turn any failure to read a file into an ImageError with its cause."""
    try:
        with _quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise _too_large(path, "") from None
    except UnidentifiedImageError:
        raise _unknown(path) from None
    except MemoryError:
        raise ImageError(_named(path), "needs more memory than is available", "cut the image into parts") from None
    except OSError as error:
        raise (_unreadable(path, error) if error.errno else _damaged(path, error)) from None
    except Exception as error:  # noqa: BLE001, RUF100  # Pillow raises any exception for damaged files
        raise _damaged(path, error) from None


_quiet_lock = threading.Lock()
_quiet_state = {"depth": 0, "stderr": -1}


@contextlib.contextmanager
def _quiet_libraries() -> Generator[None]:
    """Hide what libtiff and libpng print on standard error about a damaged file; the error reports it in one line."""
    with _quiet_lock:
        _quiet_state["depth"] += 1
        if _quiet_state["depth"] == 1:
            _quiet_state["stderr"] = _without_stderr()
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_state["depth"] -= 1
            if _quiet_state["depth"] == 0 and _quiet_state["stderr"] >= 0:
                os.dup2(_quiet_state["stderr"], 2)
                os.close(_quiet_state["stderr"])


def _without_stderr() -> int:
    """Redirect descriptor 2 to nowhere; return its old target, -1 if it is closed."""
    try:
        before = os.dup(2)
    except OSError:
        return -1
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    return before


def _damaged(path: Path, error: Exception) -> ImageError:
    told = printable(next(iter(str(error).splitlines()), "") or type(error).__name__)
    told = f"{told} is missing" if isinstance(error, KeyError) else told
    return ImageError(_named(path), f"damaged or truncated ({told[:SHOWN_NAME]})", "copy the image again")


def _too_large(path: Path, what: str) -> ImageError:
    return ImageError(_named(path), f"{what}more than {MAX_PIXELS // 1_000_000} megapixels", "cut the image into parts")


def _unreadable(path: Path, error: OSError) -> ImageError:
    where = _named(path)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return ImageError(where, "no such image file", "check the file name and --image-root")
        case errno.EACCES | errno.EPERM:
            return ImageError(where, "cannot be read (permission denied)", "allow reading the file and its folder")
        case errno.ENAMETOOLONG:
            return ImageError(where, "the name is longer than the file system allows", "shorten the file name")
        case errno.ELOOP:
            return ImageError(where, "is a link that leads back to itself", "give the file that it should point to")
        case _:
            return ImageError(
                where, f"cannot be read ({error.strerror or error})", "check the disk and copy the image again"
            )


def _unknown(path: Path) -> ImageError:
    with open(path, "rb") as stream:
        start = stream.read(256)
    known = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"GIF8", *_TIFF_MARKS)
    name = next((name for at, mark, name in _OTHERS if start[at : at + len(mark)] == mark), None)
    if name is not None:
        return ImageError(_named(path), f"{name}, not a supported image format", _FIX)
    if start.startswith(known):
        return ImageError(
            _named(path),
            "damaged or truncated (begins like an image, but cannot be read as one)",
            "copy the image again",
        )
    return ImageError(_named(path), "not an image in a supported format", _FIX)


def _named(path: Path) -> str:
    """Return a path for a message: one line, and not too long."""
    text = printable(path)
    return text if len(text) <= 4 * SHOWN_NAME else f"{text[:SHOWN_NAME]}…{text[-SHOWN_NAME // 4 :]}"


def looks_like_image(path: Path) -> bool:
    """Return whether the first bytes of a file, for example one without suffix, are those of a readable image."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(12)
    except (OSError, ValueError):
        return False
    return start.startswith((b"\x89PNG\r\n", b"\xff\xd8\xff", *_TIFF_MARKS)) or (
        start[:4] == b"RIFF" and start[8:] == b"WEBP"
    )
