"""Instances: a class and a mask, the truth being run-length encoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.value import Value
from defectory.rle import Rle, decode


class Category(Value):
    """A defect class; `id` starts at 1 and is dense in the order of the list."""

    id: int
    name: str


class Instance(Value):
    """One defect instance in the pixel frame of its image or tile."""

    category_id: int
    rle: Rle
    is_crowd: bool = False


def masks_of(instances: Sequence[Instance]) -> tuple[tuple[int, NDArray[np.bool_]], ...]:
    """Decode instances to pairs of category id and mask, bool [H,W]."""
    return tuple((instance.category_id, decode(instance.rle)) for instance in instances)
