"""Survey of a set's masks: the values of all masks in one pass, and the layout of each value's pixels in a sample."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.errors import InputError
from defectory.formats.class_masks import Kind, MaskImage, load_mask, value_counts
from defectory.formats.colours import Rgb

SAMPLE_FILES, SAMPLE_LARGE_FILES = 16, 3
"""Number of multi-value masks to examine, and how many of them may have more than `SAMPLE_VALUES` values."""
SAMPLE_VALUES = 16


@dataclass(frozen=True, kw_only=True)
class FileValues:
    """The values of one mask, except 0."""

    kind: Kind
    pixels: Mapping[int, int]
    palette: Mapping[int, Rgb]


@dataclass(frozen=True, kw_only=True)
class ValueShape:
    """The layout of the pixels of one value in one mask."""

    value: int
    area_px: int
    num_parts: int
    between_px: int
    """Number of pixels with both a higher and a lower value next to them, as smoothing leaves along edges."""


@dataclass
class Survey:
    """The values of all masks of a set, and the layout of their pixels in a sample."""

    files: dict[Path, FileValues] = field(default_factory=dict)
    shapes: dict[Path, list[ValueShape]] = field(default_factory=dict)

    def values(self, *, without: frozenset[Path] = frozenset()) -> list[int]:
        """Return the values of the set except 0, ascending."""
        return sorted({value for path, found in self.files.items() if path not in without for value in found.pixels})


def survey_masks(paths: Iterable[Path], *, skip_bad: bool) -> Survey:
    """Read every mask once and record its values; with `skip_bad`, unreadable masks are reported with their image.

    Raises:
        ImageError: a mask is unreadable, and `skip_bad` is off.
    """
    survey = Survey()
    num_large = 0
    for path in paths:
        try:
            mask = load_mask(path)
        except InputError:
            if not skip_bad:
                raise
            continue
        pixels = value_counts(mask)
        palette = (
            {value: mask.palette[value] for value in pixels if value < len(mask.palette)}
            if mask.kind == "palette"
            else {}
        )
        survey.files[path] = FileValues(kind=mask.kind, pixels=pixels, palette=palette)
        is_large = len(pixels) > SAMPLE_VALUES
        room = len(survey.shapes) < SAMPLE_FILES and not (is_large and num_large >= SAMPLE_LARGE_FILES)
        if len(pixels) > 1 and room and mask.kind != "colour":
            survey.shapes[path] = _shapes(mask, sorted(pixels))
            num_large += is_large
    return survey


def _shapes(mask: MaskImage, values: list[int]) -> list[ValueShape]:
    """Return the pixel layout of some values: the highest, and others evenly chosen."""
    import cv2

    labels = mask.values.astype(np.uint16)
    kernel = np.ones((3, 3), np.uint8)
    between = (cv2.dilate(labels, kernel) > labels) & (cv2.erode(labels, kernel) < labels)
    places = np.unique(np.linspace(0, len(values) - 1, SAMPLE_VALUES).round().astype(int))
    result: list[ValueShape] = []
    for value in (values[place] for place in places):
        pixels: NDArray[np.bool_] = labels == value
        rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
        crop = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        count = int(cv2.connectedComponents(crop.astype(np.uint8), connectivity=8)[0]) - 1
        result.append(
            ValueShape(value=value, area_px=int(crop.sum()), num_parts=count, between_px=int((pixels & between).sum()))
        )
    return result
