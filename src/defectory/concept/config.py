"""Configuration of phase 1."""

from __future__ import annotations

from pydantic import Field, field_validator

from defectory.artifacts.config import Section, registered_name
from defectory.concept.methods import CONCEPT_METHODS
from defectory.engine.training.config import TrainingConfig


class ConceptConfig(Section):
    """Learn the concept (paper, section 3.1)."""

    method: str = "dreambooth"
    """`dreambooth`, a method of an installed package, or `package.module:attribute`."""
    token: str = "sks"
    """The rare token [V]."""
    class_noun: str = "industrial surface"
    tone_words: bool = True
    """Put two words for a tile's lightness and contrast before [V] in every prompt; off is the paper's prompt. A driver
    carries no brightness, and without the words drafts drift to the mean tone.
    """
    defect_words: bool = True
    """Name a tile's defects in its prompt, as phase 2 does, so that a defect-free prompt draws none; off is the paper's
    prompt.
    """
    prior_weight: float = Field(default=0.3, ge=0)
    """lambda of the prior term; 0 turns prior preservation off."""
    prior_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of each batch that is class images, at least one."""
    num_class_images: int = Field(default=64, ge=1)
    prior_steps: int = Field(default=20, ge=1)
    """Steps of the ancestral sampler that draws the class images."""
    train_text_encoder: bool = True
    training: TrainingConfig = TrainingConfig(num_steps=400, learning_rate=2e-4)

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONCEPT_METHODS)
