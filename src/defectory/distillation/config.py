"""Configuration of distillation."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from defectory.artifacts.config import Section
from defectory.engine.training.config import TrainingConfig


class DistillationConfig(Section):
    """Draw in a few steps: a LoRA on the denoiser learns what the finished, guided pipeline draws in many steps."""

    enabled: bool = False
    """Run the stage `distill` after phase 2. Drafts and the finished pipeline then use the student, if its
    drafts are like those of the pipeline that it learned from.
    """
    method: Literal["trajectory", "consistency"] = "trajectory"
    """`trajectory`: each step of the student ends where several steps of the teacher end. It is drawn with DDIM, and
    gives nearly the teacher's images. `consistency`: all points of a trajectory lead to one image, as in LCM-LoRA. It
    is drawn with LCM.
    """
    num_inference_steps: int = Field(default=4, ge=2, le=8)
    """Denoising steps per image of the student, in place of `synthesis.num_inference_steps`. Fewer steps are harder to
    learn.
    """
    teacher_inference_steps: int = Field(default=16, ge=2, le=1000)
    """Steps of the teacher, from pure noise to the image, that the student learns from. More steps train longer with
    `trajectory`; `consistency` takes equally long with any number, and 50 is usual.
    """
    lora_rank: int = Field(default=32, ge=1, le=1024)
    """Rank of the LoRA. Raise it if the student draws worse than its teacher."""
    check_drafts: int = Field(default=32, ge=1)
    """Drafts on drivers of train tiles that teacher and student both draw, to compare them."""
    max_fidelity_loss: float = Field(default=0.02, ge=0, le=1)
    """Largest share of the teacher's fidelity that the student may lose. A student that loses more is not used."""
    max_detail_change: float = Field(default=0.05, ge=0, le=1)
    """Largest share by which the student's drafts may hold less or more fine detail than the teacher's. Fewer steps
    tend to blur.
    """
    min_gap_closed: float = Field(default=0.25, ge=-1, le=1)
    """Smallest share of the distance to the teacher's drafts that training must have removed. A student below it has
    learned too little, and is not used.
    """
    training: TrainingConfig = TrainingConfig(
        num_steps=400, batch_size=8, learning_rate=1e-3, proportion_empty_prompts=0.0
    )
    """Training of the student. Prompts are never left empty, and min-SNR weights are not used, since both belong to
    other losses.
    """

    @model_validator(mode="after")
    def _the_teacher_takes_more_steps(self) -> DistillationConfig:
        if self.teacher_inference_steps < self.num_inference_steps:
            raise ValueError(
                f"teacher_inference_steps {self.teacher_inference_steps} are fewer than num_inference_steps "
                f"{self.num_inference_steps}: the student would have nothing to save"
            )
        return self
