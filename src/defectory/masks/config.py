"""Configuration of mask sources, perturbation and placement."""

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
    """Settings for training the diffusion model of masks."""

    num_steps: int = Field(default=1500, ge=1)
    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=6e-3, gt=0)


class MaskShares(Section):
    """Relative share of the masks that each source supplies."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Share] = Field(init=False)  # pyright: ignore[reportIncompatibleVariableOverride]
    bank: Share = 1.0
    """Training masks, perturbed."""
    expert: Share = 0.0
    """Masks from `masks.expert`, perturbed."""
    statistical: Share = 0.0
    """New masks from shape statistics of the training masks: length, width, wander and branches of cracks, size and
    roughness of blobs.
    """

    diffusion: Share = 0.0
    """New masks from a small diffusion model that is first trained on the training masks; takes minutes."""

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
    """Settings for where masks come from and how they are perturbed and placed."""

    sources: MaskShares = MaskShares()
    expert: str | None = None
    """Masks of an expert: a folder with one folder of PNG masks per class, or a COCO file. PNG files named like bank
    entries replace these entries, whatever the shares; `defectory masks review` writes such a folder.
    """
    diffusion: MaskDiffusionConfig = MaskDiffusionConfig()
    num_branches: int | None = Field(default=None, ge=0)
    """Number of branches of lines from the statistical and the diffusion source; None: as in train."""
    severity: tuple[float, float] = (0.0, 1.0)
    """Quantiles of the sizes of each class's training masks that new masks lie between: (0.5, 1) draws the larger half.
    """
    severity_by: SeverityBy = "area"
    """How `severity` orders masks: by area, mean width, or longer side of the box. The depth of tone is set by
    synthesis.tone_quantile.
    """
    class_balance: Literal["train", "even"] = "train"
    """`train`: classes are as frequent as in train; `even`: all classes are equally frequent."""
    max_uses: int | None = Field(default=None, ge=1)
    """Maximum number of drivers that one mask of the bank or the expert is used for."""
    rotate_degrees: float = Field(default=180.0, ge=0)
    """Largest turn of a mask to either side; 10 keeps defects along the direction they have in train."""
    scale_range: tuple[float, float] = (0.8, 1.25)
    shear: float = Field(default=0.1, ge=0)
    flip: bool = True
    elastic_px: float = Field(default=2.0, ge=0)
    """RMS displacement of the elastic perturbation, tile pixels."""
    thickness_share: float = Field(default=0.12, ge=0, lt=1)
    """Largest change of a defect's width, as a share of it; scaling does not change the width of long defects."""
    placement: Literal["learned", "anywhere"] = "learned"
    """`learned`: at holes and edges of the part as often as in train, per class."""
    regions: str | None = None
    """Folder of drawn regions: PNG files with the names and sizes of the pool images, white where defects may lie.
    Images without a file allow the whole part.
    """
    keep_place: bool = False
    """Keep a mask at its position on its source tile instead of placing it."""
    min_area_px: int = Field(default=9, ge=1)

    @field_validator("severity")
    @classmethod
    def _quantiles(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1] <= 1:
            raise ValueError(f"{list(value)} are not two quantiles from 0 to 1 in ascending order")
        return value

    @model_validator(mode="after")
    def _expert_is_named(self) -> MaskConfig:
        if self.sources.expert > 0 and self.expert is None:
            raise ValueError("masks.sources has a share of `expert`, but masks.expert names no folder or file")
        return self
