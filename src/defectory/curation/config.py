"""Configuration of curation."""

from __future__ import annotations

from pydantic import Field, field_validator

from defectory.artifacts.config import Section
from defectory.artifacts.doubt import Witness
from defectory.artifacts.plan import CheckName

ALL_CHECKS: tuple[CheckName, ...] = ("exposure", "blur", "clipping", "anomaly", "realism", "novelty", "duplicate")


DOUBT_SETTINGS = frozenset({"ignore", "doubt_fidelity", "doubt_multiple"})
"""Settings that change what is ignored, but no decision."""


class CurationConfig(Section):
    """Settings of curation: which drafts to keep."""

    difference_threshold: float = Field(default=24.0, gt=0)
    """Minimum difference in a counterfactual pair that counts as drawn, in grey levels on a surface of grey level 128;
    it scales with the brightness of the surface. Fixed once on procedural data.
    """
    min_fidelity: float = Field(default=0.35, ge=0, le=1)
    """Reject drafts with a lower counterfactual fidelity."""
    max_stray_share: float = Field(default=0.25, ge=0)
    """Reject drafts with a larger stray area, as a share of the label's area: it may be an unlabelled defect."""
    checks: tuple[CheckName, ...] = ALL_CHECKS
    """Checks to run besides fidelity. Every limit is learned from the train tiles and the defect-free pool. `agreement`
    first trains segmenters on folds of train, which takes a while.
    """
    slack: float = Field(default=1.5, gt=0)
    """Factor on the limits of exposure, blur, clipping, anomaly and realism; the limits for copies are fixed."""
    tighten_labels: bool = False
    """Replace labels by what was drawn at them if the two agree well enough; the report shows the effect either way."""
    agreement_quantile: float = Field(default=0.05, ge=0, lt=1)
    """Share of the train tiles, each judged by a segmenter not trained on it, that `agreement` would reject; a higher
    value is stricter.
    """
    keep_share: float | None = Field(default=None, gt=0, le=1)
    """Keep at most this share of each class's drafts: those with the best fidelity (and agreement, if checked)."""
    ignore: tuple[Witness, ...] = ()
    """Witnesses whose doubtful pixels and boxes are left out of training: `difference` (what was drawn disagrees with
    the label) and `segmenter` (segmenters trained on other real images do). Off until a study shows a gain.
    `segmenter` first trains segmenters on folds of train, which takes a while.
    """
    doubt_fidelity: float = Field(default=0.5, ge=0, le=1)
    """Witness `difference`: an instance whose own fidelity is lower is doubtful."""
    doubt_multiple: float = Field(default=2.0, ge=1)
    """Witness `segmenter`: a pixel or an instance is doubtful if its loss exceeds this many times the mean of its
    class.
    """

    @field_validator("ignore")
    @classmethod
    def _sorted(cls, value: tuple[Witness, ...]) -> tuple[Witness, ...]:
        # the order has no meaning
        return tuple(sorted(set(value)))
