"""The input transform of Mask R-CNNs that take images as they are."""

from __future__ import annotations

from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class AsTheyAre(GeneralizedRCNNTransform):
    """Normalise images and never resize them: torchvision's own `_skip_resize` holds while training alone."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image [3,H,W] and target unchanged."""
        return image, target
