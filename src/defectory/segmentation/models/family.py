"""Defines what a segmenter family is, and builds segmenters by name.

A segmenter follows torchvision's convention for detection modules. Images are float [3,H,W] in [0,1], of any size.

- In training mode, `model(images, targets)` returns a dict of scalar losses, which are summed. A target holds `boxes`
  float [N,4] (xyxy, pixels), `labels` int64 [N] (category ids, from 1) and `masks` uint8 [N,H,W]; N may be 0. If the
  family heeds ignore, a target may also hold `ignore` uint8 [H,W] and `is_doubtful` bool [N], both or neither: pixels
  and instances without a loss.
- In evaluation mode, `model(images)` returns a dict per image: `scores` float [N], `labels` int64 [N] and `masks` float
  [N,1,H,W] in [0,1].

Its weights are its state dict. Its random numbers in training come from torch's global generator, which is seeded for
every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from defectory.errors import ConfigError
from defectory.segmentation.config import Init
from defectory.segmentation.models.registry import SEGMENTERS
from defectory.segmentation.sizing import BoxStatistics


@dataclass(frozen=True, kw_only=True)
class Build:
    """What a segmenter is built from.

    Attributes:
        num_classes: defect classes, background not counted.
        boxes: sizes of the boxes to find, for families with anchors; None keeps a family's own.
        init: initial weights, if the family has shipped ones.
        encoder: folder of the encoder that `init = "encoder"` starts from; None means the shipped one.
        weights: file or folder of initial weights on the user's disk; None means none was set.
        mirrored: average predictions with those of mirrored images, for families that find pixels.
        built: what `describe` returned for the segmenter that is built again, to load trained weights into; None for a
            new one.
    """

    num_classes: int
    boxes: BoxStatistics | None = None
    init: Init = "segmenter"
    encoder: Path | None = None
    weights: Path | None = None
    mirrored: bool = False
    built: Mapping[str, Any] | None = None


class SegmenterFamily(Protocol):
    """A family builds segmenters of one kind.

    A family may have attributes: `takes_weights`, whether `segmentation.weights` may be set; `exports_onnx`, whether
    its segmenters can be written as ONNX; `heeds_ignore`, whether it leaves out what targets call doubtful;
    `mask_cells`, in how many cells along each side of a box it draws masks; `finds_pixels`, whether its segmenters have
    a method `chances`, which returns the chance of each class at every pixel of an image, float [C,H,W];
    `kept_in_start`, as the function of that name returns it.
    """

    def build(self, build: Build) -> tuple[nn.Module, Mapping[str, Any]]:
        """Build a segmenter; random weights come from torch's global generator, which is seeded.

        Returns:
            The segmenter, and what `Build.built` needs to build one of the same shape again, JSON-compatible.

        Raises:
            WeightsError: the weights on disk cannot be used.
        """
        ...


def build_segmenter(kind: str, build: Build, *, seed: int) -> tuple[nn.Module, Mapping[str, Any]]:
    """Build a segmenter of a family without changing the state of torch's global generator.

    Args:
        kind: name of its family.
        build: what it is built from.
        seed: of the random weights.

    Raises:
        ConfigError: the family is unknown, or takes no weights.
        WeightsError: the weights on disk cannot be used.
    """
    family: SegmenterFamily = SEGMENTERS.get(kind)
    if build.weights is not None and not getattr(family, "takes_weights", False):
        raise ConfigError("segmentation.weights", f"the family {kind} has weights of its own", "leave the setting out")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.build(build)


def require_heeding(kind: str) -> None:
    """Require that a family leaves doubtful pixels and instances out of its losses.

    Raises:
        ConfigError: the family is unknown, or learns from all of them.
    """
    if not getattr(SEGMENTERS.get(kind), "heeds_ignore", False):
        found = f"the family {kind} cannot leave doubtful pixels out of its loss"
        raise ConfigError("curation.ignore", found, "set it to [], or set another segmentation.model")


def kept_in_start(kind: str) -> tuple[str, ...]:
    """Return prefixes of the tensors that a family takes from elsewhere: its start neither trains nor holds them.

    Raises:
        ConfigError: the family is unknown.
    """
    return tuple(getattr(SEGMENTERS.get(kind), "kept_in_start", ()))
