"""The outcome of distillation: a student that draws in a few steps, and whether it is used.

A student has to draw defects where the teacher draws them (fidelity), the same images (distance) and as fine ones
(detail). Fidelity alone does not tell a student that learned nothing from one that did (decision 064).
"""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.value import Value


class Distilled(Value):
    """A LoRA on the adapted base, what it learned, and how its drafts compare with those of its teacher."""

    method: Literal["trajectory", "consistency"]
    num_inference_steps: int
    """Denoising steps of the student."""
    teacher_inference_steps: int
    guidance_scale: float
    """Classifier-free guidance that the student has learned, and that is not applied again."""
    driver_guidance: float
    """Driver guidance that the student has learned, and that is not applied again."""
    concept_digest: str
    control_digest: str
    weights_digest: str
    num_drafts: int
    """Drafts that were compared."""
    teacher_fidelity: float
    """Mean counterfactual fidelity of the teacher's drafts, 0..1."""
    student_fidelity: float
    """The same of the student's drafts, of the same drivers, prompts and seeds."""
    teacher_detail: float
    """Fine detail of the teacher's drafts: spread of the Laplacian, grey levels."""
    student_detail: float
    student_distance: float
    """Mean distance of the student's drafts from the teacher's, grey levels."""
    untrained_distance: float
    """The same for drafts of the student's steps and sampler before it has learned anything."""
    is_kept: bool
    """Whether drafts are drawn with the student."""

    @property
    def fidelity_loss(self) -> float:
        """Return the share of the teacher's fidelity that the student loses; negative if it gains."""
        if self.teacher_fidelity <= 0:
            return 0.0
        return 1 - self.student_fidelity / self.teacher_fidelity

    @property
    def detail_change(self) -> float:
        """Return the share of fine detail that the student adds to the teacher's; negative if it draws less."""
        if self.teacher_detail <= 0:
            return 0.0
        return self.student_detail / self.teacher_detail - 1

    @property
    def gap_closed(self) -> float:
        """Return the share of the way from an untrained student to the teacher; negative if it went astray."""
        if self.untrained_distance <= 0:
            return 0.0
        return 1 - self.student_distance / self.untrained_distance
