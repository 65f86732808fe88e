"""Builds the light Mask R-CNN's heads on a feature pyramid of four levels at strides 4 to 32."""

from __future__ import annotations

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import MultiScaleRoIAlign

from defectory.segmentation.models.anchors import anchors_for
from defectory.segmentation.models.ignore import heed_ignore
from defectory.segmentation.models.transform import AsTheyAre
from defectory.segmentation.sizing import OWN_BOXES, BoxStatistics

LEVELS = ("0", "1", "2")
"""Pyramid maps that boxes are pooled from, at strides 4, 8 and 16."""
ANCHORS_PX = ((8.0, 12.0), (20.0, 32.0), (48.0, 72.0), (100.0, 100.0))
PYRAMID = 64
"""Channels of the pyramid."""
HIDDEN = 128
BOX_POOL = 5


def norm(channels: int) -> nn.Module:
    """Return the normalisation of pyramid and heads, which does not depend on the batch."""
    return nn.GroupNorm(8, channels)


def light_mask_rcnn(backbone: nn.Module, num_classes: int, boxes: BoxStatistics | None) -> MaskRCNN:
    """Put the light heads on a backbone.

    Args:
        backbone: returns pyramid maps of `PYRAMID` channels for images [B,3,H,W] in [-1,1].
        num_classes: defect classes, background not counted.
        boxes: sizes of the boxes to find; None keeps the heads' own.
    """
    model = MaskRCNN(
        backbone,
        rpn_anchor_generator=anchors_for(boxes, ANCHORS_PX, own_boxes=OWN_BOXES),
        rpn_pre_nms_top_n_train=400,
        rpn_pre_nms_top_n_test=400,
        rpn_post_nms_top_n_train=150,
        rpn_post_nms_top_n_test=150,
        rpn_batch_size_per_image=64,
        box_roi_pool=_pool(BOX_POOL),
        box_head=_BoxHead(),
        box_predictor=_BoxPredictor(num_classes + 1),
        box_batch_size_per_image=32,
        box_detections_per_img=50,
        mask_roi_pool=_pool(14),
        mask_head=_mask_head(),
        mask_predictor=_mask_predictor(num_classes + 1),
    )
    model.transform = AsTheyAre(1, 1, [0.5] * 3, [0.5] * 3)
    return heed_ignore(model)


class _BoxHead(nn.Module):
    """Two convolutions and one linear layer, all normalised; otherwise most units die within 250 steps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv(),
            *_conv(),
            nn.Flatten(),
            nn.Linear(PYRAMID * BOX_POOL**2, HIDDEN),
            nn.LayerNorm(HIDDEN),
            nn.ReLU(inplace=True),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return self.body(pooled)


class _BoxPredictor(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(HIDDEN, num_classes)
        self.bbox_pred = nn.Linear(HIDDEN, num_classes * 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def _conv() -> list[nn.Module]:
    return [nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1, bias=False), norm(PYRAMID), nn.ReLU(inplace=True)]


def _mask_head() -> nn.Module:
    return nn.Sequential(*_conv(), *_conv())


def _pool(size: int) -> MultiScaleRoIAlign:
    # boxes below 48 px use stride 4, boxes from 96 px on use stride 16
    return MultiScaleRoIAlign(list(LEVELS), size, 2, canonical_scale=96, canonical_level=4)


def _mask_predictor(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(PYRAMID, PYRAMID, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(PYRAMID, num_classes, 1)
    )
