"""Mask guidance per class: how strongly synthesis follows the masks."""

from __future__ import annotations

from defectory.artifacts.value import Value


class ClassCalibration(Value):
    """The mask guidance of one class and the defect contrasts it was chosen from."""

    category_id: int
    name: str
    mask_guidance: float
    real: float | None = None
    """Median contrast of this class's defects in the train tiles; None if nothing was measured."""
    drawn: tuple[tuple[float, float], ...] = ()
    """Pairs of mask guidance and the median contrast of the defects drawn with it."""
    num_instances: int = 0


class Calibration(Value):
    """The mask guidance of every class of a data set."""

    concept_digest: str
    control_digest: str
    classes: tuple[ClassCalibration, ...]

    def by_category(self) -> dict[int, float]:
        """Return the mask guidance of each category id."""
        return {c.category_id: c.mask_guidance for c in self.classes}
