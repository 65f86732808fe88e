"""Configuration of phase 1."""

from __future__ import annotations

from pydantic import Field, field_validator

from defectory.artifacts.config import Section, registered_name
from defectory.concept.methods import CONCEPT_METHODS
from defectory.engine.training.config import TrainingConfig


class ConceptConfig(Section):
    """Learn the concept (paper, section 3.1)."""

    method: str = "dreambooth"
    """`dreambooth`, `none` (the base as it is, to see what a concept is worth), a method of an installed package, or
    `package.module:attribute`.
    """
    defect_words: bool = True
    """Name a tile's defects in its prompt, as phase 2 does, so that a defect-free prompt draws no defects. Turn it off
    for the paper's prompt.
    """
    prior_loss_weight: float = Field(default=0.3, ge=0)
    """Weight lambda of the prior term; 0 turns prior preservation off. Raise it against memorisation."""
    prior_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of class images in each batch, at least one image."""
    num_class_images: int = Field(default=64, ge=1)
    """Class images that the frozen base draws for prior preservation."""
    prior_inference_steps: int = Field(default=20, ge=1)
    """Steps of the ancestral sampler that draws the class images."""
    train_text_encoder: bool = True
    """Train the text encoder along with the denoiser. Turn it off to save memory."""
    training: TrainingConfig = TrainingConfig(num_steps=400, learning_rate=2e-4)

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONCEPT_METHODS)
