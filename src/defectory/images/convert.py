"""Turn decoded pixels into 8-bit RGB for models, and say in remarks how."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.errors import ImageError
from defectory.images.decode import Decoded
from defectory.images.valuerange import Levels, ValueRange, is_meant_for, levels_of, own_range, to_eight_bit

_BAND_ROWS = 256
_PLAIN_STEPS = {"P": "palette to RGB", "L": "grey to RGB", "1": "black and white to RGB"}
_OVER_BLACK, _TRANSPARENT = "alpha over black", "wholly transparent: alpha dropped"
COLOURS = {"L": 1, "LA": 1, "RGB": 3, "RGBA": 3}


def colours_of(decoded: Decoded) -> NDArray[Any]:
    """Return the values of a deep image without alpha, [H,W] or [H,W,C]."""
    assert decoded.values is not None
    return decoded.values if decoded.values.ndim == 2 else decoded.values[..., : COLOURS[decoded.header.mode]]


def chosen_range(decoded: Decoded, value_range: ValueRange | None) -> tuple[ValueRange, list[str]]:
    """Return the range for reading a deep image, and remarks.

    The range is the data set's, or the image's own if there is none or its units differ.
    """
    levels = levels_of(colours_of(decoded))
    told = remarks_on_missing(levels)
    if value_range is not None and is_meant_for(value_range, levels):
        return value_range, told
    own = own_range(levels)
    if value_range is None:
        told.append(f"{levels.words} values read as {own.words}")
    else:
        told.append(
            f"{levels.words} values do not match the data set's range ({value_range.words}): read as {own.words}"
        )
    return own, told


def deep_to_rgb(
    decoded: Decoded, value_range: ValueRange | None
) -> tuple[NDArray[np.uint8], tuple[str, ...], list[str]]:
    """Return a deep image as RGB uint8 [H,W,3], remarks, and plain steps of the conversion."""
    chosen, remarks = chosen_range(decoded, value_range)
    header, colours, values = decoded.header, colours_of(decoded), decoded.values
    assert values is not None
    kind = "float" if header.sample == "float" else f"{header.bits} bit"
    plain = [f"{kind} to 8 bit with {chosen.words}"]
    levels = three_channels(to_eight_bit(colours, chosen))
    if header.mode in ("LA", "RGBA"):
        alpha = values[..., -1].astype(np.float64)
        # an alpha channel may have fewer bits than its number type, as colours may
        opaque = (1.0, chosen.high) if header.sample == "float" else (chosen.high, float(np.iinfo(values.dtype).max))
        full = next((value for value in opaque if value >= alpha.max()), float(alpha.max()))
        if not alpha.any():
            remarks.append(_TRANSPARENT)
        elif alpha.min() < full:
            remarks.append(_OVER_BLACK)
            levels = np.round(levels * np.clip(alpha / full, 0, 1)[..., None]).astype(np.uint8)
    if colours.ndim == 2 or colours.shape[2] == 1:
        plain.append("grey to RGB")
    return levels, tuple(remarks), plain


def three_channels(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return grey or RGB levels as RGB [H,W,3]."""
    grey = levels[..., None] if levels.ndim == 2 else levels
    return np.ascontiguousarray(np.repeat(grey, 3, axis=2) if grey.shape[2] == 1 else grey)


def eight_bit_to_rgb(path: Path, image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...], list[str]]:
    """Return an 8-bit image as RGB uint8 [H,W,3], remarks, and plain steps of the conversion.

    Raises:
        ImageError: an unsupported colour mode.
    """
    remarks = remarks_on_colours(image)
    plain = [_PLAIN_STEPS[image.mode]] if image.mode in _PLAIN_STEPS else []
    try:
        if not _has_alpha(image):
            return _pixels_of(image if image.mode == "RGB" else image.convert("RGB")), remarks, plain
        rgba = np.asarray(image.convert("LA" if image.mode == "La" else "RGBA").convert("RGBA"))
    except (ValueError, KeyError):
        raise ImageError(
            path, f"has the colour mode {image.mode}, which is not supported", "save it as grey or RGB"
        ) from None
    if not rgba[..., 3].any():
        return rgba[..., :3].copy(), remarks, plain
    whole = Image.fromarray(rgba)
    black = Image.new("RGBA", whole.size, (0, 0, 0, 255))
    return (
        np.asarray(Image.alpha_composite(black, whole).convert("RGB")).copy(),
        remarks,
        [*plain, *([] if remarks else ["opaque alpha dropped"])],
    )


def _pixels_of(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an RGB image uint8 [H,W,3], copied in bands: Pillow would make three copies."""
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top in range(0, image.height, _BAND_ROWS):
        pixels[top : top + _BAND_ROWS] = np.asarray(
            image.crop((0, top, image.width, min(top + _BAND_ROWS, image.height)))
        )
    return pixels


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (image.mode == "P" and "transparency" in image.info)


def remarks_on_colours(image: Image.Image) -> tuple[str, ...]:
    """Return remarks on the alpha or the colour space of an 8-bit image."""
    if _has_alpha(image):
        alpha = np.asarray(image.getchannel("A") if "A" in image.getbands() else image.convert("RGBA").getchannel("A"))
        return () if alpha.min() == 255 else (_OVER_BLACK,) if alpha.any() else (_TRANSPARENT,)
    return () if image.mode in (*_PLAIN_STEPS, "RGB") else (f"{image.mode} to RGB",)


def remarks_on_missing(levels: Levels) -> list[str]:
    """Return a remark on values that are not numbers, if there are any."""
    count = levels.num_missing
    return (
        [f"{count} value{'s are not numbers and' if count > 1 else ' is not a number and'} read as black"]
        if count
        else []
    )
