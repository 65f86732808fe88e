"""Which value is black and which is white in images of more than 8 bits.

For a single image, black is 0 and white the largest value of the bit depth that fits its values (1, 255, 1023, 4095,
...). A data set uses the same range for all of its images. If their values fill less than a third of that depth, black
and white are approximately the smallest and the largest value; only a few hot or dead pixels are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

WHITES_OF_INTEGERS = tuple(2.0**bits - 1 for bits in (8, 10, 12, 14, 16, 20, 24, 32))
WHITES_OF_FLOATS = (1.0, 255.0, 1023.0, 4095.0, 16383.0, 65535.0)
TRIM = 1e-4
"""Share of the pixels at either end that a range may exclude: hot and dead pixels of a sensor."""
MIN_FILL = 1 / 3
"""A set whose values fill a smaller share of its bit depth is stretched."""
MIN_WHITE = 1 / 8
"""If all but a few hot pixels lie below this share of the bit depth, the hot pixels are ignored."""
NO_NUMBER = 1e38
"""Floats from this magnitude on stand for missing measurements, like infinities and NaN."""
FEWEST_COUNTS = 256
"""An image whose values stay below this is dark; it does not have a smaller bit depth than its set."""
SAMPLE = 1_000_000
"""Number of pixels sampled for quantiles, for images that are not 16-bit integers."""
LEAST_COUNTS = 64
"""A wider range is one of counts, not of fractions of 1."""


class ValueRange(BaseModel):
    """Black and white of images deeper than 8 bits, the same for every image of a data set.

    `low` becomes 0 and `high` becomes 255.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float

    @property
    def per_level(self) -> float:
        """Return how far values move per 8-bit level."""
        return (self.high - self.low) / 255

    @property
    def words(self) -> str:
        """Return a description of the range for the user."""
        return f"black {shown(self.low)}, white {shown(self.high)}"


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The values of a deep image.

    Smallest and largest value, both also without `TRIM` of the pixels, the median, and the number of values that are
    not numbers.
    """

    minimum: float
    low: float
    high: float
    maximum: float
    middle: float
    num_missing: int
    is_fraction: bool
    """Whether all values lie in 0..1 and most are neither 0 nor 1."""
    is_float: bool
    bits: int
    limit: float
    """Largest value of the number type; infinite for floats."""

    @property
    def words(self) -> str:
        """Return the number type for the user: `16-bit`, `32-bit float`."""
        return f"{self.bits}-bit float" if self.is_float else f"{self.bits}-bit"


def levels_of(colours: NDArray[Any]) -> Levels:
    """Return the value statistics of an image of integers or floats, without its alpha channel."""
    values = colours.reshape(-1)
    is_float, num_missing = values.dtype.kind == "f", 0
    if is_float:
        finite = values[np.abs(values) < NO_NUMBER]
        num_missing, values = int(values.size - finite.size), finite
    if values.size == 0:
        values = np.zeros(1, values.dtype)
    minimum, maximum = float(values.min()), float(values.max())
    if values.dtype != np.uint16:
        values = values[:: -(-values.size // SAMPLE)]
    cut, half = int(values.size * TRIM), values.size // 2
    if values.dtype == np.uint16:
        counts = np.cumsum(np.bincount(values, minlength=65_536))
        low, middle, high = (
            int(np.searchsorted(counts, rank, side="right")) for rank in (cut, half, values.size - 1 - cut)
        )
    else:
        ordered = np.partition(values, (cut, half, values.size - 1 - cut))
        low, middle, high = ordered[cut], ordered[half], ordered[values.size - 1 - cut]
    return Levels(
        minimum=minimum,
        low=float(low),
        high=float(high),
        maximum=maximum,
        middle=float(middle),
        num_missing=num_missing,
        is_fraction=is_float and minimum >= 0 and maximum <= 1 and bool(np.mean(values != np.round(values)) > 0.5),
        is_float=is_float,
        bits=colours.dtype.itemsize * 8,
        limit=np.inf if is_float else float(np.iinfo(colours.dtype).max),
    )


def own_range(levels: Levels) -> ValueRange:
    """Return the range of an image without a data set: 0 to its bit depth; its own range if values are negative."""
    if levels.low < 0:
        return _stretched(levels)
    white = _white(levels)
    return ValueRange(low=0.0, high=white if white > 0 else 1.0)


def set_range(images: Sequence[Levels]) -> ValueRange:
    """Return the range of a data set: its bit depth, or less if the values fill less than a third of it.

    Args:
        images: statistics of the set's deep images; at least one.
    """
    both = Levels(
        minimum=min(i.minimum for i in images),
        low=min(i.low for i in images),
        high=max(i.high for i in images),
        maximum=max(i.maximum for i in images),
        middle=0.0,
        num_missing=0,
        is_fraction=False,
        is_float=any(i.is_float for i in images),
        bits=max(i.bits for i in images),
        limit=max(i.limit for i in images),
    )
    natural = own_range(both)
    span = both.high - both.low
    return _stretched(both) if 0 < span < MIN_FILL * (natural.high - natural.low) else natural


def is_meant_for(value_range: ValueRange, levels: Levels) -> bool:
    """Return whether an image's values are in the units of a range.

    They are not if most lie far outside it, if they are fractions of 1 in a range of counts, or if they have fewer bits
    (12 in a range of 16): the image would come out white or black.
    """
    span = value_range.high - value_range.low
    if not value_range.low - span <= levels.middle <= value_range.high + span:
        return False
    if value_range.low == 0 and FEWEST_COUNTS <= levels.high <= span / 15:
        return False
    return not (levels.is_fraction and span > LEAST_COUNTS)


def to_eight_bit(colours: NDArray[Any], value_range: ValueRange) -> NDArray[np.uint8]:
    """Scale values linearly to 0..255, rounded and clipped, as uint8; values that are not numbers become 0."""
    low, factor = value_range.low, 1 / value_range.per_level
    if colours.dtype == np.uint16:
        table = np.clip(np.round((np.arange(65_536) - low) * factor), 0, 255).astype(np.uint8)
        return table[colours]
    with np.errstate(invalid="ignore", over="ignore"):
        levels = colours.astype(np.float32 if colours.dtype == np.float32 else np.float64)
        levels -= low
        levels *= factor
        if colours.dtype.kind == "f":
            levels[~(np.abs(colours) < NO_NUMBER)] = 0
        return np.clip(np.round(levels, out=levels), 0, 255, out=levels).astype(np.uint8)


def shown(value: float) -> str:
    """Return a value as text: integers as such, other numbers with six digits."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:.6g}"


def _white(levels: Levels) -> float:
    """Return the largest value of the smallest usual bit depth that fits; the maximum if none does."""
    whites = WHITES_OF_FLOATS if levels.is_float else WHITES_OF_INTEGERS

    def over(value: float) -> float:
        white = min(next((white for white in whites if white >= value), value), levels.limit)
        return value if value < MIN_WHITE * white else white

    white = over(levels.maximum)
    return over(levels.high) if levels.high < MIN_WHITE * white else white


def _stretched(levels: Levels) -> ValueRange:
    """Return approximately the smallest and largest value; outliers beyond half the spread are clipped."""
    span = levels.high - levels.low
    low, high = max(levels.minimum, levels.low - span / 2), min(levels.maximum, levels.high + span / 2)
    if 0 <= low <= high / 4:
        low = 0.0
    return ValueRange(low=low, high=high if high > low else low + 1.0)
