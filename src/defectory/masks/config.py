"""Configuration of the mask bank and its perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from defectory.artifacts.config import Section
from defectory.registry import Registry

if TYPE_CHECKING:
    from defectory.masks.sources import MakeMaskSource

SeverityBy = Literal["area", "width", "length"]
Share = Annotated[float, Field(ge=0)]
MASK_SOURCES: Registry[MakeMaskSource] = Registry(
    "mask_sources",
    setting="masks.sources",
    builtin={
        "bank": "defectory.masks.sources:bank_source",
        "expert": "defectory.masks.sources:expert_source",
        "statistical": "defectory.masks.sources:statistical_source",
        "diffusion": "defectory.masks.sources:diffusion_source",
    },
)


class MaskDiffusionConfig(Section):
    """Training of the diffusion model of masks."""

    num_steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=6e-3, gt=0)


class MaskShares(Section):
    """How much of the masks each source gives, in proportion: ours, and those that packages add, by name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Share] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    bank: Share = 1.0
    """Training masks, perturbed."""
    expert: Share = 0.0
    """Masks of `masks.expert`, perturbed."""
    statistical: Share = 0.0
    """Drawn anew from the figures of the training masks: length, width, wander and branches of cracks, size and
    roughness of blobs.
    """

    diffusion: Share = 0.0
    """Drawn anew by a small diffusion model that learns the training masks first; minutes."""

    @classmethod
    def added_names(cls) -> tuple[str, ...]:
        """Return the names of sources that packages add."""
        return tuple(name for name in MASK_SOURCES.names() if name not in cls.model_fields)

    def shares(self) -> dict[str, float]:
        """Return the share of every source that is set, ours first, the others in alphabetical order."""
        ours = {name: getattr(self, name) for name in type(self).model_fields}
        return ours | dict(sorted(self.__pydantic_extra__.items()))

    @model_validator(mode="after")
    def _some_source(self) -> MaskShares:
        for name in self.__pydantic_extra__:
            if name not in MASK_SOURCES.names():
                raise ValueError(f"{name!r} is no source of masks: choose among {', '.join(MASK_SOURCES.names())}")
        if sum(self.shares().values()) <= 0:
            raise ValueError("no source has a share above 0")
        return self


class MaskConfig(Section):
    """Where masks come from, and how they are perturbed before they are placed."""

    sources: MaskShares = MaskShares()
    expert: str | None = None
    """Masks of an expert: a folder with one folder of PNG masks per class, or a COCO file. PNG files named as bank
    entries correct them, whatever the shares; `defectory masks review` writes such a folder.
    """
    diffusion: MaskDiffusionConfig = MaskDiffusionConfig()
    num_branches: int | None = Field(default=None, ge=0)
    """Branches of the lines that the statistical and the diffusion source draw, counted off the longest path; as in
    train, if not set.
    """
    severity: tuple[float, float] = (0.0, 1.0)
    """Quantiles of the sizes of each class's training masks between which sizes lie: (0.5, 1) draws the larger half."""
    severity_by: SeverityBy = "area"
    """What `severity` orders masks by: area, mean width, or the longer side of the box. Depth of tone is
    synthesis.tone_quantile.
    """
    class_balance: Literal["train", "even"] = "train"
    """`train`: classes come as often as in train; `even`: rare ones as often as common ones."""
    max_uses: int | None = Field(default=None, ge=1)
    """Most drivers that one mask of the bank or the expert serves."""
    rotate_degrees: float = Field(default=180.0, ge=0)
    scale_range: tuple[float, float] = (0.8, 1.25)
    shear: float = Field(default=0.1, ge=0)
    flip: bool = True
    elastic_px: float = Field(default=2.0, ge=0)
    """RMS displacement of the elastic perturbation, tile pixels."""
    thickness_share: float = Field(default=0.12, ge=0, lt=1)
    """Largest growth or shrinkage of a defect's width, as a share of it; scaling stretches long defects and leaves
    their width.
    """
    placement: Literal["learned", "anywhere"] = "learned"
    """`learned`: at holes and edges of the part as often, by class, as in train."""
    regions: str | None = None
    """Folder of drawn regions: PNG files named as pool images and of their size, white where defects may lie. Images
    without one allow all of the part.
    """
    keep_place: bool = False
    """Leave a mask where it was on its source tile instead of placing it anew."""
    min_area_px: int = Field(default=9, ge=1)

    @field_validator("severity")
    @classmethod
    def _quantiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError(f"{list(value)} are not two quantiles from 0 to 1 in order")
        return value

    @model_validator(mode="after")
    def _expert_is_named(self) -> MaskConfig:
        if self.sources.expert > 0 and self.expert is None:
            raise ValueError("masks.sources has a share of `expert`, and masks.expert names no folder or file")
        return self
