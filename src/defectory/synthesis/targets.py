"""Divides a round of drafts evenly among the classes, sizes and places that segmenters miss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from defectory.artifacts.targets import Cell, Size

MISSED_IOU = 0.5
"""A train instance whose best detection overlaps it less is missed."""


@dataclass(frozen=True, kw_only=True)
class JudgedInstance:
    """A train instance that masks are taken from.

    Attributes:
        image_id: of its image.
        number: in its image's list.
        category_id: of its class.
        area_px: image pixels.
        place: name of its relation to the holes and edges of the part.
        iou: of the best detection of its class, 0 if there is none.
    """

    image_id: int
    number: int
    category_id: int
    area_px: int
    place: str
    iou: float

    @property
    def is_missed(self) -> bool:
        """Return whether segmenters miss it."""
        return self.iou < MISSED_IOU


_Key = tuple[int, Size, str]


def cells_of(instances: Sequence[JudgedInstance], *, num_drafts: int) -> tuple[Cell, ...]:
    """Return the cells of all instances. Those with a missed instance get equal quotas, the others none.

    An instance is in the larger half of its class if its area is above the median.
    """
    members = _members(instances)
    missed = {key: sum(one.is_missed for one in of) for key, of in members.items()}
    num_cells = sum(count > 0 for count in missed.values())
    return tuple(
        Cell(
            category_id=category_id,
            size=size,
            place=place,
            num_instances=len(members[category_id, size, place]),
            num_missed=missed[category_id, size, place],
            quota=num_drafts / num_cells if missed[category_id, size, place] else 0.0,
        )
        for category_id, size, place in sorted(members)
    )


def weights_of(instances: Sequence[JudgedInstance], cells: Sequence[Cell]) -> dict[tuple[int, int], float]:
    """Return how often each instance is used, by image id and number; the mean is 1 unless nothing is missed.

    The missed instances of a cell share its quota evenly. Other instances get 0.
    """
    quotas: Mapping[_Key, Cell] = {(cell.category_id, cell.size, cell.place): cell for cell in cells}
    raw: dict[tuple[int, int], float] = {}
    for key, of in _members(instances).items():
        cell = quotas[key]
        raw |= {(one.image_id, one.number): one.is_missed * cell.quota / max(1, cell.num_missed) for one in of}
    mean = sum(raw.values()) / max(1, len(raw))
    return {key: value / mean if mean else 0.0 for key, value in raw.items()}


def _members(instances: Sequence[JudgedInstance]) -> dict[_Key, list[JudgedInstance]]:
    areas: dict[int, list[int]] = {}
    for one in instances:
        areas.setdefault(one.category_id, []).append(one.area_px)
    medians = {category_id: float(np.median(of)) for category_id, of in areas.items()}
    members: dict[_Key, list[JudgedInstance]] = {}
    for one in instances:
        size: Size = "larger" if one.area_px > medians[one.category_id] else "smaller"
        members.setdefault((one.category_id, size, one.place), []).append(one)
    return members
