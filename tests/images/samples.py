"""Small images, never square, and files of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
