"""A light Mask R-CNN that trains on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defectory.engine.features.encoder import CHANNELS, ConvEncoder, load_encoder
from defectory.segmentation.models.anchors import anchors_for
from defectory.segmentation.models.family import Build
from defectory.segmentation.models.transform import AsTheyAre
from defectory.segmentation.sizing import OWN_BOXES, BoxStatistics
from defectory.segmentation.start import apply_start

LEVELS = ("0", "1", "2")
ANCHORS_PX = ((8.0, 12.0), (20.0, 32.0), (48.0, 72.0), (100.0, 100.0))
PYRAMID = 64
HIDDEN = 128
BOX_POOL = 5


class LightBackbone(nn.Module):
    """The narrow encoder's stages at strides 4, 8 and 16 under a feature pyramid of 64 channels."""

    def __init__(self, encoder: ConvEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = FeaturePyramidNetwork(
            list(CHANNELS[1:]), PYRAMID, extra_blocks=LastLevelMaxPool(), norm_layer=_norm
        )
        self.out_channels = PYRAMID

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return pyramid maps for images [B,3,H,W] in [-1,1]."""
        maps = self.encoder(pixels)[1:]
        return self.pyramid(OrderedDict(zip(LEVELS, maps, strict=True)))


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
    return [nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1, bias=False), nn.GroupNorm(8, PYRAMID), nn.ReLU(inplace=True)]


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(8, channels)


def _mask_head() -> nn.Module:
    return nn.Sequential(*_conv(), *_conv())


def _pool(size: int) -> MultiScaleRoIAlign:
    # boxes below 48 px use stride 4, boxes from 96 px on use stride 16
    return MultiScaleRoIAlign(list(LEVELS), size, 2, canonical_scale=96, canonical_level=4)


def _mask_predictor(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(PYRAMID, PYRAMID, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(PYRAMID, num_classes, 1)
    )


class Light:
    """The family of the light Mask R-CNN, the only one with shipped weights."""

    exports_onnx = True

    def build(self, build: Build) -> tuple[MaskRCNN, Mapping[str, Any]]:
        """Build a segmenter from the shipped `segmenter`, from an `encoder` alone, or from `random` weights."""
        boxes, init = build.boxes, build.init
        if build.built is not None:
            stored = build.built["boxes"]
            boxes, init = None if stored is None else BoxStatistics.model_validate(stored), "random"
        own = load_encoder(build.encoder)[0].requires_grad_(True).train() if init == "encoder" else ConvEncoder()
        model = MaskRCNN(
            LightBackbone(own),
            rpn_anchor_generator=anchors_for(boxes, ANCHORS_PX, own_boxes=OWN_BOXES),
            rpn_pre_nms_top_n_train=400,
            rpn_pre_nms_top_n_test=400,
            rpn_post_nms_top_n_train=150,
            rpn_post_nms_top_n_test=150,
            rpn_batch_size_per_image=64,
            box_roi_pool=_pool(BOX_POOL),
            box_head=_BoxHead(),
            box_predictor=_BoxPredictor(build.num_classes + 1),
            box_batch_size_per_image=32,
            box_detections_per_img=50,
            mask_roi_pool=_pool(14),
            mask_head=_mask_head(),
            mask_predictor=_mask_predictor(build.num_classes + 1),
        )
        model.transform = AsTheyAre(1, 1, [0.5] * 3, [0.5] * 3)
        if init == "segmenter":
            apply_start(model, build.num_classes)
        return model, {"boxes": None if boxes is None else boxes.model_dump()}


FAMILY = Light()
