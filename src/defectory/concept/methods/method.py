"""The contract of a concept method: DreamBooth, or an adapter, an embedding, a part of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
from torch import nn

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone


class ConceptMethod(Protocol):
    """One way to teach a backbone a concept, at work on one backbone."""

    folder: ClassVar[str]
    """Name of its outcome's folder in the stage folder."""
    preserves_prior: ClassVar[bool]
    """Whether class images are trained on as well."""
    needs_base: ClassVar[bool]
    """Whether `load` needs the base that the concept was learned from."""

    @property
    def token(self) -> str:
        """What stands for [V] in every prompt from now on."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What trains, by name."""
        ...

    @classmethod
    def start(cls, backbone: Backbone, config: ConceptConfig, *, seed: int) -> Self:
        """Prepare a backbone for training, in place: from now on it predicts with the parameters that train.

        Args:
            backbone: frozen; class images have been drawn from it already.
            config: of the phase.
            seed: of parameters that are new.
        """
        ...

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the training prompt of a tile.

        Args:
            class_names: class of each defect that the prompt is to name.
            tone: words for the tile's tones; empty for none.
            defect_noun: word after each class name; empty for none.
        """
        ...

    def save(self, folder: Path, *, base: Path) -> None:
        """Write what was learned into an empty folder.

        Args:
            folder: a new one.
            base: that the concept was learned from.
        """
        ...

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        """Load a backbone that knows the concept.

        Args:
            folder: that `save` wrote.
            base: that the concept was learned from; may be None where `needs_base` is False.
            device: where the models go.

        Raises:
            WeightsError: the folder cannot be used.
        """
        ...
