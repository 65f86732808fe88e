"""Defines the configuration of a project: one section per stage."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import Field, field_validator, model_validator

from defectory.artifacts.config import Section
from defectory.concept.config import ConceptConfig
from defectory.condition.config import ConditionConfig
from defectory.config.study import StudyConfig
from defectory.curation.config import CurationConfig
from defectory.dataset.config import DataConfig, SplitConfig, TilingConfig
from defectory.distillation.config import DistillationConfig
from defectory.drivers.config import DriverConfig
from defectory.engine.config import AugmentationConfig, PromptConfig
from defectory.evaluation.config import EvaluationConfig
from defectory.masks.config import MaskConfig
from defectory.segmentation.config import SegmentationConfig
from defectory.synthesis.config import SynthesisConfig

OF_PLACE_AND_SPEED = frozenset({"out", "threads", "num_processes", "executor", "training_processes", "study"})
"""Settings that say where a run lies and how fast it is, and what studies do with it; they change no result."""


class ProjectConfig(Section):
    """Everything a run depends on."""

    name: str = "project"
    """Name of the project, shown in the report."""
    out: str = "runs/project"
    """Run folder, relative to the project file."""
    seed: int = 0
    """Seed of everything: split, tiling, training, plan, drafts and curation. `segmentation.seeds` counts within it."""
    device: str = "auto"
    """Device to compute on: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps` or `xpu`."""
    base: str = "embedded"
    """`embedded`, or the path of a base in Stable Diffusion layout."""
    data: DataConfig
    split: SplitConfig = SplitConfig()
    tiling: TilingConfig = TilingConfig()
    prompts: PromptConfig = PromptConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    concept: ConceptConfig = ConceptConfig()
    drivers: DriverConfig = DriverConfig()
    condition: ConditionConfig = ConditionConfig()
    distillation: DistillationConfig = DistillationConfig()
    masks: MaskConfig = MaskConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    curation: CurationConfig = CurationConfig()
    segmentation: SegmentationConfig = SegmentationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    study: StudyConfig = StudyConfig()
    threads: int | None = Field(default=None, ge=1)
    """CPU threads to use; None leaves the number to torch."""
    num_processes: int | None = Field(default=None, ge=1)
    """Segmenters trained side by side on a CPU, sharing its threads, about 1 GB of memory each; None chooses up to 4.
    """
    training_processes: int = Field(default=1, ge=1)
    """Processes that train phases 1 and 2 together, one per GPU. They share the tiles of each step, so results stay the
    same but for rounding.
    """
    executor: str = "auto"
    """How independent segmenters are trained: `in-process` one after the other, `local-processes` side by side, `auto`
    side by side where a CPU has threads to spare.
    """

    def of_results(self) -> dict[str, Any]:
        """Return the settings that results depend on or show, JSON-compatible: all but place and speed of a run."""
        return self.model_dump(mode="json", exclude=set(OF_PLACE_AND_SPEED))

    @field_validator("device")
    @classmethod
    def _is_a_device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?|xpu(:\d{1,3})?", value):
            raise ValueError("not a device: auto, cpu, cuda, cuda:1, mps or xpu was expected")
        return value

    @model_validator(mode="after")
    def _shares_leave_some_train(self) -> ProjectConfig:
        if self.split.val_share + self.split.test_share >= 1:
            raise ValueError(
                f"split.val_share {self.split.val_share:g} and split.test_share {self.split.test_share:g} leave "
                "nothing to train on"
            )
        if self.split.folds is not None and self.split.fold >= self.split.folds:
            raise ValueError(f"split.fold {self.split.fold} of {self.split.folds} folds, which count from 0")
        return self

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> ProjectConfig:
        low, high = self.masks.scale_range
        if not 0 < low <= high:
            raise ValueError(f"masks.scale_range {[low, high]}: two factors above 0 in order were expected")
        return self

    @model_validator(mode="after")
    def _lists_name_each_thing_once(self) -> ProjectConfig:
        lists: dict[str, Sequence[object] | None] = {
            "segmentation.arms": self.segmentation.arms,
            "segmentation.seeds": self.segmentation.seeds,
            "data.classes": self.data.classes,
            "study.seeds": self.study.seeds,
        }
        for key, values in lists.items():
            if values is not None and (not values or len(set(values)) < len(values)):
                raise ValueError(f"{key} {'is an empty list' if not values else 'names something twice'}")
        return self

    @model_validator(mode="after")
    def _the_network_acts_in_all_steps_of_a_student(self) -> ProjectConfig:
        start, end = self.synthesis.control_guidance_start, self.synthesis.control_guidance_end
        if self.distillation.enabled and (start > 0 or end < 1):
            raise ValueError(
                f"distillation.enabled with synthesis.control_guidance_start {start:g} and control_guidance_end "
                f"{end:g}: a student's few steps have no such parts; set them to 0 and 1, or turn distillation off"
            )
        if self.distillation.enabled and self.synthesis.also_controls:
            raise ValueError(
                "distillation.enabled with synthesis.also_controls: a student learns what the run's own network draws "
                "alone; turn one of them off"
            )
        return self

    @model_validator(mode="after")
    def _inpainting_sees_the_image(self) -> ProjectConfig:
        if self.synthesis.mode == "inpaint" and self.drivers.kind != "image":
            raise ValueError(
                f"synthesis.mode inpaint with drivers.kind {self.drivers.kind}: set drivers.kind to image, and train "
                "phase 2 with it"
            )
        return self
