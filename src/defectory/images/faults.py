"""Why an image file cannot be read: one line for every fault, whichever library found it."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import warnings
from collections.abc import Generator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from defectory.errors import ImageError
from defectory.terminal import printable

MAX_PIXELS = 178_000_000
"""Larger images are refused as decompression bombs; Pillow's own limit is slightly higher."""
SHOWN_NAME = 160
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
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


@contextlib.contextmanager
def one_line(path: Path) -> Generator[None]:
    """Turn any failure to read a file into an ImageError with its cause."""
    try:
        with _quiet_libraries(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise too_large(path, "") from None
    except UnidentifiedImageError:
        raise _unknown(path) from None
    except MemoryError:
        raise ImageError(named(path), "needs more memory than is available", "cut the image into parts") from None
    except OSError as error:
        raise (unreadable(path, error) if error.errno else _damaged_as_told(path, error)) from None
    except Exception as error:  # noqa: BLE001, RUF100  # Pillow raises any exception for damaged files
        raise _damaged_as_told(path, error) from None


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


def damaged(path: Path, why: str) -> ImageError:
    """Return the error for a file that begins like an image but is not whole."""
    return ImageError(named(path), f"damaged or truncated ({why})", "copy the image again")


def _damaged_as_told(path: Path, error: Exception) -> ImageError:
    told = printable(next(iter(str(error).splitlines()), "") or type(error).__name__)
    told = f"{told} is missing" if isinstance(error, KeyError) else told
    return damaged(path, told[:SHOWN_NAME])


def too_large(path: Path, what: str) -> ImageError:
    """Return the error for an image of more than `MAX_PIXELS`; `what` begins it, such as its size."""
    return ImageError(named(path), f"{what}more than {MAX_PIXELS // 1_000_000} megapixels", "cut the image into parts")


def unreadable(path: Path, error: OSError) -> ImageError:
    """Return the error for a file that the system does not let us read."""
    where = named(path)
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
    known = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"RIFF", b"GIF8", *TIFF_MARKS)
    name = next((name for at, mark, name in _OTHERS if start[at : at + len(mark)] == mark), None)
    if name is not None:
        return ImageError(named(path), f"{name}, not a supported image format", _FIX)
    if start.startswith(known):
        return damaged(path, "begins like an image, but cannot be read as one")
    return ImageError(named(path), "not an image in a supported format", _FIX)


def named(path: Path) -> str:
    """Return a path for a message: one line, and not too long."""
    text = printable(path)
    return text if len(text) <= 4 * SHOWN_NAME else f"{text[:SHOWN_NAME]}…{text[-SHOWN_NAME // 4 :]}"
