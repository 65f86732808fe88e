"""Frames: images with their original values, edited in places and written again with their own depth and range."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from defectory.errors import ImageError
from defectory.files import write_bytes
from defectory.images.convert import COLOURS, chosen_range, eight_bit_to_rgb, three_channels
from defectory.images.decode import decode
from defectory.images.facts import remembered
from defectory.images.save import encode_png
from defectory.images.tiff import encode_tiff
from defectory.images.valuerange import ValueRange, to_eight_bit


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameImage:
    """An image with its original values, and how to write another one of the same kind.

    `pixels` is [H,W], or [H,W,C] with grey and alpha, RGB, or RGBA; `value_range` is None for 8 bits.
    """

    pixels: NDArray[Any]
    value_range: ValueRange | None
    container: Literal["PNG", "TIFF"]
    big_endian: bool = False
    white_is_zero: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def suffix(self) -> str:
        """Return the suffix of files of this kind: `.png`, or `.tif` for TIFF files and types that PNG cannot store."""
        return ".png" if self.container == "PNG" else ".tif"

    def rgb(self, pixels: NDArray[Any] | None = None) -> NDArray[np.uint8]:
        """Return the image, or pixels of its kind, as RGB uint8 [H,W,3] for viewing, without alpha."""
        values = self.pixels if pixels is None else pixels
        colours = values if values.ndim == 2 else values[..., : 1 if values.shape[2] == 2 else 3]
        levels = colours if self.value_range is None else to_eight_bit(colours, self.value_range)
        return three_channels(levels.astype(np.uint8))

    def encode(self, pixels: NDArray[Any]) -> bytes:
        """Encode other pixels of the same shape and type as a file of this kind."""
        if self.container == "PNG":
            return encode_png(pixels)
        return encode_tiff(pixels, big_endian=self.big_endian, white_is_zero=self.white_is_zero)

    def save(self, path: Path, pixels: NDArray[Any]) -> None:
        """Write other pixels of the same shape and type to a file of this kind, atomically."""
        write_bytes(path, self.encode(pixels))


def load_frame(path: Path, value_range: ValueRange | None = None, *, convert: bool = False) -> FrameImage:
    """Load an image to be edited in places and written again with its own depth and range.

    Args:
        path: image file.
        value_range: range of the data set; used if the image has more than 8 bits and its values are in these units.
        convert: convert kinds that cannot be written again to 8-bit RGB instead of refusing them.

    Raises:
        ImageError: as for `load_image`, or a kind that cannot be written again: a palette, black and white, CMYK.
    """
    decoded = remembered(path, decode(path))
    header, remarks = decoded.header, list(decoded.remarks)
    container: Literal["PNG", "TIFF"] = "TIFF" if header.kind == "TIFF" else "PNG"
    if decoded.values is not None:
        chosen, told = chosen_range(decoded, value_range)
        return FrameImage(
            pixels=decoded.values,
            value_range=chosen,
            container=container,
            big_endian=header.big_endian,
            white_is_zero=header.white_is_zero,
            remarks=(*remarks, *told),
        )
    image = decoded.image
    assert image is not None
    if image.mode in COLOURS:
        return FrameImage(
            pixels=np.asarray(image).copy(),
            value_range=None,
            container=container,
            big_endian=header.big_endian,
            remarks=tuple(remarks),
        )
    if not convert:
        kind = {"P": "a palette image", "PA": "a palette image", "1": "a black-and-white image"}.get(
            image.mode, f"a {image.mode} image"
        )
        raise ImageError(
            path, f"{kind}: defects cannot be drawn into it without changing its kind", "save it as grey or RGB first"
        )
    rgb, told, _ = eight_bit_to_rgb(path, image)
    return FrameImage(pixels=rgb, value_range=None, container="PNG", remarks=(*remarks, *told))


def load_native(path: Path) -> NDArray[Any]:
    """Load an image file with its original values and number type, upright: [H,W], or [H,W,C] with C of 2 to 4.

    Channels are grey, grey and alpha, RGB, or RGBA. Other kinds of image (palettes, black and white, CMYK) are
    converted to RGB as by `load_rgb`.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_frame(path, convert=True).pixels
