"""Configuration of curation."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section
from defectory.artifacts.plan import CheckName

ALL_CHECKS: tuple[CheckName, ...] = ("exposure", "blur", "clipping", "anomaly", "realism", "novelty", "duplicate")


class CurationConfig(Section):
    """Which drafts are kept."""

    difference_threshold: float = Field(default=24.0, gt=0)
    """Difference of a counterfactual pair that counts as drawn, in grey levels on a surface of grey level 128 and in
    proportion on others; fixed once on procedural data.
    """
    min_fidelity: float = Field(default=0.35, ge=0, le=1)
    """Drafts with a lower counterfactual fidelity are rejected."""
    max_stray_share: float = Field(default=0.25, ge=0)
    """Drafts with more drawn away from the label than this share of the label's area are rejected: it may be a defect
    without a label.
    """
    checks: tuple[CheckName, ...] = ALL_CHECKS
    """What drafts are held against besides fidelity; every limit is learned from the train tiles and the defect-free
    pool. `agreement` asks segmenters that are trained in folds of train first, which takes a while.
    """
    slack: float = Field(default=1.5, gt=0)
    """Multiple of the limits of exposure, blur, clipping, anomaly and realism that drafts may reach; those of copies
    are fixed.
    """
    tighten_labels: bool = False
    """Replace labels by what was drawn at them, where the two agree well enough; the report shows what it would do."""
    agreement_quantile: float = Field(default=0.05, ge=0, lt=1)
    """Share of the train tiles, each seen by a segmenter that has not learned from it, that `agreement` would reject;
    more is stricter.
    """
    keep_share: float | None = Field(default=None, gt=0, le=1)
    """Keep at most this share of each class's drafts: those whose labels are truest, by fidelity and, where that is
    checked, agreement.
    """
    keep: int | None = Field(default=None, ge=1)
    """Keep at most so many accepted drafts: classes in the shares of all drafts, and as different from each other as
    can be.
    """
    enabled: bool = True
