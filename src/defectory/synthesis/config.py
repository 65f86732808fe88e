"""Configuration of synthesis."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from defectory.artifacts.config import Section


class SynthesisConfig(Section):
    """Drivers of defect-free images + shuffled, perturbed masks -> drafts."""

    mode: Literal["full", "insert", "inpaint"] = "full"
    """`full`: the whole image is drawn from the driver (the paper). `insert`: a defect is drawn into the pool image,
    which stays as it is
    around it. `inpaint`: the paper's comparator, whose control network sees the image itself with the mask pasted on
    (drivers.kind image)."""
    insert_margin_px: int = Field(default=8, ge=2)
    """Insert: tile pixels around a label beyond which nothing changes."""
    focus: Literal["uniform", "segmenter"] = "uniform"
    """`segmenter`: masks, classes, sizes and places come more often the worse a segmenter draws them that has not seen
    them, judged in folds of train.
    """
    num_images: int = Field(default=200, ge=1)
    augmentations_per_image: int = Field(default=10, ge=0)
    """Offline augmented versions of each pool image (paper: 10); 0 uses pool tiles as they are."""
    max_seeds_per_driver: int = Field(default=15, ge=1)
    """At most this many images per driver (paper: 15)."""
    max_images_per_tile: int | None = Field(default=None, ge=1)
    """At most this many images on one pool tile, all its versions together; a pool that is too small for it is refused.
    """
    scheduler: Literal["base", "ddim", "ddpm", "euler", "dpm-solver"] = "dpm-solver"
    """`base`: the one the base names. `dpm-solver` draws fine detail in fewer steps than the others (decision 035)."""
    num_steps: int = Field(default=20, ge=1)
    guidance_scale: float = Field(default=1.0, ge=1)
    driver_guidance: float = Field(default=1.75, ge=1)
    """How strongly the part is drawn: distance of each step from the same step that knows the class noun alone, neither
    the concept's token nor a driver, as a multiple. Networks that were trained briefly draw soft; this gives holes,
    seams, contrast and grain back and leaves tones alone, at a fifth more time.
    """
    mask_guidance: Literal["auto"] | float = "auto"
    """How strongly masks are drawn: distance of each step from the same step without the mask, as a multiple, under the
    masks. `auto` chooses it per class, so that defects stand out as much as those of train tiles.
    """
    tone_quantile: float = Field(default=0.5, ge=0, le=1)
    """Depth of tone: `auto` lets drafts' median contrast be this quantile of the contrasts of the class's defects in
    train.
    """
    calibration_drafts: int = Field(default=24, ge=1)
    """Planned drafts that `auto` draws, at three guidances each."""
    mask_spill: float = Field(default=0.0, ge=0, le=1)
    """The same elsewhere: how much of what masks do outside themselves is kept. With this and both guidances at 1 a
    step is drawn without further evaluations, in under two thirds of the time.
    """
    control_scale: float = Field(default=1.0, ge=0)
    match_grain: bool = False
    """Give drafts the fine grain of their pool tile where they lack it; inserted defects always get it."""
    precision: Literal["fp32", "bf16"] = "bf16"
    batch_size: int = Field(default=16, ge=1)

    @property
    def versions_per_tile(self) -> int:
        """Return how many augmented versions of a pool tile drafts are drawn on; 0 for the tile itself, which insertion
        keeps.
        """
        return 0 if self.mode == "insert" else self.augmentations_per_image

    @field_validator("mask_guidance", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object) -> object:
        if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 1):
            return value
        # the union's own message names only one of its kinds
        raise ValueError("neither `auto` nor a number of at least 1")
