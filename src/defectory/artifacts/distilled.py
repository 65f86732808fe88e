"""The outcome of distillation: a student that draws in a few steps, and whether it is used."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.value import Value


class Distilled(Value):
    """A LoRA on the adapted base, what it learned, and how faithful its drafts are."""

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
    is_kept: bool
    """Whether drafts are drawn with the student."""

    @property
    def fidelity_loss(self) -> float:
        """Return the share of the teacher's fidelity that the student loses; negative if it gains."""
        if self.teacher_fidelity <= 0:
            return 0.0
        return 1 - self.student_fidelity / self.teacher_fidelity
