"""The card of a trained model: what it was made from, how to use it, and under which licence."""

from __future__ import annotations

from typing import Literal

from defectory.artifacts.value import Value


class Trained(Value):
    """One phase's training."""

    phase: str
    """For people, for example `concept`."""
    method: str
    """As in `concept.method` or `condition.network`."""
    num_steps: int
    """Steps taken; 0 if nothing was trained."""
    held_out_losses: tuple[float, ...] = ()
    """First, lowest and last loss on held-out tiles; empty if none was measured."""


class ClassColour(Value):
    """A class and its colour in drivers, `#rrggbb`."""

    name: str
    colour: str


class ModelCard(Value):
    """What is known of a concept or of a finished pipeline."""

    kind: Literal["concept", "pipeline"]
    base: str
    """`owner/model`, a known name, or the name of its folder."""
    base_hub_id: str | None
    """`owner/model` on a model hub, if it is known."""
    base_digest: str
    family: str
    """Family of the base, as in `base info`."""
    licence: str
    """Licence of the base with its restrictions, as far as it is known."""
    licence_id: str | None
    """The same as model hubs name it."""
    licence_files: tuple[str, ...]
    """Copies of the base's files that state it, beside the card."""
    folder: str
    """Folder of the weights, relative to the card."""
    opens_as: str
    """Class of diffusers that opens the weights; for adapters, that of their base."""
    opens_with: str = ""
    """Further arguments of `from_pretrained`, as Python writes them."""
    num_inference_steps: int | None = None
    """Steps that a distilled pipeline draws in; None of one that was not distilled."""
    num_further_networks: int = 0
    """Control networks beside the run's own that acted when drafts were drawn."""
    instance_token: str
    class_noun: str
    tone_words: bool
    """Whether prompts contain words for the tones of an image."""
    prompt: str
    """A prompt of training."""
    tile_px: int
    trained: tuple[Trained, ...]
    num_images: int
    """Training images, with and without defects."""
    classes: tuple[ClassColour, ...]
    weights_digest: str
    version: str
    """Of Defectory."""
