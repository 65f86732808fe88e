"""The project file as a value: one section per stage."""

from __future__ import annotations

from pydantic import Field, model_validator

from defectory.artifacts.config import Section
from defectory.concept.config import ConceptConfig
from defectory.condition.config import ConditionConfig
from defectory.curation.config import CurationConfig
from defectory.dataset.config import DataConfig, SplitConfig, TilingConfig
from defectory.drivers.config import DriverConfig
from defectory.evaluation.config import EvaluationConfig
from defectory.masks.config import MaskConfig
from defectory.segmentation.config import SegmentationConfig
from defectory.synthesis.config import SynthesisConfig


class ProjectConfig(Section):
    """Everything a run depends on."""

    name: str = "project"
    out: str = "runs/project"
    """Run folder, relative to the project file."""
    seed: int = 0
    device: str = "auto"
    base: str = "embedded"
    """`embedded`, or the path of a base in Stable Diffusion layout."""
    data: DataConfig
    split: SplitConfig = SplitConfig()
    tiling: TilingConfig = TilingConfig()
    concept: ConceptConfig = ConceptConfig()
    drivers: DriverConfig = DriverConfig()
    condition: ConditionConfig = ConditionConfig()
    masks: MaskConfig = MaskConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    curation: CurationConfig = CurationConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    threads: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _inpainting_sees_the_image(self) -> ProjectConfig:
        if self.synthesis.mode == "inpaint" and self.drivers.kind != "image":
            raise ValueError(
                f"synthesis.mode inpaint with drivers.kind {self.drivers.kind}: set drivers.kind to image, and train phase 2 with it"
            )
        return self
