"""Defines the input transform of Mask R-CNNs that do not resize images."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class AsTheyAre(GeneralizedRCNNTransform):
    """Normalises images and never resizes them; torchvision's `_skip_resize` only works in training."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image [3,H,W] and target unchanged."""
        return image, target
