"""A U-Net on an EfficientNet-Lite0 that has seen ImageNet: finds pixels first, then the instances that they form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv2d, cross_entropy, interpolate, pad
from torchvision.ops import masks_to_boxes

from defectory.files import digest_file
from defectory.segmentation.models.efficientnet import (
    FILE_NAME,
    SHA256,
    imagenet_weights,
    load_imagenet,
    make_encoder,
    maps_of,
)
from defectory.segmentation.models.family import Build
from defectory.segmentation.models.light_heads import norm
from defectory.segmentation.start import apply_start, shipped_start

WIDTHS = (32, 48, 64, 128)
"""Channels of the decoder at strides 2, 4, 8 and 16."""
FAMILY_NAME = "unet"
ENCODER = "encoder."
"""Prefix of the encoder's tensors."""
CLASSES = "class_head."
"""Prefix of the layers that tell classes apart, which start anew."""
DIVISOR = 32
"""Sides are padded to a multiple of this."""
MIRRORS = ((2,), (1,), (1, 2))
"""Axes at which an image [3,H,W] is mirrored."""
LEVELS = (0.4, 0.2, 0.1)
"""Chances at which regions are cut out; a region of a lower level is one that holds none of a higher."""
JOINED_AT = 0.5
"""Pieces are one region where a path between them has chances of at least this share of their level."""
MIN_AREA_PX = 4
NO_LABEL = -100
"""Of pixels without a loss."""
MAX_DETECTIONS = 100
MIN_SCORE = 0.05


class Decoder(nn.Module):
    """Joins the maps of an encoder from the coarsest to that at stride 2.

    Args:
        channels: of the encoder's maps at strides 2, 4, 8, 16 and 32.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        above = (*WIDTHS[1:], channels[-1])
        self.blocks = nn.ModuleList(
            nn.Sequential(_block(coarse + skip, width), _block(width, width))
            for coarse, skip, width in zip(above, channels[:-1], WIDTHS, strict=True)
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return maps of `WIDTHS` channels, [B,WIDTHS[0],H/2,W/2] first."""
        *skips, above = maps
        found: list[Tensor] = []
        for skip, block in zip(reversed(skips), reversed(self.blocks), strict=True):
            (conv, *others), second = cast(Any, block)
            # a map is enlarged quickly with channels last alone, and normalised quickly in the plain layout alone
            enlarged = _enlarged(above.contiguous(memory_format=torch.channels_last), skip)
            above = _convolved([enlarged, skip], conv.weight).contiguous()
            for layer in (*others, second):
                above = layer(above)
            found.insert(0, above)
        return found


def _convolved(maps: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Convolve maps as if they were joined, but without gradients of those that need none, as frozen layers' maps."""
    weights = weight.split([one.shape[1] for one in maps], dim=1)
    first, *others = (conv2d(one, of, padding="same") for one, of in zip(maps, weights, strict=True))
    return sum(others, first)


class ClassHead(nn.Module):
    """Tells the classes of a pixel apart, from all maps of a decoder: a defect's class shows in what is around it.

    Args:
        num_classes: defect classes, background not counted.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for width in WIDTHS)
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return logits [B,C,H/2,W/2] of what class a pixel has if it shows a defect."""
        *finer, coarsest = zip(self.layers, maps, strict=True)
        found = coarsest[0](coarsest[1])
        for layer, one in reversed(finer):
            found = _enlarged(found, one) + layer(one)
        return found


def _enlarged(coarse: Tensor, fine: Tensor) -> Tensor:
    return interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False)


def _block(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), norm(outputs), nn.ReLU(inplace=True))


class Segmenter(nn.Module):
    """A U-Net in torchvision's convention for detection modules.

    Args:
        num_classes: defect classes, background not counted.
        mirrored: average the chances of an image with those of its three mirror images.
    """

    def __init__(self, num_classes: int, *, mirrored: bool = False) -> None:
        super().__init__()
        self.mirrored = mirrored
        self.encoder, channels = make_encoder(range(5))
        self.decoder = Decoder(channels)
        self.classify = nn.Conv2d(WIDTHS[0], 2, 1)
        self.class_head = ClassHead(num_classes)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """Return losses if there are targets, else detections."""
        if self.training and targets is not None:
            sizes = [(image.shape[1], image.shape[2]) for image in images]
            labels = [label_map(target, size_hw) for target, size_hw in zip(targets, sizes, strict=True)]
            return losses_of(*self.logits(images), labels)
        return [detections(self.chances(image)) for image in images]

    def chances(self, image: Tensor) -> Tensor:
        """Return the chance of each class at every pixel, [C,H,W]; it does not depend on other images."""
        found = self._chances(image)
        if not self.mirrored:
            return found
        # one after the other, since windows may fill the memory
        for axes in MIRRORS:
            found = found + self._chances(image.flip(axes)).flip(axes)
        return found / (1 + len(MIRRORS))

    def _chances(self, image: Tensor) -> Tensor:
        of_defect, of_class = (logits[0].softmax(dim=0) for logits in self.logits([image]))
        return (of_defect[1:] * of_class)[:, : image.shape[1], : image.shape[2]]

    def logits(self, images: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return logits at every pixel, fp32, of images padded to one size.

        Returns:
            Of background and defect, [B,2,H,W], and of each class where there is a defect, [B,C,H,W].
        """
        sides = (max(image.shape[axis] for image in images) for axis in (1, 2))
        # not `-(-side // DIVISOR)`, which ONNX rounds the other way
        height, width = ((side + DIVISOR - 1) // DIVISOR * DIVISOR for side in sides)
        pixels = torch.cat([_padded(image[None], height, width) for image in images])
        maps = self.decoder(maps_of(self.encoder, pixels * 2 - 1))
        return _of_pixels(self.classify(maps[0])), _of_pixels(self.class_head(maps))


def _of_pixels(logits: Tensor) -> Tensor:
    return interpolate(logits.float(), scale_factor=2, mode="bilinear", align_corners=False)


def _padded(image: Tensor, height: int, width: int) -> Tensor:
    return pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]), mode="replicate")


@dataclass(frozen=True, kw_only=True)
class LabelMap:
    """What the pixels of an image show.

    Attributes:
        instances: number of the instance at each pixel, int64 [H,W]: 0 is background, `NO_LABEL` is without a loss.
        labels: class of each instance, int64 [N]; instance 1 comes first.
    """

    instances: Tensor
    labels: Tensor


def label_map(target: Mapping[str, Tensor], size_hw: tuple[int, int]) -> LabelMap:
    """Return what the pixels of an image show. Where instances overlap, the smaller one shows."""
    labels, masks = target["labels"], target["masks"].bool()
    found = torch.zeros(size_hw, dtype=torch.int64, device=masks.device)
    doubtful = target.get("is_doubtful", torch.zeros_like(labels, dtype=torch.bool))
    for i in masks.sum(dim=(1, 2)).argsort(descending=True, stable=True).tolist():
        found[masks[i]] = NO_LABEL if doubtful[i] else i + 1
    if "ignore" in target:
        found[target["ignore"].bool()] = NO_LABEL
    return LabelMap(instances=found, labels=labels)


def losses_of(of_defect: Tensor, of_class: Tensor, labels: Sequence[LabelMap]) -> dict[str, Tensor]:
    """Return the cross-entropy of defect or none, its Dice loss, and the cross-entropy of the class.

    Each pixel counts alike in the first two, each instance in the last: in a loss of all classes at every pixel, one
    large defect would outweigh all small ones, and small defects would be found but not named.

    Args:
        of_defect: logits [B,2,H,W].
        of_class: logits [B,C,H,W].
        labels: of each image; what lies outside has no loss.
    """
    height, width = of_defect.shape[2:]
    wanted = torch.stack(
        [
            pad(of.instances, (0, width - of.instances.shape[1], 0, height - of.instances.shape[0]), value=NO_LABEL)
            for of in labels
        ]
    )
    counted, shown = wanted != NO_LABEL, wanted > 0
    nothing = of_defect.sum() * 0
    losses = {"loss_pixels": nothing, "loss_dice": nothing, "loss_class": of_class.sum() * 0}
    if bool(counted.any()):
        losses["loss_pixels"] = cross_entropy(of_defect, wanted.clamp(max=1), ignore_index=NO_LABEL)
    if bool(shown.any()):
        chance = of_defect.softmax(dim=1)[:, 1] * counted
        losses["loss_dice"] = 1 - 2 * (chance * shown).sum() / (chance.sum() + shown.sum())
        losses["loss_class"] = torch.cat(
            [_class_losses(logits, of, at) for logits, of, at in zip(of_class, labels, wanted, strict=True)]
        ).mean()
    return losses


def _class_losses(of_class: Tensor, labels: LabelMap, wanted: Tensor) -> Tensor:
    """Return the mean cross-entropy of each instance's pixels, [N]; those that do not show are left out."""
    shown = wanted > 0
    numbers = wanted[shown] - 1
    each = cross_entropy(of_class[:, shown].T, labels.labels[numbers] - 1, reduction="none")
    zeros = each.new_zeros(len(labels.labels))
    areas = zeros.index_add(0, numbers, torch.ones_like(each))
    return (zeros.index_add(0, numbers, each) / areas.clamp(min=1))[areas > 0]


def detections(chances: Tensor) -> dict[str, Tensor]:
    """Return the instances that the pixels of an image form, strongest first.

    A region is cut out at the highest of `LEVELS` that the chance of any defect reaches somewhere in it. It is an
    instance of every class with a mean chance of at least `MIN_SCORE` in it, which is its score.

    Args:
        chances: of each class at every pixel, [C,H,W].
    """
    of_classes = chances.cpu().numpy()
    places, count = regions(of_classes.sum(axis=0))
    areas = np.bincount(places.ravel(), minlength=count + 1)
    sums = [np.bincount(places.ravel(), weights=chance.ravel(), minlength=count + 1) for chance in of_classes]
    means = (np.stack(sums) / areas.clip(1))[:, 1:]
    labels, found = np.nonzero(means >= MIN_SCORE)
    order = np.argsort(-means[labels, found], kind="stable")[:MAX_DETECTIONS]
    labels, found = labels[order], found[order]
    # an image may have thousands of regions, and few of them count
    masks = torch.from_numpy(places[None] == (found + 1)[:, None, None])
    boxes = masks_to_boxes(masks)
    # the right and lower border is excluded
    boxes[:, 2:] += 1
    device = chances.device
    return {
        "boxes": boxes.to(device),
        "labels": torch.from_numpy(labels + 1).to(device, torch.int64),
        "scores": torch.from_numpy(means[labels, found]).to(device, torch.float32),
        "masks": masks[:, None].to(device, torch.float32),
    }


def regions(chance: NDArray[np.float32]) -> tuple[NDArray[np.int32], int]:
    """Return the number of the region at each pixel of a map of chances, int32 [H,W], 0 for none, and their count.

    Pieces are one region where a path of pixels of at least `JOINED_AT` of their level joins them (decision 078).

    Args:
        chance: of any defect, 0..1, [H,W].
    """
    found, count = np.zeros(chance.shape, np.int32), 0
    for level in LEVELS:
        inside = chance >= level
        paths = (chance >= JOINED_AT * level).astype(np.uint8)
        num_joined, labels = cv2.connectedComponents(paths, connectivity=8)
        joined = np.asarray(labels, np.int32)
        areas = np.bincount(joined[inside], minlength=num_joined)
        is_new = (areas >= MIN_AREA_PX) & (np.bincount(joined[found > 0], minlength=num_joined) == 0)
        numbers = np.where(is_new, count + is_new.cumsum(), 0).astype(np.int32)
        found = np.where(inside & is_new[joined], numbers[joined], found)
        count += int(is_new.sum())
    return found, count


class UNet:
    """The family of the U-Net on EfficientNet-Lite0, whose decoder is shipped."""

    exports_onnx = True
    heeds_ignore = True
    finds_pixels = True
    takes_weights = True
    kept_in_start = (ENCODER, CLASSES)

    def build(self, build: Build) -> tuple[Segmenter, Mapping[str, Any]]:
        """Build a segmenter. `random` starts all layers anew, `encoder` all but those of ImageNet.

        `segmenter` also loads the decoder from the folder `Build.weights`, or else the shipped one.
        """
        if build.built is not None:
            return Segmenter(build.num_classes, mirrored=build.built.get("mirrored", False)), build.built
        model = Segmenter(build.num_classes, mirrored=build.mirrored)
        about: dict[str, Any] = {"mirrored": build.mirrored}
        if build.init == "random":
            return model, {**about, "encoder": None}
        load_imagenet(model.encoder, imagenet_weights())
        about["encoder"] = {"file": FILE_NAME, "sha256": SHA256}
        if build.init == "segmenter":
            start = build.weights or shipped_start(FAMILY_NAME)
            apply_start(model, build.num_classes, start, without=self.kept_in_start, heads=())
            if build.weights is not None:
                weights = digest_file(build.weights / "model.safetensors")
                about["weights"] = {"folder": build.weights.name, "sha256": weights}
        return model, about


FAMILY = UNet()
