"""Defect classes and defect instances; an instance's mask is stored as run-length encoding."""

from __future__ import annotations

from defectory.artifacts.value import Value
from defectory.rle import Rle


class Category(Value):
    """A defect class; ids start at 1 and follow the order of the list without gaps."""

    id: int
    name: str


class Instance(Value):
    """One defect instance, in the pixel coordinates of its image or tile."""

    category_id: int
    rle: Rle
    is_crowd: bool = False
