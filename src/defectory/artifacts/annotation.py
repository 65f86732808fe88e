"""Defect classes and defect instances; an instance's mask is stored as run-length encoding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.value import Value
from defectory.rle import Rle, decode


class Category(Value):
    """A defect class; ids start at 1 and follow the order of the list without gaps."""

    id: int
    name: str


class Instance(Value):
    """One defect instance, in the pixel coordinates of its image or tile."""

    category_id: int
    rle: Rle
    is_crowd: bool = False


def masks_of(instances: Sequence[Instance]) -> tuple[tuple[int, NDArray[np.bool_]], ...]:
    """Decode instances to pairs of category id and mask, bool [H,W]."""
    return tuple((instance.category_id, decode(instance.rle)) for instance in instances)
