"""Instances: a class and a mask, the truth being run-length encoding."""

from __future__ import annotations

from defectory.artifacts.value import Value
from defectory.rle import Rle


class Category(Value):
    """A defect class; `id` starts at 1 and is dense in the order of the list."""

    id: int
    name: str


class Instance(Value):
    """One defect instance in the pixel frame of its image or tile."""

    category_id: int
    rle: Rle
    is_crowd: bool = False
