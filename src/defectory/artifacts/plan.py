"""The plan (jobs), the drafts it produces and the decisions on them."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value


class MaskOrigin(Value):
    """The source of a job's mask (a mask bank entry or an expert's mask) and the seed of its perturbation."""

    kind: str = "bank"
    """Name of the source."""
    bank_id: str
    """Bank entry or file name; empty if the mask was generated from the seed alone."""
    perturbation_seed: int


class MaskBankEntry(Value):
    """One training mask, cropped to its bounding box."""

    id: str
    tile_id: str
    image_id: int
    number: int = 0
    """Index of the instance in its image's list."""
    category_id: int
    mask: Instance
    """The mask in its tile's coordinates; with learned placement, cuts from holes of the part are filled."""
    visible_share: float = 1.0
    """Share of the instance's area that the tile shows, above 0 and at most 1."""


class MaskBank(Value):
    """The masks that may be used at synthesis, from the train subset alone."""

    split_digest: str
    entries: tuple[MaskBankEntry, ...]


class Job(Value):
    """One image to synthesize, with everything that determines it, including the noise seed."""

    id: str
    tile_id: str
    """Id of the pool tile."""
    offset_xy: tuple[float, float] | None = None
    """Place of the job's square on the tile's image, image pixels; None is the tile's own."""
    augmentation_seed: int | None
    """Seed of the pool tile's offline augmentation; None leaves the tile unchanged."""
    instances: tuple[Instance, ...]
    """The label, in the tile's coordinates after augmentation; the largest instance is painted first."""
    mask_sources: tuple[MaskOrigin, ...]
    prompt: str
    prompt_without: str
    """Prompt for the half without a mask."""
    seed: int


class Plan(Value):
    """All jobs of a synthesis; it is written before the first image is drawn."""

    concept_digest: str
    control_digest: str
    driver_config_digest: str
    categories: tuple[Category, ...]
    jobs: tuple[Job, ...]


class Fidelity(Value):
    """Counterfactual fidelity of one draft."""

    iou: float
    """IoU of the thresholded difference with the union of the label's masks, 0..1."""
    per_instance_iou: tuple[float, ...]
    outside_fraction: float
    """Share of the thresholded difference that lies outside the label."""
    stray_px: int = 0
    """Number of pixels of the thresholded difference that lie clearly away from the label."""
    f1_2px: tuple[float | None, ...]
    """F1 at 2 px tolerance for each instance narrower than 6 px, else None."""


CheckName = Literal["exposure", "blur", "clipping", "anomaly", "realism", "novelty", "duplicate", "agreement"]


class Check(Value):
    """One measured value of a draft, and its limit from real tiles; the check passes up to the limit."""

    name: CheckName
    value: float
    limit: float
    nearest: str = ""
    """Name of the most similar image, for checks that compare images."""

    @property
    def passed(self) -> bool:
        """Return whether the value is within its limit."""
        return self.value <= self.limit


Cause = Literal["blank", "not drawn", "drawn outside", "not chosen"] | CheckName
"""Short name of the reason a draft was rejected."""


class Decision(Value):
    """The decision on one draft: accepted or rejected, with scores and a reason."""

    job_id: str
    status: Literal["accepted", "rejected"]
    reason: str
    cause: Cause | None = None
    """Cause of the rejection; None for an accepted draft."""
    fidelity: Fidelity
    checks: tuple[Check, ...] = ()
    tightened: tuple[Instance, ...] | None = None
    """Labels tightened to what was drawn, if label tightening is on; they replace the job's labels."""


class Decisions(Value):
    """The result of curation: one decision per draft, in plan order."""

    plan_digest: str
    threshold: float
    decisions: tuple[Decision, ...]
