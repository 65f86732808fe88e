"""Writes a segmenter as ONNX, and compares what it finds with what the segmenter itself finds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defectory.errors import ConfigError, StageError
from defectory.segmentation.models.registry import SEGMENTERS

OPSET = 17
INPUT, OUTPUTS = "image", ("boxes", "labels", "scores", "masks")
PIXEL_OUTPUTS = ("chances",)
"""Of families that find pixels first: ONNX has no operation that forms instances from them."""
PACKAGES = ("onnx", "onnxruntime")
MAX_DIFFERENCE = 1e-3
"""Of boxes, pixels, and of scores."""
RELATIVE_DIFFERENCE = 1e-5
"""Of boxes in addition, by their coordinates: fp32 holds about seven digits."""
MIN_IOU = 0.999
WEAKEST = 0.05
"""Detections below this score are dropped by the network; those about as weak may be dropped by one side alone."""
Found = Mapping[str, NDArray[Any]]
Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How closely an ONNX file agrees with its segmenter.

    Attributes:
        num_images: compared.
        num_detections: on these images.
        box_px: largest difference of a box's side; 0 where the file gives chances.
        score: largest difference of a score, or of a pixel's chance.
        mask_iou: of all masks together, thresholded at 0.5; pixels within `MAX_DIFFERENCE` of it do not count.
    """

    num_images: int
    num_detections: int
    box_px: float
    score: float
    mask_iou: float


def require_exportable(kind: str) -> None:
    """Require that a family can be written as ONNX, and that the packages for it are installed.

    Raises:
        ConfigError: one is not.
    """
    if not getattr(SEGMENTERS.get(kind), "exports_onnx", False):
        raise ConfigError(
            f"segmenter of the family {kind}", "cannot be written as ONNX", "use it with `defectory predict`"
        )
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            "option --onnx",
            f"needs the package{'s' if len(missing) > 1 else ''} {' and '.join(missing)}, not installed",
            "run `pip install 'defectory[onnx]'`",
        )


def outputs_of(kind: str) -> tuple[str, ...]:
    """Return the names of what an ONNX file of a family gives: `OUTPUTS`, or `PIXEL_OUTPUTS`.

    Raises:
        ConfigError: the family is unknown.
    """
    return PIXEL_OUTPUTS if getattr(SEGMENTERS.get(kind), "finds_pixels", False) else OUTPUTS


def as_input(image: Image) -> Tensor:
    """Convert an image RGB uint8 [H,W,3] to what a segmenter takes, float32 [3,H,W] in [0,1]."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255


@torch.no_grad()
def write_onnx(model: nn.Module, path: Path, *, example: Image) -> None:
    """Write a segmenter for images of any height and width.

    The file takes `image`, float32 [3,H,W] in [0,1], and returns `boxes` float32 [N,4], `labels` int64 [N], `scores`
    float32 [N] and `masks` float32 [N,1,H,W] in [0,1], strongest first. For a family that finds pixels it returns
    `chances` float32 [C,H,W], of each class at every pixel.

    Args:
        model: in torchvision's convention, on the CPU; it stays unchanged.
        path: to write.
        example: image with at least one detection, RGB uint8 [H,W,3].
    """
    sides = {1: "height", 2: "width"}
    of_boxes = {0: "detections"}
    axes = dict.fromkeys(OUTPUTS[:3], of_boxes) | {"masks": of_boxes | {2: "height", 3: "width"}}
    names, form = (PIXEL_OUTPUTS, _Chances) if hasattr(model, "chances") else (OUTPUTS, _OneImage)
    with warnings.catch_warnings():
        # the exporter warns of every length that it reads from a tensor, which the comparison checks
        warnings.simplefilter("ignore")
        torch.onnx.export(
            form(_with_plain_norms(model)).eval(),
            (as_input(example),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(names),
            dynamic_axes={INPUT: sides, **{name: axes.get(name, sides) for name in names}},
        )


@torch.no_grad()
def compare(model: nn.Module, path: Path, images: Iterable[Image]) -> Agreement:
    """Compare an ONNX file with its segmenter.

    Args:
        model: the segmenter, on the CPU.
        path: the file.
        images: RGB uint8 [H,W,3].

    Raises:
        StageError: the file finds something else.
    """
    import onnxruntime  # pyright: ignore[reportMissingImports]

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    model.eval()
    if hasattr(model, "chances"):
        return _compare_chances(model, session, path, images)
    num_images = num_detections = shared = united = 0
    box_px = score = 0.0
    for number, image in enumerate(images, start=1):
        pixels = as_input(image)
        own = {name: value.numpy() for name, value in model([pixels])[0].items()}
        outputs: Any = session.run(None, {INPUT: pixels.numpy()})
        other: Found = dict(zip(OUTPUTS, outputs, strict=True))
        pairs = _paired(own, other)
        if pairs is None:
            raise StageError(
                f"{path.name}: the ONNX file finds {len(other['scores'])} defects on image {number}, the segmenter "
                f"{len(own['scores'])}; nothing was written"
            )
        num_images, num_detections = number, num_detections + len(pairs)
        for i, j in pairs:
            box, found = own["boxes"][i], other["boxes"][j]
            apart = np.abs(box - found)
            box_px, score = (
                max(box_px, float(apart.max())),
                max(score, float(abs(own["scores"][i] - other["scores"][j]))),
            )
            if (apart > MAX_DIFFERENCE + RELATIVE_DIFFERENCE * np.abs(box)).any() or score > MAX_DIFFERENCE:
                raise StageError(
                    f"{path.name}: boxes differ by {box_px:.4f} px or scores by {score:.4f} on image {number}; nothing "
                    "was written"
                )
            both, either = _overlap(own["masks"][i], other["masks"][j])
            shared, united = shared + both, united + either
    iou = shared / united if united else 1.0
    if iou < MIN_IOU:
        raise StageError(f"{path.name}: masks agree with an IoU of {iou:.4f}; nothing was written")
    return Agreement(
        num_images=num_images, num_detections=num_detections, box_px=box_px, score=score, mask_iou=round(iou, 6)
    )


def _compare_chances(model: Any, session: Any, path: Path, images: Iterable[Image]) -> Agreement:
    """Compare the chances of pixels."""
    num_images = num_detections = shared = united = 0
    largest = 0.0
    for number, image in enumerate(images, start=1):
        pixels = as_input(image)
        own, (other,) = model.chances(pixels), session.run(None, {INPUT: pixels.numpy()})
        num_images, num_detections = number, num_detections + len(model([pixels])[0]["scores"])
        largest = max(largest, float(np.abs(own.numpy() - other).max()))
        if largest > MAX_DIFFERENCE:
            raise StageError(f"{path.name}: chances differ by {largest:.4f} on image {number}; nothing was written")
        both, either = _overlap(own.numpy(), other)
        shared, united = shared + both, united + either
    return Agreement(
        num_images=num_images,
        num_detections=num_detections,
        box_px=0.0,
        score=largest,
        mask_iou=round(shared / united, 6) if united else 1.0,
    )


def _overlap(own: NDArray[Any], other: NDArray[Any]) -> tuple[int, int]:
    """Return how many pixels are in both and in either of two soft masks."""
    # what lies on the threshold falls to either side by rounding
    clear = np.abs(own - 0.5) > MAX_DIFFERENCE
    first, second = (own >= 0.5) & clear, (other >= 0.5) & clear
    return int((first & second).sum()), int((first | second).sum())


def _paired(own: Found, other: Found) -> list[tuple[int, int]] | None:
    """Return the pairs of equal detections; None if one of them has no partner and is not weak."""
    left = list(range(len(other["scores"])))
    pairs: list[tuple[int, int]] = []
    for i in range(len(own["scores"])):
        near = [j for j in left if other["labels"][j] == own["labels"][i]]
        best = min(near, key=lambda j: float(np.abs(other["boxes"][j] - own["boxes"][i]).max()), default=None)
        if best is not None and np.abs(other["boxes"][best] - own["boxes"][i]).max() < 1:
            left.remove(best)
            pairs.append((i, best))
        elif own["scores"][i] > WEAKEST + MAX_DIFFERENCE:
            return None
    return None if any(other["scores"][j] > WEAKEST + MAX_DIFFERENCE for j in left) else pairs


class _OneImage(nn.Module):
    """Takes one image, and returns a tuple, as ONNX needs."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        found = self.model([image])[0]
        return tuple(found[name] for name in OUTPUTS)


class _Chances(nn.Module):
    """Takes one image, and returns the chance of each class at every pixel."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, image: Tensor) -> Tensor:
        return self.model.chances(image)


class _PlainGroupNorm(nn.Module):
    """Computes what `GroupNorm` does from simple operations; torch's ONNX form of it fails on no detections."""

    def __init__(self, own: nn.GroupNorm) -> None:
        super().__init__()
        self.groups, self.eps, self.weight, self.bias = own.num_groups, own.eps, own.weight, own.bias

    def forward(self, x: Tensor) -> Tensor:
        number, channels, height, width = x.shape
        grouped = x.reshape(number, self.groups, channels // self.groups, height, width)
        centred = grouped - grouped.mean(dim=(2, 3, 4), keepdim=True)
        scaled = centred / torch.sqrt((centred * centred).mean(dim=(2, 3, 4), keepdim=True) + self.eps)
        return scaled.reshape(number, channels, height, width) * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


def _with_plain_norms(model: nn.Module) -> nn.Module:
    """Return a copy of a model with plain group norms."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, _PlainGroupNorm(child))
    return model
