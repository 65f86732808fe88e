"""Registers the families of backbones, and finds the family of a base folder. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.others import index_of, refusal
from defectory.registry import Registry

if TYPE_CHECKING:
    import torch

    from defectory.engine.backbones.backbone import Backbone


class BackboneFamily(Protocol):
    """A family of diffusion models. Only `load` may import torch."""

    def recognises(self, folder: Path, index: Mapping[str, Any]) -> bool:
        """Check whether a base folder is of this family.

        Args:
            folder: of the base.
            index: content of its `model_index.json`.
        """
        ...

    def verify(self, folder: Path, *, weights: bool) -> BaseFacts:
        """Check a base folder, and return its facts.

        Args:
            folder: of the base.
            weights: False checks only configurations and tokenizer, in milliseconds.

        Raises:
            WeightsError: something is missing, damaged or not supported.
        """
        ...

    def load(self, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Backbone:
        """Check a base folder, and load it from disk.

        Raises:
            WeightsError: as for `verify`, or the weights do not fit their configuration.
        """
        ...


BACKBONES: Registry[BackboneFamily] = Registry(
    "backbones",
    setting="base",
    builtin={
        # asked from the last to the first: the family of 1.x and 2.x takes what no other one does
        "sd1": "defectory.engine.backbones.sd1.family:FAMILY",
        "sdxl": "defectory.engine.backbones.sdxl.family:FAMILY",
        "sd3": "defectory.engine.backbones.sd3.family:FAMILY",
    },
)


def family_of(folder: Path) -> BackboneFamily:
    """Return the family of a base folder; families of installed packages take precedence.

    Raises:
        WeightsError: not a base, or a base of an unsupported family, which the message names.
    """
    index = index_of(folder)
    for name in reversed(BACKBONES.names()):
        family = BACKBONES.get(name)
        if family.recognises(folder, index):
            return family
    raise refusal(folder, index)
