"""Write images as PNG and JPEG files, atomically."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from defectory.files import write_bytes

SOFTWARE = "defectory"
"""Software name in the metadata of pictures for people, so that a folder of ours can be recognised."""


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16], *, compress_level: int = 3) -> bytes:
    """Encode grey [H,W], or grey and alpha, RGB or RGBA [H,W,C], of uint8 or uint16 as PNG.

    The same pixels always give the same bytes.
    """
    if image.ndim == 3 and image.dtype == np.uint16:
        return _encode_deep_png(image.astype(np.uint16, copy=False), compress_level)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def _encode_deep_png(image: NDArray[np.uint16], compress_level: int) -> bytes:
    """Encode 16-bit grey and alpha, RGB or RGBA, which Pillow cannot write.

    Every pixel is stored as the difference to the pixel before it in its row.
    """
    height, width, channels = image.shape
    rows = np.ascontiguousarray(image, dtype=">u2").view(np.uint8).reshape(height, width, channels * 2)
    # filter 1 (sub): bytes are modulo 256
    filtered = np.concatenate([rows[:, :1], rows[:, 1:] - rows[:, :-1]], axis=1).reshape(height, -1)
    data = np.concatenate([np.ones((height, 1), np.uint8), filtered], axis=1).tobytes()

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(data, compress_level)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def save_png(
    path: Path, image: NDArray[np.uint8] | NDArray[np.uint16], *, software: bool = False, durable: bool | None = None
) -> None:
    """Write an image that `encode_png` accepts to a PNG file atomically.

    Args:
        path: the file.
        image: pixels.
        software: mark the file as ours in its metadata, for pictures in a user's folder.
        durable: wait until the file is on disk; None means yes, except in an unfinished folder.
    """
    data = encode_png(image)
    if software:
        buffer, text = io.BytesIO(), PngInfo()
        text.add_text("Software", SOFTWARE)
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=3, pnginfo=text)
        data = buffer.getvalue()
    write_bytes(path, data, durable=durable)


def save_jpeg(
    path: Path, image: NDArray[np.uint8], *, quality: int = 85, software: bool = False, durable: bool | None = None
) -> None:
    """Write RGB uint8 [H,W,3] to a JPEG file atomically; for contact sheets, never for data.

    Arguments are as for `save_png`.
    """
    buffer = io.BytesIO()
    comment: dict[str, Any] = {"comment": f"Software: {SOFTWARE}"} if software else {}
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality, **comment)
    write_bytes(path, buffer.getvalue(), durable=durable)
