"""Model weights on disk: a folder and its digest."""

from __future__ import annotations

from defectory.artifacts.value import Value


class Concept(Value):
    """The outcome of phase 1: an adapted base in Stable Diffusion layout, with its token and prompt."""

    method: str
    token: str
    class_noun: str
    tone_words: bool
    """Whether prompts contain words for the tones of a tile."""
    base_digest: str
    weights_digest: str
    """Digest of the weights folder."""


class Control(Value):
    """The outcome of phase 2: a `ControlNetModel` folder."""

    concept_digest: str
    driver_config_digest: str
    weights_digest: str
