"""Images and masks in and out: every conversion stated, every failure one line."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from defectory.errors import ImageError
from defectory.run import write_bytes

MAX_PIXELS = 200_000_000
"""Larger images are refused as decompression bombs."""
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An RGB image uint8 [H,W,3] and how it came to be one, in words."""

    rgb: NDArray[np.uint8]
    conversion: str


def _open(path: Path) -> Image.Image:
    if not path.is_file():
        raise ImageError(path, "no such image file", "check the file name and --image-root")
    if path.stat().st_size == 0:
        raise ImageError(path, "the file is empty (0 bytes)", "copy the image again")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(path)
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ImageError(
                    path, f"{height}x{width} pixels, more than {MAX_PIXELS // 1_000_000} megapixels", "cut the image into parts"
                )
            image.load()
    except Image.DecompressionBombError:
        raise ImageError(path, f"more than {MAX_PIXELS // 1_000_000} megapixels", "cut the image into parts") from None
    except UnidentifiedImageError:
        raise ImageError(path, "not an image in a known format", f"give one of {', '.join(sorted(IMAGE_SUFFIXES))}") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(
            path, f"damaged or truncated ({str(error).splitlines()[0] or type(error).__name__})", "copy the image again"
        ) from None
    return image


def load_image(path: Path) -> LoadedImage:
    """Load an image file as RGB and say how it was converted.

    EXIF orientation is applied. 16-bit and 32-bit integer values are divided by 257 (65535 becomes 255);
    floats in [0,1] are scaled by 255. Grey is repeated to three channels, palettes are resolved,
    alpha is dropped over black.

    Raises:
        ImageError: missing, empty, truncated, too large or not an image.
    """
    image = _open(path)
    steps: list[str] = []
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
        steps.append("EXIF rotation applied")
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        if image.mode == "F" and values.size and values.max() <= 1.0:
            levels = values * 255
            steps.append("float 0..1 scaled to 8 bit")
        else:
            levels = values / 257
            steps.append("16 bit divided by 257")
        grey = np.clip(np.round(levels), 0, 255).astype(np.uint8)
        return LoadedImage(rgb=np.repeat(grey[..., None], 3, axis=2), conversion=", ".join([*steps, "grey to RGB"]))
    if "A" in image.mode or (image.mode == "P" and "transparency" in image.info):
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, rgba)
        steps.append("alpha over black")
    elif image.mode != "RGB":
        steps.append({"P": "palette to RGB", "L": "grey to RGB", "1": "black and white to RGB"}.get(image.mode, f"{image.mode} to RGB"))
    return LoadedImage(rgb=np.asarray(image.convert("RGB")).copy(), conversion=", ".join(steps) or "none")


def load_rgb(path: Path) -> NDArray[np.uint8]:
    """Load an image file as RGB uint8 [H,W,3]; conversions as in `load_image`.

    Raises:
        ImageError: missing, empty, truncated, too large or not an image.
    """
    return load_image(path).rgb


def load_native(path: Path) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Load an image file with its own values: grey [H,W] of 8 or 16 bit, RGB or RGBA uint8 [H,W,C]; EXIF orientation is applied.

    Other kinds of image (palettes, floats, 32 bit) come as RGB, as `load_rgb` gives them.

    Raises:
        ImageError: as for `load_image`.
    """
    image = ImageOps.exif_transpose(_open(path))
    if image.mode in ("L", "RGB", "RGBA"):
        return np.asarray(image).copy()
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    return load_rgb(path)


def image_size_hw(path: Path) -> tuple[int, int]:
    """Give height and width of an image file after EXIF rotation, decoding it fully so that damage is found.

    Raises:
        ImageError: as for `load_image`.
    """
    image = _open(path)
    width, height = image.size
    return (width, height) if image.getexif().get(0x0112, 1) in (5, 6, 7, 8) else (height, width)


def load_class_mask(path: Path) -> NDArray[np.uint8]:
    """Load an 8-bit class-index mask uint8 [H,W]; palette PNGs give their indices.

    Raises:
        ImageError: not an 8-bit single-channel image, or unreadable.
    """
    image = _open(path)
    if image.mode not in ("L", "P", "1"):
        raise ImageError(path, f"mask has mode {image.mode}", "save masks as 8-bit PNG with one channel: 0 background, value = class index")
    return np.asarray(image).astype(np.uint8)


def encode_png(image: NDArray[np.uint8] | NDArray[np.uint16], *, compress_level: int = 3) -> bytes:
    """Encode RGB or RGBA uint8 [H,W,C], or grey uint8 or uint16 [H,W], as PNG; the same pixels give the same bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=compress_level)
    return buffer.getvalue()


def save_png(path: Path, image: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    """Write an image, as `encode_png` takes it, to a PNG file atomically."""
    write_bytes(path, encode_png(image))


def save_jpeg(path: Path, image: NDArray[np.uint8], *, quality: int = 85) -> None:
    """Write RGB uint8 [H,W,3] to a JPEG file atomically: for sheets to look at, never for data."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "JPEG", quality=quality)
    write_bytes(path, buffer.getvalue())
