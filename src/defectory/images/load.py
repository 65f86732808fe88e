"""Load images as RGB and masks as class numbers: every conversion is reported, every failure is one line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.errors import ImageError
from defectory.images.convert import deep_to_rgb, eight_bit_to_rgb
from defectory.images.decode import decode
from defectory.images.facts import remembered
from defectory.images.valuerange import ValueRange


@dataclass(frozen=True, kw_only=True)
class LoadedImage:
    """An RGB image uint8 [H,W,3] and a description of how it was converted.

    `remarks` are the parts of `conversion` that the user should know: everything except plain changes of mode and the
    data set's own range.
    """

    rgb: NDArray[np.uint8]
    conversion: str
    remarks: tuple[str, ...] = ()


def load_image(path: Path, value_range: ValueRange | None = None) -> LoadedImage:
    """Load an image file as RGB and report how it was converted.

    EXIF orientation is applied, and only the first page is read. Grey is repeated to three channels and palettes are
    resolved; alpha is composited over black, or dropped if the whole image is transparent.

    Values of more than 8 bits are scaled linearly from a range to 0..255, rounded and clipped; NaN and infinities
    become black. 8-bit images are never scaled.

    Args:
        path: image file.
        value_range: range of the data set. If it is None, or in other units than the image, black is 0 and white the
            largest value of the bit depth that fits the image's values (1, 255, 1023, 4095, 16383, 65535); with
            negative values, the image's own range is used.

    Raises:
        ImageError: the file is missing, unreadable, empty, truncated, too large or not an image.
    """
    decoded = remembered(path, decode(path))
    if decoded.values is not None:
        rgb, remarks, plain = deep_to_rgb(decoded, value_range)
    else:
        assert decoded.image is not None
        rgb, remarks, plain = eight_bit_to_rgb(path, decoded.image)
    remarks = (*decoded.remarks, *remarks)
    return LoadedImage(rgb=rgb, conversion=", ".join([*remarks, *plain]) or "none", remarks=remarks)


def load_rgb(path: Path, value_range: ValueRange | None = None) -> NDArray[np.uint8]:
    """Load an image file as RGB uint8 [H,W,3]; conversions as in `load_image`.

    Raises:
        ImageError: as for `load_image`.
    """
    return load_image(path, value_range).rgb


def load_class_mask(path: Path) -> NDArray[np.uint8]:
    """Load an 8-bit class-index mask uint8 [H,W]; palette PNGs return their indices.

    Raises:
        ImageError: not an 8-bit single-channel image, or unreadable.
    """
    decoded = decode(path)
    mode = decoded.header.mode if decoded.image is None else decoded.image.mode
    if decoded.image is None or mode not in ("L", "P", "1"):
        depth = f" of {decoded.header.bits} bit" if decoded.image is None else ""
        raise ImageError(
            path,
            f"mask has mode {mode}{depth}",
            "save masks as 8-bit PNG with one channel: 0 background, value = class index",
        )
    return np.asarray(decoded.image).astype(np.uint8)
