"""Configuration of phase 1."""

from __future__ import annotations

from pydantic import Field, field_validator

from defectory.artifacts.config import Section, registered_name
from defectory.concept.methods import CONCEPT_METHODS
from defectory.engine.training.config import TrainingConfig

CHECK_SETTINGS = frozenset({"check_images"})
"""Settings of the check alone, which phase 1 does not depend on."""


class ConceptConfig(Section):
    """Learn the concept (paper, section 3.1)."""

    method: str = "dreambooth"
    """`dreambooth`, `lora` (small adapters on the base, with less memory), `textual_inversion` (only a new word),
    `lora_textual_inversion` (both), `none` (the base as it is, to see what a concept is worth), a method of an
    installed package, or `package.module:attribute`.
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
    lora_rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the adapters of `lora`. Raise it if the parts' look is not learned."""
    lora_alpha: float | None = Field(default=None, gt=0)
    """Scale of the adapters of `lora`, times the rank; None means the rank, a scale of 1."""
    lora_targets: tuple[str, ...] = Field(default=("to_q", "to_k", "to_v", "to_out.0"), min_length=1)
    """Layers of the denoiser that get adapters, by the end of their names. Add `ff.net.0.proj`, `ff.net.2`, `conv1` and
    `conv2` if attention alone learns too little.
    """
    lora_learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of `lora`, which trains with AdamW; it takes the place of `training.learning_rate`."""
    num_vectors: int = Field(default=4, ge=1, le=32)
    """Tokens that the new word of `textual_inversion` consists of. More learn more and leave less room in prompts."""
    initializer_word: str | None = None
    """Word whose embedding the new word of `textual_inversion` starts from; None means the last word of
    `prompts.class_noun`.
    """
    embedding_learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate of the new word's vectors, which train with AdamW."""
    check_images: int = Field(default=0, ge=0, le=256)
    """Images that the stage `check-concept` draws without a driver, to see copies of training tiles before phase 2; 0
    leaves the stage out.
    """
    training: TrainingConfig = TrainingConfig(num_steps=400, learning_rate=2e-4)

    @field_validator("method")
    @classmethod
    def _known(cls, value: str) -> str:
        return registered_name(value, CONCEPT_METHODS)

    def with_initializer(self, class_noun: str) -> ConceptConfig:
        """Return the settings with the last word of a class noun as `initializer_word`, if none is set."""
        if self.initializer_word is not None or not class_noun.split():
            return self
        return self.model_copy(update={"initializer_word": class_noun.split()[-1]})
