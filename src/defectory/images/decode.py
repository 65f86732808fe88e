"""Decode image files to their original values: Pillow reads 8 bits, OpenCV what Pillow reads badly.

Conversion to RGB for models is done in `convert`.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.errors import ImageError
from defectory.images.faults import damaged, named, one_line
from defectory.images.header import FORMATS, ON_ITS_SIDE, Header, file_state, open_image

ORIENTATION = 0x0112
_HALF_TURN = 3
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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


def decode(path: Path) -> Decoded:
    """Load the first page of an image file with its original values, upright.

    Raises:
        ImageError: the file is missing, unreadable, empty, damaged, too large, or of an unsupported kind.
    """
    file_state(path)
    with one_line(path):
        with open(path, "rb") as stream:
            header, image = open_image(path, stream)
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
                raise damaged(path, "the checksum of its IDAT part is wrong")


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
                raise damaged(path, "a part of the PNG is missing")
            if head[4:] == b"IEND":
                return


def _by_opencv(path: Path, header: Header) -> NDArray[Any]:
    if header.kind == "PNG":
        _require_whole_chunks(path)
    read: Any = cv2.imdecode(np.memmap(path, np.uint8, mode="r"), cv2.IMREAD_UNCHANGED)
    if read is None:
        raise damaged(path, "no pixels can be decoded")
    values: NDArray[Any] = read
    channels = {"L": 1, "LA": 4, "RGB": 3, "RGBA": 4}[header.mode]
    found = 1 if values.ndim == 2 else values.shape[2]
    if (
        values.shape[:2] != header.size_hw
        or values.dtype != np.dtype(f"{header.sample}{header.bits}")
        or found not in (channels, 4)
    ):
        raise ImageError(named(path), "cannot be decoded with the bit depth in its header", "save the image again")
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


def _turned_image(image: Image.Image, orientation: int | None) -> Image.Image:
    turn = _TURNS.get(orientation or 1)
    if turn is None:
        return image
    turned = image.transpose(turn)
    if "transparency" in image.info:
        turned.info["transparency"] = image.info["transparency"]
    return turned


def _turned_array(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    if orientation in ON_ITS_SIDE:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return np.ascontiguousarray(values)
