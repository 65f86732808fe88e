"""Defines the protocol of a concept method, such as DreamBooth, an adapter or an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol, Self

import torch
from torch import nn

from defectory.concept.config import ConceptConfig
from defectory.engine.backbones.backbone import Backbone


class ConceptMethod(Protocol):
    """A way to teach a concept to one backbone.

    A method may also have `learning_rates`, a mapping of each parameter's name to its peak learning rate. It then
    trains with AdamW and these rates instead of `training.optimizer` and `training.learning_rate`.
    """

    folder: ClassVar[str]
    """Name of its result folder in the stage folder."""
    preserves_prior: ClassVar[bool]
    """Whether it trains on class images as well."""
    needs_base: ClassVar[bool]
    """Whether `load` needs the base that the concept was learned from."""

    @property
    def instance_token(self) -> str:
        """Token that stands for [V] in every prompt."""
        ...

    @property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Trainable parameters by name."""
        ...

    @classmethod
    def start(cls, backbone: Backbone, config: ConceptConfig, *, instance_token: str, seed: int) -> Self:
        """Prepare a backbone in place, so that it predicts with the trainable parameters.

        Args:
            backbone: frozen; its class images have been drawn already.
            config: of the phase.
            instance_token: that stands for [V]; a method may use another.
            seed: of parameters that are new.
        """
        ...

    def prompt(self, class_names: Sequence[str], *, tone: str, defect_noun: str) -> str:
        """Make the training prompt of a tile.

        Args:
            class_names: class of each defect to name.
            tone: words for the tile's tones; empty for none.
            defect_noun: word after each class name; empty for none.
        """
        ...

    def save(self, folder: Path, *, base: Path) -> None:
        """Write the learned parameters to an empty folder.

        Args:
            folder: a new one.
            base: that the concept was learned from.
        """
        ...

    @classmethod
    def load(cls, folder: Path, *, base: Path | None, device: torch.device) -> Backbone:
        """Load a backbone that knows the concept.

        Args:
            folder: written by `save`.
            base: that the concept was learned from; may be None if `needs_base` is False.
            device: where the models go.

        Raises:
            WeightsError: the folder cannot be used.
        """
        ...
