"""Configuration of synthesis."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from defectory.artifacts.config import Section
from defectory.engine.config import MixedPrecision


class AlsoControl(Section):
    """A further condition network that acts beside the run's own at synthesis."""

    path: str = Field(min_length=1)
    """Folder, relative to the project file: `control/` of another run on the same base, or a folder of diffusers with a
    `ControlNetModel` or a `T2IAdapter`.
    """
    scale: float = Field(default=1.0, ge=0)
    """Strength; 0 leaves the network out."""
    start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the denoising steps before the network acts."""
    end: float = Field(default=1.0, gt=0, le=1)
    """Share of the denoising steps after which it no longer acts."""
    drivers: str = "same"
    """What the network reads: `same` for the run's own drivers, masks included, or a kind as in `drivers.kind`. For
    `control/` of another run, drivers of that kind are made with this run's section `drivers`, masks included. For a
    folder of diffusers, geometry of that kind is made at the tile's full size and brightness, without masks.
    """


class SynthesisConfig(Section):
    """How drafts are drawn from drivers of defect-free images and from shuffled, perturbed masks."""

    mode: Literal["auto", "full", "insert", "inpaint"] = "auto"
    """`full` draws the whole image from the driver (the paper). `insert` draws a defect into the pool image and leaves
    its surroundings unchanged. `inpaint` is the paper's comparator and needs `drivers.kind = "image"`. `auto` inserts
    if images are cut into tiles, whole images are free of defects, and most defects fit into a tile (decision 052);
    otherwise it draws in full.
    """
    insert_margin_px: int = Field(default=8, ge=2)
    """Margin around a label in tile pixels, for `insert`. Beyond it nothing changes."""
    drafts_per_frame: Literal["auto"] | int = "auto"
    """Most drafts in one delivered image, where images are cut into tiles and defects are inserted. `auto` gives images
    as many defects as defective images of train have.
    """
    focus: Literal["uniform", "segmenter"] = "uniform"
    """`segmenter` repeats masks, classes, sizes and places more often the worse the fold segmenters find them.
    `uniform` treats all alike.
    """
    num_images: int = Field(default=200, ge=1)
    """Drafts to draw, in all rounds together."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of drafts. Each further round trains segmenters on real images and the drafts so far, and draws an even
    part of the drafts for the classes, sizes and places that they miss on train images they have not seen. Rounds end
    early when the score on validation stops rising; then fewer drafts are drawn.
    """
    augmentations_per_image: int = Field(default=10, ge=0)
    """Augmented versions of each pool tile (paper: 10); 0 uses pool tiles unchanged."""
    max_seeds_per_driver: int = Field(default=15, ge=1)
    """Most images drawn from one driver (paper: 15)."""
    num_drivers: int | None = Field(default=None, ge=1)
    """Drivers that the drafts are drawn from; None takes as many as there are, up to one per draft. Set it to see how
    much drafts of one driver differ.
    """
    max_images_per_tile: int | None = Field(default=None, ge=1)
    """Most images drawn on one pool tile, all its versions together. The run stops if the pool is too small for it."""
    scheduler: Literal["base", "ddim", "ddpm", "euler", "dpm-solver"] = "dpm-solver"
    """Sampler; `base` uses the scheduler the base names. `dpm-solver` draws fine detail in fewer steps than the others
    (decision 035).
    """
    num_inference_steps: int = Field(default=20, ge=1)
    """Denoising steps per image. More steps take longer."""
    guidance_scale: float = Field(default=1.0, ge=1)
    """Classifier-free guidance of the prompt; 1 turns it off."""
    driver_guidance: float = Field(default=1.75, ge=1)
    """Guidance away from the class noun without a driver; 1 turns it off. Raise it if drafts lack holes, seams,
    contrast or grain. It costs about a fifth more time.
    """
    mask_guidance: Literal["auto"] | float = "auto"
    """Guidance away from the image without the mask, under the masks; 1 turns it off. `auto` chooses it per class so
    that defects stand out as much as those of train tiles.
    """
    tone_quantile: float = Field(default=0.5, ge=0, le=1)
    """Quantile of the train defects' contrast that `mask_guidance = "auto"` aims at. Raise it for stronger defects."""
    calibration_drafts: int = Field(default=24, ge=1)
    """Planned drafts that `mask_guidance = "auto"` draws for calibration, at three strengths each."""
    mask_spill: float = Field(default=0.0, ge=0, le=1)
    """Share of a mask's effect outside the mask that is kept. Set it and both guidances to 1 to skip the extra network
    evaluations; drawing then takes less than two thirds of the time.
    """
    controlnet_conditioning_scale: float = Field(default=1.0, ge=0)
    """Strength of the control network; 1 is as trained."""
    control_guidance_start: float = Field(default=0.0, ge=0, lt=1)
    """Share of the denoising steps before the condition network acts. The first steps place what is drawn, so that a
    late start loosens geometry and masks.
    """
    control_guidance_end: float = Field(default=1.0, gt=0, le=1)
    """Share of the denoising steps after which the condition network no longer acts. The last steps draw fine detail,
    which then is the base's own.
    """
    also_controls: tuple[AlsoControl, ...] = Field(default=(), max_length=8)
    """Further condition networks that act beside the run's own, a list of tables `[[synthesis.also_controls]]` with
    `path`, `scale`, `start`, `end` and `drivers`. Their effects are added (decision 067).
    """
    match_grain: bool = False
    """Add the pool tile's fine grain to drafts that lack it. Inserted defects keep the tile's own."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the networks: `bf16`, `no` for fp32 throughout, or `auto`: `bf16` where the processor has
    instructions for it. Latents stay in fp32.
    """
    batch_size: int = Field(default=16, ge=1)
    """Images drawn at once. Lower it if memory runs out."""

    def of_round(self, number: int) -> SynthesisConfig:
        """Return the settings of one round, from 1, as those of a run without further rounds.

        Each round draws an even part of the drafts, from an even part of the drivers; the first rounds draw the rest.
        """
        if self.rounds == 1:
            return self
        drivers = None if self.num_drivers is None else max(1, _part(self.num_drivers, self.rounds, number))
        part = _part(self.num_images, self.rounds, number)
        return self.model_copy(update={"num_images": part, "num_drivers": drivers, "rounds": 1})

    @property
    def versions_per_tile(self) -> int:
        """Return the number of augmented versions per pool tile; 0 means the tile itself, as insertion needs it."""
        assert self.mode != "auto", "decide the mode first"
        return 0 if self.mode == "insert" else self.augmentations_per_image

    @model_validator(mode="after")
    def _a_draft_in_each_round(self) -> SynthesisConfig:
        if self.rounds > self.num_images:
            raise ValueError(f"rounds {self.rounds} are more than num_images {self.num_images}: a round needs a draft")
        return self

    @model_validator(mode="after")
    def _the_network_acts_in_a_step(self) -> SynthesisConfig:
        start, end, num_steps = self.control_guidance_start, self.control_guidance_end, self.num_inference_steps
        if not num_acting(num_steps, start=start, end=end):
            raise ValueError(
                f"no whole step of num_inference_steps {num_steps} lies between control_guidance_start {start:g} and "
                f"control_guidance_end {end:g}: the condition network would never act"
            )
        for number, one in enumerate(self.also_controls, start=1):
            if not num_acting(num_steps, start=one.start, end=one.end):
                raise ValueError(
                    f"no whole step of num_inference_steps {num_steps} lies between start {one.start:g} and end "
                    f"{one.end:g} of also_controls {number}: the network would never act"
                )
        return self

    @field_validator("drafts_per_frame", mode="before")
    @classmethod
    def _auto_or_a_count(cls, value: object) -> object:
        if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
            return value
        raise ValueError("neither `auto` nor a whole number of at least 1")

    @field_validator("mask_guidance", mode="before")
    @classmethod
    def _auto_or_a_number(cls, value: object) -> object:
        if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and value >= 1):
            return value
        # the union's own message names only one of its kinds
        raise ValueError("neither `auto` nor a number of at least 1")


def num_acting(num_steps: int, *, start: float, end: float) -> int:
    """Return the number of whole denoising steps between two shares of them."""
    return sum(i / num_steps >= start and (i + 1) / num_steps <= end for i in range(num_steps))


def _part(total: int, num_parts: int, number: int) -> int:
    """Return the size of one of several even parts, numbered from 1; the first ones take the rest."""
    return total // num_parts + (number <= total % num_parts)
