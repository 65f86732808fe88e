"""A light Mask R-CNN that trains on a CPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from defectory.engine.features.encoder import CHANNELS, ConvEncoder, load_encoder
from defectory.segmentation.models.family import Build
from defectory.segmentation.models.light_heads import LEVELS, PYRAMID, light_mask_rcnn, norm
from defectory.segmentation.sizing import BoxStatistics
from defectory.segmentation.start import apply_start


class LightBackbone(nn.Module):
    """The narrow encoder's stages at strides 4, 8 and 16 under a feature pyramid of 64 channels."""

    def __init__(self, encoder: ConvEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.pyramid = FeaturePyramidNetwork(
            list(CHANNELS[1:]), PYRAMID, extra_blocks=LastLevelMaxPool(), norm_layer=norm
        )
        self.out_channels = PYRAMID

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return pyramid maps for images [B,3,H,W] in [-1,1]."""
        maps = self.encoder(pixels)[1:]
        return self.pyramid(OrderedDict(zip(LEVELS, maps, strict=True)))


class Light:
    """The family of the light Mask R-CNN, whose weights are shipped."""

    exports_onnx = True
    heeds_ignore = True
    mask_cells = 28

    def build(self, build: Build) -> tuple[MaskRCNN, Mapping[str, Any]]:
        """Build a segmenter from the shipped `segmenter`, from an `encoder` alone, or from `random` weights."""
        boxes, init = build.boxes, build.init
        if build.built is not None:
            stored = build.built["boxes"]
            boxes, init = None if stored is None else BoxStatistics.model_validate(stored), "random"
        own = load_encoder(build.encoder)[0].requires_grad_(True).train() if init == "encoder" else ConvEncoder()
        model = light_mask_rcnn(LightBackbone(own), build.num_classes, boxes)
        if init == "segmenter":
            apply_start(model, build.num_classes)
        return model, {"boxes": None if boxes is None else boxes.model_dump()}


FAMILY = Light()
