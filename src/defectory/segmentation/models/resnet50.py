"""Builds torchvision's Mask R-CNNs with a ResNet-50 and a feature pyramid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2

from defectory.files import digest_file
from defectory.segmentation.models.anchors import anchors_for
from defectory.segmentation.models.family import Build
from defectory.segmentation.models.ignore import heed_ignore
from defectory.segmentation.models.pretrained import apply_weights, found_weights, freeze_norms
from defectory.segmentation.models.transform import AsTheyAre
from defectory.segmentation.sizing import BoxStatistics

ANCHORS_PX = ((32.0,), (64.0,), (128.0,), (256.0,), (512.0,))
COCO_BOXES = BoxStatistics(small_px=32.0, large_px=512.0, elongation=2.0)
"""The range of torchvision's anchors."""
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class ResNet50:
    """A family of the large Mask R-CNNs. It has no shipped weights, and takes COCO weights from the user's disk.

    Args:
        name: of the family.
        make: torchvision's function.
        file_name: of its COCO weights in torch's download folder.
        eps: of the frozen batch norms; None takes torch's own. torchvision sets it to 0 for its first COCO weights.
    """

    takes_weights = True
    exports_onnx = True
    heeds_ignore = True
    mask_cells = 28

    def __init__(self, name: str, make: Callable[..., MaskRCNN], *, file_name: str, eps: float | None) -> None:
        self._name, self._make, self.file_name, self._eps = name, make, file_name, eps

    def build(self, build: Build) -> tuple[MaskRCNN, Mapping[str, Any]]:
        """Build a segmenter from weights on disk, or from random ones if there are none."""
        boxes, weights = build.boxes, build.weights or found_weights(self.file_name)
        if build.built is not None:
            stored, weights = build.built["boxes"], None
            boxes = None if stored is None else BoxStatistics.model_validate(stored)
        is_pretrained = weights is not None if build.built is None else bool(build.built["weights"])
        model = self._make(
            weights=None, weights_backbone=None, num_classes=build.num_classes + 1, box_detections_per_img=100
        )
        # as many anchors as torchvision's own, so that the layers keep their shape
        model.rpn.anchor_generator = anchors_for(boxes, ANCHORS_PX, own_boxes=COCO_BOXES)
        model.transform = AsTheyAre(1, 1, MEAN, STD)
        if is_pretrained:
            freeze_norms(model, eps=self._eps)
        about: dict[str, Any] = {"boxes": None if boxes is None else boxes.model_dump(), "weights": None}
        if weights is not None:
            new = apply_weights(model, weights, family=self._name)
            about["weights"] = {"file": weights.name, "sha256": digest_file(weights), "new_layers": list(new)}
        elif build.built is not None:
            about["weights"] = build.built["weights"]
        return heed_ignore(model), about


FAMILY = ResNet50("resnet50", maskrcnn_resnet50_fpn, file_name="maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth", eps=0.0)
FAMILY_V2 = ResNet50(
    "resnet50_v2", maskrcnn_resnet50_fpn_v2, file_name="maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth", eps=None
)
