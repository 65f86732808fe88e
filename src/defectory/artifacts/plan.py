"""The plan (jobs), the drafts it yields and the decisions on them."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.value import Value


class MaskOrigin(Value):
    """Where a job's mask came from: an entry of the mask bank or an expert's mask, and the seed of its perturbation."""

    kind: str = "bank"
    """Name of the source."""
    bank_id: str
    """Entry or file; empty where a mask was generated, from the seed alone."""
    perturbation_seed: int


class MaskBankEntry(Value):
    """One training mask, cropped to its box."""

    id: str
    tile_id: str
    image_id: int
    number: int = 0
    """Of the instance in its image's list."""
    category_id: int
    mask: Instance
    """The mask in its tile's frame; where placement is learned, without the gaps that holes of the part cut into it."""


class MaskBank(Value):
    """The masks that may be used at synthesis, from the training split alone."""

    split_digest: str
    entries: tuple[MaskBankEntry, ...]


class Job(Value):
    """One image to synthesize: everything that decides it, noise included."""

    id: str
    tile_id: str
    """Pool tile."""
    augmentation_seed: int | None
    """Seed of the pool tile's offline augmentation; None leaves the tile as it is."""
    instances: tuple[Instance, ...]
    """Label, in the tile's frame after augmentation, largest painted first."""
    mask_sources: tuple[MaskOrigin, ...]
    prompt: str
    prompt_without: str
    """Prompt of the half without mask."""
    seed: int


class Plan(Value):
    """All jobs of a synthesis, written before the first image is drawn."""

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
    """Pixels of the thresholded difference that lie clearly away from the label."""
    f1_2px: tuple[float | None, ...]
    """Per instance: F1 at 2 px tolerance where the instance is under 6 px wide, else None."""


CheckName = Literal["exposure", "blur", "clipping", "anomaly", "realism", "novelty", "duplicate", "agreement"]


class Check(Value):
    """One figure of a draft beside the limit that real tiles set; it passes while it is not above the limit."""

    name: CheckName
    value: float
    limit: float
    nearest: str = ""
    """What a draft is most alike to, where that is the question."""

    @property
    def passed(self) -> bool:
        """Tell whether the figure is within its limit."""
        return self.value <= self.limit


Cause = Literal["blank", "not drawn", "drawn outside", "not chosen"] | CheckName
"""Why a draft was rejected, in a word."""


class Decision(Value):
    """Accepted or rejected, with scores and a reason, for one draft."""

    job_id: str
    status: Literal["accepted", "rejected"]
    reason: str
    cause: Cause | None = None
    """None where it was accepted."""
    fidelity: Fidelity
    checks: tuple[Check, ...] = ()
    tightened: tuple[Instance, ...] | None = None
    """Labels as drawn, where labels are tightened; they replace the job's."""


class Decisions(Value):
    """The outcome of curation, one decision per draft in plan order."""

    plan_digest: str
    threshold: float
    decisions: tuple[Decision, ...]
