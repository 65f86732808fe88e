"""How strongly masks are drawn, per class."""

from __future__ import annotations

from defectory.artifacts.value import Value


class ClassCalibration(Value):
    """Mask guidance of one class, and the contrast of its defects that it was chosen by."""

    category_id: int
    name: str
    mask_guidance: float
    real: float | None = None
    """Median contrast of the train tiles' own defects; None where nothing was measured."""
    drawn: tuple[tuple[float, float], ...] = ()
    """Mask guidance and median contrast of defects of planned drafts drawn with it."""
    num_instances: int = 0


class Calibration(Value):
    """Mask guidance of every class of a data set."""

    concept_digest: str
    control_digest: str
    classes: tuple[ClassCalibration, ...]

    def by_category(self) -> dict[int, float]:
        """Give mask guidance by category id."""
        return {c.category_id: c.mask_guidance for c in self.classes}
