"""Model weights on disk: a folder and its digest."""

from __future__ import annotations

from defectory.artifacts.value import Value


class Concept(Value):
    """The outcome of phase 1: an adapted base, or what makes one of a base, with its token and prompt."""

    method: str
    """As in `concept.method`."""
    instance_token: str
    class_noun: str
    tone_words: bool
    """Whether prompts contain words for the tones of a tile."""
    base_digest: str
    weights_digest: str
    """Digest of the weights folder."""


class Control(Value):
    """The outcome of phase 2: the folder of a condition network."""

    network: str = "controlnet"
    """Kind of network, as in `condition.network`."""
    concept_digest: str
    driver_config_digest: str
    weights_digest: str
