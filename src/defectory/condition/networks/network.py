"""Defines the protocol of a condition network, such as a ControlNet or an adapter."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Protocol, Self

from defectory.engine.backbones.backbone import Backbone, Steering


class ConditionNetwork(Steering, Protocol):
    """A network in memory that steers a frozen backbone by drivers; all parameters of its `module` train."""

    folder: ClassVar[str]
    """Name of its folder in the stage folder."""

    # Four members are optional. `steer` (`engine.backbones.steering.Combinable`) lets the network act together with
    # others (`synthesis.also_controls`). `settings: ClassVar[tuple[str, ...]]` names further settings of `condition`
    # that `start` takes as keywords. `plain_module() -> nn.Module` returns the network as plain diffusers opens it, if
    # that is not `module`. `save_beside(folder: Path) -> None` is for a network that no pipeline of diffusers takes: it
    # writes into a folder beside a pipeline of the base all that drawing in plain diffusers needs.

    @classmethod
    def start(cls, backbone: Backbone, *, init: str, seed: int) -> Self:
        """Make the initial network, in float32, on the backbone's device.

        Args:
            backbone: adapted and frozen.
            init: `copy` of the base, `embedded` for the network shipped with it, or `auto`.
            seed: of new parameters.

        Raises:
            WeightsError: this base does not support `init`.
        """
        ...

    @classmethod
    def load(cls, folder: Path, backbone: Backbone) -> Self:
        """Load a network written by `save` to the backbone's device.

        Raises:
            WeightsError: the folder cannot be used.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the network into an empty folder."""
        ...
