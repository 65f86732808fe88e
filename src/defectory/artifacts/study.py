"""The outcome of a study: scores of every series at every point, gains with intervals, and verdicts."""

from __future__ import annotations

from defectory.artifacts.value import Value
from defectory.artifacts.verdict import Interval, Verdict


class StudyScore(Value):
    """One score of one series on test, over seeds and folds."""

    mean: float
    interval: Interval | None
    """95% interval over seeds and, where known, groups of test images; None with fewer than three seeds."""
    per_seed: tuple[float, ...]
    """Mean over folds, in the order of the seeds."""


class Series(Value):
    """One arm of one variant."""

    arm: str
    variant: str
    """Empty for the project as it is."""
    uses_synthetic: bool
    scores: dict[str, StudyScore]
    """By name: those of `SegmenterScores`, and plant figures."""
    exposures: dict[str, float]
    """How many images of each source a training saw, mean over seeds."""

    @property
    def name(self) -> str:
        """Return the name of the series within its point."""
        return series_name(self.arm, self.variant)


def series_name(arm: str, variant: str) -> str:
    """Return the name of one arm of one variant."""
    return f"{arm}, {variant}" if variant else arm


class Gain(Value):
    """What one series gains over another, paired by seed and test images."""

    series: str
    reference: str
    score: str
    mean: float
    interval: Interval | None
    p_value: float | None
    """Of no difference, corrected for the number of series compared in this score at this point (Holm)."""


class ImageFigures(Value):
    """Figures of one variant's drafts, means over seeds and folds."""

    variant: str
    figures: dict[str, StudyScore]


class Point(Value):
    """One amount of labelled images."""

    label: str
    num_labelled: float
    """Labelled images with a defect that were trained on, mean over seeds and folds."""
    num_cells: int
    num_finished: int
    series: tuple[Series, ...] = ()
    gains: tuple[Gain, ...] = ()
    images: tuple[ImageFigures, ...] = ()
    verdict: Verdict | None = None
    """None until all cells of a seed are finished."""
    transfer: tuple[Series, ...] = ()
    """The same segmenters on another data set."""


class StudyOutcome(Value):
    """Everything a study found."""

    project: str
    recipe: str
    summary: str
    seeds: tuple[int, ...]
    folds: int
    points: tuple[Point, ...]
    remarks: tuple[str, ...] = ()
    hours: float = 0.0
    """Time that the cells took, those of other studies included."""
