"""Targets: what a further round of drafts aims at, and whether it draws any."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.primary_metric import PrimaryMetric
from defectory.artifacts.value import Value

Size = Literal["smaller", "larger"]


class Cell(Value):
    """Train instances of one class, size and place, and how many of them segmenters miss."""

    category_id: int
    size: Size
    """Half of its class by area."""
    place: str
    """Relation of its mask to the holes and edges of the part."""
    num_instances: int
    num_missed: int
    quota: float
    """Drafts of the round that are drawn for it on average; 0 if nothing of it is missed."""


class ValidationScore(Value):
    """Score on validation of a segmenter of one arm, trained with the drafts of the rounds before."""

    arm: str
    score: float
    """In the primary metric."""


class Targets(Value):
    """What a further round found and draws."""

    round: int
    """Number of the round; the first further round is 2."""
    earlier_digest: str
    """Digest of the plan of all rounds before."""
    metric: PrimaryMetric = "segm_map"
    """What validation is scored by."""
    validation: tuple[ValidationScore, ...] = ()
    """Scores measured in this round; none if the rounds had ended before."""
    best_before: float | None = None
    """Best score of the rounds before; None if this round is the first to measure any."""
    cells: tuple[Cell, ...] = ()
    num_left_out: int = 0
    """Number of train instances in no cell, since the mask bank does not hold them."""
    num_drafts: int = 0
    """Number of drafts that the round draws; 0 if the rounds are over."""
    is_over: bool = False
    why: str = ""
    """Why the rounds are over; empty if they are not."""

    @property
    def best(self) -> float | None:
        """Return the best score so far; None if nothing was measured."""
        scores = [of.score for of in self.validation]
        return max([*scores, *([] if self.best_before is None else [self.best_before])], default=None)

    @property
    def num_missed_cells(self) -> int:
        """Return the number of cells with a missed instance."""
        return sum(cell.num_missed > 0 for cell in self.cells)
