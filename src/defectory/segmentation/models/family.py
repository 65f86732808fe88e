"""Defines what a segmenter family is, and builds segmenters by name.

A segmenter follows torchvision's convention for detection modules. Images are float [3,H,W] in [0,1], of any size.

- In training mode, `model(images, targets)` returns a dict of scalar losses, which are summed. A target holds `boxes`
  float [N,4] (xyxy, pixels), `labels` int64 [N] (category ids, from 1) and `masks` uint8 [N,H,W]; N may be 0.
- In evaluation mode, `model(images)` returns a dict per image: `scores` float [N], `labels` int64 [N] and `masks` float
  [N,1,H,W] in [0,1].

Its weights are its state dict. Its random numbers in training come from torch's global generator, which is seeded for
every step.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from defectory.segmentation.config import Init
from defectory.segmentation.models.registry import SEGMENTERS


class SegmenterFamily(Protocol):
    """A family builds segmenters of one kind."""

    def build(self, num_classes: int, *, init: Init, encoder: Path | None) -> nn.Module:
        """Build an untrained segmenter; random weights come from torch's global generator, which is seeded.

        Args:
            num_classes: defect classes, background not counted.
            init: initial weights; a family without shipped weights ignores it and starts from random ones.
            encoder: folder of the encoder that `init = "encoder"` starts from; None means the shipped one.
        """
        ...


def build_segmenter(
    kind: str, num_classes: int, *, seed: int, init: Init = "segmenter", encoder_folder: Path | None = None
) -> nn.Module:
    """Build an untrained segmenter without changing the state of torch's global generator.

    Args:
        kind: name of its family.
        num_classes: defect classes, background not counted.
        seed: of the random weights.
        init: initial weights, if the family has shipped ones: the shipped `segmenter` for procedural defects, the
            shipped `encoder` alone, or `random` weights.
        encoder_folder: the encoder that `init = "encoder"` uses in place of the shipped one.

    Raises:
        ConfigError: the family is unknown.
    """
    family: SegmenterFamily = SEGMENTERS.get(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.build(num_classes, init=init, encoder=encoder_folder)
