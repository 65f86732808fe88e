"""Builds torchvision's Mask R-CNN with a ResNet-50 and a feature pyramid, from random weights."""

from __future__ import annotations

from pathlib import Path

from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from defectory.segmentation.config import Init
from defectory.segmentation.models.transform import AsTheyAre


class ResNet50:
    """The family of the large Mask R-CNN; it has no shipped weights."""

    def build(self, num_classes: int, *, init: Init, encoder: Path | None) -> MaskRCNN:  # noqa: ARG002
        """Build a segmenter with random weights; `init` is ignored."""
        model = maskrcnn_resnet50_fpn(
            weights=None,
            weights_backbone=None,
            num_classes=num_classes + 1,
            box_detections_per_img=50,
            rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
        )
        model.transform = AsTheyAre(1, 1, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        return model


FAMILY = ResNet50()
