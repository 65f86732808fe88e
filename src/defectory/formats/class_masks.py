"""Mask images of any mode as maps of values: grey and 1-bit values, palette indices, 16-bit indices, colours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.errors import ImageError
from defectory.formats.colours import ColourTable, Rgb, hex_of
from defectory.images.decode import decode
from defectory.images.save import save_png

Kind = Literal["grey", "palette", "colour"]
ValueMap = NDArray[np.uint8] | NDArray[np.uint16]
MAX_COLOURS = 4096


@dataclass(frozen=True, kw_only=True)
class MaskImage:
    """A mask image as stored in its file.

    `values` is [H,W]: grey values or indices; for kind `colour`, it is uint32 of red, green and blue, 0xRRGGBB.
    """

    kind: Kind
    values: NDArray[np.uint8] | NDArray[np.uint16] | NDArray[np.uint32]
    palette: tuple[Rgb, ...] = ()
    """The colour of each index, for kind `palette`."""

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width."""
        return int(self.values.shape[0]), int(self.values.shape[1])


def load_mask(path: Path) -> MaskImage:
    """Load a mask image of any mode.

    Grey in three channels is read as grey, and so is a palette whose used entries are greys. Transparent pixels are
    background. EXIF orientation is applied, as to images.

    Raises:
        ImageError: the file is unreadable, or its values are not whole numbers from 0 to 65535.
    """
    decoded = decode(path)
    if decoded.image is None:
        assert decoded.values is not None
        return _of_deep(path, decoded.values)
    image = decoded.image
    if image.mode == "1":
        return MaskImage(kind="grey", values=np.asarray(image).astype(np.uint8))
    if image.mode == "L":
        return MaskImage(kind="grey", values=np.asarray(image).copy())
    if image.mode == "P":
        return _of_palette(image)
    return _of_colours(image)


def _of_deep(path: Path, values: NDArray[Any]) -> MaskImage:
    if values.ndim == 3 and values.shape[2] in (3, 4):
        if not all(np.array_equal(values[..., 0], values[..., channel]) for channel in (1, 2)):
            raise ImageError(path, "mask in colour of more than 8 bit per channel", "save masks as 8-bit PNG")
        values = values[..., 0]
    elif values.ndim == 3:
        values = values[..., 0]
    return MaskImage(kind="grey", values=_whole_numbers(path, values))


def _whole_numbers(path: Path, values: NDArray[Any]) -> NDArray[np.uint8] | NDArray[np.uint16]:
    if values.dtype == np.uint8 or values.dtype == np.uint16:
        return values.copy()
    numbers = values.astype(np.float64)
    low, high = float(numbers.min(initial=0)), float(numbers.max(initial=0))
    if not np.isfinite(numbers).all() or low < 0 or high > 65535 or (numbers != np.rint(numbers)).any():
        raise ImageError(
            path,
            f"mask values from {low:g} to {high:g}, but whole numbers from 0 to 65535 are expected",
            "save masks as PNG: 0 background, value = class",
        )
    return numbers.astype(np.uint8) if high < 256 else numbers.astype(np.uint16)


def _of_palette(image: Image.Image) -> MaskImage:
    indices = np.asarray(image).copy()
    flat = image.getpalette("RGB") or []
    palette: tuple[Rgb, ...] = tuple((flat[at], flat[at + 1], flat[at + 2]) for at in range(0, len(flat) - 2, 3))
    used = np.flatnonzero(np.bincount(indices.reshape(-1), minlength=256))
    colours = [palette[index] for index in used if index < len(palette)]
    if len(colours) == len(used) == len(set(colours)) and all(red == green == blue for red, green, blue in colours):
        # the palette of an optimised grey image; the order of its entries has no meaning
        levels = np.zeros(256, np.uint8)
        levels[used] = [colour[0] for colour in colours]
        return MaskImage(kind="grey", values=levels[indices])
    return MaskImage(kind="palette", values=indices, palette=palette)


def _of_colours(image: Image.Image) -> MaskImage:
    opaque: NDArray[np.bool_] | None = None
    if "A" in image.mode or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA"))
        rgb, alpha = rgba[..., :3], rgba[..., 3]
        opaque = alpha >= 128 if alpha.any() else None
    else:
        rgb = np.asarray(image.convert("RGB"))
    if np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 0], rgb[..., 2]):
        grey = rgb[..., 0].copy()
        if opaque is not None:
            grey[~opaque] = 0
        return MaskImage(kind="grey", values=grey)
    colours = (rgb.astype(np.uint32) * np.array([1 << 16, 1 << 8, 1], np.uint32)).sum(axis=2, dtype=np.uint32)
    if opaque is not None:
        colours[~opaque] = 0
    return MaskImage(kind="colour", values=colours)


def value_counts(mask: MaskImage) -> dict[int, int]:
    """Return the number of pixels of every value except 0; for colour masks, of the `MAX_COLOURS` largest."""
    if mask.kind == "colour":
        values, counts = np.unique(mask.values[mask.values > 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")[:MAX_COLOURS]
        return {int(values[at]): int(counts[at]) for at in sorted(order)}
    counts = histogram(mask.values)
    return {int(value): int(counts[value]) for value in np.flatnonzero(counts) if value > 0}


def histogram(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the number of pixels of each value of a uint8 or uint16 map."""
    import cv2

    bins = 256 if values.dtype == np.uint8 else 65536
    # OpenCV counts several times faster than numpy
    counts = cv2.calcHist([np.ascontiguousarray(values)], [0], None, [bins], [0, bins])
    return counts.reshape(-1).astype(np.int64)


def by_colour(mask: MaskImage, table: ColourTable, where: Path) -> tuple[ValueMap, NDArray[np.bool_]]:
    """Return each pixel's index (from 1) in `table.class_names`, and the map of pixels to ignore.

    Raises:
        ImageError: a colour is not in the table.
    """
    if mask.kind == "palette":
        entries = np.zeros(256, np.uint32)
        entries[: len(mask.palette)] = [packed(colour) for colour in mask.palette[:256]]
        colours = entries[mask.values]
    elif mask.kind == "grey":
        colours = np.minimum(mask.values, 255).astype(np.uint32) * 0x010101
    else:
        colours = mask.values.astype(np.uint32)
    places = {name: place for place, name in enumerate(table.class_names, start=1)}
    known = {packed(colour): places[name] for colour, name in table.names.items()}
    known |= dict.fromkeys(map(packed, table.background), 0) | dict.fromkeys(map(packed, table.ignored), -1)
    keys = np.array(sorted(known), np.uint32)
    meant = np.array([known[int(key)] for key in keys], np.int32)
    result = np.zeros(mask.size_hw, np.int32)
    # most pixels are background and need no lookup
    drawn = np.ones(mask.size_hw, bool) if known.get(0) != 0 else colours > 0
    found = colours[drawn]
    at = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
    strange = keys[at] != found
    if strange.any():
        raise ImageError(
            where,
            _strange_colours(found[strange]),
            f"add them to {table.path.name}, or save masks without smoothing (antialiasing)",
        )
    result[drawn] = meant[at]
    ignored = result < 0
    result[ignored] = 0
    return result.astype(np.uint16), ignored


def packed(colour: Rgb) -> int:
    """Return a colour as 0xRRGGBB."""
    return colour[0] << 16 | colour[1] << 8 | colour[2]


def unpacked(value: int) -> Rgb:
    """Return the colour of the number 0xRRGGBB."""
    return value >> 16 & 255, value >> 8 & 255, value & 255


def _strange_colours(colours: NDArray[np.uint32]) -> str:
    values, counts = np.unique(colours, return_counts=True)
    first = hex_of(unpacked(int(values[np.argmax(counts)])))
    number = int(counts.sum())
    pixels = "1 pixel" if number == 1 else f"{number} pixels"
    if len(values) == 1:
        return f"{pixels} of the colour {first}, which is not in the colour table"
    return f"{pixels} of {len(values)} colours that are not in the colour table, most of them {first}"


def save_class_mask(path: Path, class_map: NDArray[np.uint8]) -> None:
    """Write a class-index mask uint8 [H,W] as 8-bit PNG."""
    save_png(path, class_map)
