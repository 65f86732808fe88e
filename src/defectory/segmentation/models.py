"""Mask R-CNN: torchvision's ResNet-50-FPN, and a light one that trains on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defectory.engine.features.encoder import CHANNELS, ConvEncoder, load_encoder

LEVELS = ("0", "1", "2")
PYRAMID = 64


class LightBackbone(nn.Module):
    """The narrow encoder's stages at strides 4, 8 and 16 under a feature pyramid of 64 channels."""

    def __init__(self, encoder: ConvEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = FeaturePyramidNetwork(list(CHANNELS[1:]), PYRAMID, extra_blocks=LastLevelMaxPool())
        self.out_channels = PYRAMID

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Give pyramid maps for images [B,3,H,W] in [-1,1]."""
        maps = self.encoder(pixels)[1:]
        return self.pyramid(OrderedDict(zip(LEVELS, maps, strict=True)))


class _BoxHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(PYRAMID * 25, 128), nn.ReLU(inplace=True), nn.Linear(128, 128), nn.ReLU(inplace=True))

    def forward(self, pooled: Tensor) -> Tensor:
        return self.body(pooled)


class _BoxPredictor(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(128, num_classes)
        self.bbox_pred = nn.Linear(128, num_classes * 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features), self.bbox_pred(features)


def _mask_head() -> nn.Module:
    return nn.Sequential(nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(PYRAMID, PYRAMID, 3, padding=1), nn.ReLU(inplace=True))


def _mask_predictor(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.ConvTranspose2d(PYRAMID, PYRAMID, 2, 2), nn.ReLU(inplace=True), nn.Conv2d(PYRAMID, num_classes, 1))


def build_segmenter(kind: str, num_classes: int, *, seed: int, encoder_folder: Path | None = None, init_encoder: bool = True) -> MaskRCNN:
    """Build an untrained Mask R-CNN that takes images as they are (no resizing).

    Args:
        kind: `light` or `resnet50`.
        num_classes: defect classes, background not counted.
        seed: of the random weights.
        encoder_folder: encoder that the light backbone starts from; None is the shipped one.
        init_encoder: start the light backbone from it; False starts from random weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "resnet50":
            return maskrcnn_resnet50_fpn(
                weights=None, weights_backbone=None, num_classes=num_classes + 1, min_size=1, max_size=100_000, box_detections_per_img=50,
                rpn_anchor_generator=AnchorGenerator(((8,), (16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 5), _skip_resize=True,
            )  # fmt: skip
        encoder = load_encoder(encoder_folder)[0].requires_grad_(True).train() if init_encoder else ConvEncoder()
        model = MaskRCNN(
            LightBackbone(encoder),
            min_size=1,
            max_size=100_000,
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
            _skip_resize=True,
            rpn_anchor_generator=AnchorGenerator(((8, 12), (20, 32), (48, 72), (100,) * 2), ((0.33, 1.0, 3.0),) * 4),
            rpn_pre_nms_top_n_train=200,
            rpn_pre_nms_top_n_test=200,
            rpn_post_nms_top_n_train=100,
            rpn_post_nms_top_n_test=100,
            rpn_batch_size_per_image=64,
            box_roi_pool=MultiScaleRoIAlign(list(LEVELS), 5, 2),
            box_head=_BoxHead(),
            box_predictor=_BoxPredictor(num_classes + 1),
            box_batch_size_per_image=32,
            box_detections_per_img=20,
            mask_roi_pool=MultiScaleRoIAlign(list(LEVELS), 14, 2),
            mask_head=_mask_head(),
            mask_predictor=_mask_predictor(num_classes + 1),
        )
    heads: Any = model.roi_heads
    assert isinstance(heads, RoIHeads)
    return model
