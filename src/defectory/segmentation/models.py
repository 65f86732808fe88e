"""Mask R-CNN: torchvision's ResNet-50-FPN, and a light one that trains on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defectory.engine.features.encoder import CHANNELS, ConvEncoder, load_encoder
from defectory.segmentation.config import Init
from defectory.segmentation.start import apply_start

LEVELS = ("0", "1", "2")
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
    """Two normalised convolutions and one normalised layer: without normalisation most units die within 250 steps."""

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
    # boxes under 48 px are read at stride 4, those from 96 px at stride 16
    return MultiScaleRoIAlign(list(LEVELS), size, 2, canonical_scale=96, canonical_level=4)


def _mask_predictor(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(PYRAMID, PYRAMID, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(PYRAMID, num_classes, 1)
    )


class AsTheyAre(GeneralizedRCNNTransform):
    """Normalises images and never resizes them: torchvision's own `_skip_resize` holds while training alone."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return image [3,H,W] and target back."""
        return image, target


def build_segmenter(
    kind: str, num_classes: int, *, seed: int, init: Init = "segmenter", encoder_folder: Path | None = None
) -> MaskRCNN:
    """Build an untrained Mask R-CNN that takes images as they are (no resizing).

    Args:
        kind: `light` or `resnet50`.
        num_classes: defect classes, background not counted.
        seed: of the random weights.
        init: what a light segmenter starts from: the shipped `segmenter` for procedural defects, the shipped `encoder`
            alone, or `random` weights.
        encoder_folder: the encoder that `init = "encoder"` takes in place of the shipped one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "resnet50":
            large = maskrcnn_resnet50_fpn(
                weights=None,
                weights_backbone=None,
                num_classes=num_classes + 1,
                box_detections_per_img=50,
                rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5),
            )
            large.transform = AsTheyAre(1, 1, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
            return large
        encoder = load_encoder(encoder_folder)[0].requires_grad_(True).train() if init == "encoder" else ConvEncoder()
        model = MaskRCNN(
            LightBackbone(encoder),
            rpn_anchor_generator=AnchorGenerator(((8, 12), (20, 32), (48, 72), (100,) * 2), ((0.33, 1.0, 3.0),) * 4),
            rpn_pre_nms_top_n_train=200,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_train=100,
            rpn_post_nms_top_n_test=100,
            rpn_batch_size_per_image=64,
            box_roi_pool=_pool(BOX_POOL),
            box_head=_BoxHead(),
            box_predictor=_BoxPredictor(num_classes + 1),
            box_batch_size_per_image=32,
            box_detections_per_img=20,
            mask_roi_pool=_pool(14),
            mask_head=_mask_head(),
            mask_predictor=_mask_predictor(num_classes + 1),
        )
    model.transform = AsTheyAre(1, 1, [0.5] * 3, [0.5] * 3)
    if init == "segmenter":
        apply_start(model, num_classes)
    return model
