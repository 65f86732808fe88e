"""Varies training images of segmenters, and converts them to torchvision's detection samples."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectory.rle import decode
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.policies import Policy
from defectory.segmentation.windows import is_sliver, visible

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Sample = tuple[Tensor, dict[str, Tensor]]
Shown = tuple[Image, list[int], list[Mask], Mask]
"""Image, numbers of the instances that it shows, their masks, and the pixels to ignore."""


def to_sample(of: SegmentationImage, rng: np.random.Generator, *, policy: Policy, input_px: int) -> Sample:
    """Cut a crop of at most `input_px` out of an image at random, vary it, and convert it.

    The crop shows at least a part of a random instance, if the image has any.

    Returns:
        image float32 [3,H,W] in [0,1], and boxes float [N,4] xyxy, labels int64 [N], masks uint8 [N,H,W]. If anything
        in it is doubtful, also ignore uint8 [H,W] and is_doubtful bool [N].
    """
    zoom = float(np.exp(rng.uniform(-np.log(policy.zoom), np.log(policy.zoom)))) if policy.zoom > 1 else 1.0
    angle = rng.uniform(-policy.rotation_degrees, policy.rotation_degrees) if policy.rotation_degrees else 0.0
    if zoom == 1.0 and angle == 0.0:
        image, shown, masks, ignore = _cropped(of, input_px, rng)
    else:
        image, shown, masks, ignore = _warped(of, input_px, rng, zoom=zoom, angle_degrees=angle)
    if policy.quarter_turns:
        turns = int(rng.integers(4))
        image, masks = np.rot90(image, turns), [np.rot90(mask, turns) for mask in masks]
        ignore = np.rot90(ignore, turns)
    if policy.flip:
        flip_x, flip_y = rng.random(2) < 0.5
        steps = (slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1))
        image, masks, ignore = image[steps], [mask[steps] for mask in masks], ignore[steps]
    flags = of.is_doubtful or (False,) * len(of.instances)
    labels, doubtful = [of.instances[i][0] for i in shown], [flags[i] for i in shown]
    return _tensors(_exposed(np.ascontiguousarray(image), policy, rng), labels, masks, doubtful, ignore)


def _cropped(of: SegmentationImage, input_px: int, rng: np.random.Generator) -> Shown:
    whole_hw = (of.image.shape[0], of.image.shape[1])
    size_hw = (min(input_px, whole_hw[0]), min(input_px, whole_hw[1]))
    top, left = _corner(of, size_hw, rng)
    shown: list[int] = []
    masks: list[Mask] = []
    for index, (mask, (y, x)) in enumerate(of.crops()):
        seen = visible(mask, (y - top, x - left), size_hw)
        if seen is not None:
            shown.append(index)
            masks.append(_on_canvas(*seen, size_hw))
    ignore = _ignored(of)[top : top + size_hw[0], left : left + size_hw[1]]
    return of.image[top : top + size_hw[0], left : left + size_hw[1]], shown, masks, ignore


def _ignored(of: SegmentationImage) -> Mask:
    return np.zeros(of.image.shape[:2], bool) if of.ignore is None else decode(of.ignore)


def _corner(of: SegmentationImage, size_hw: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Return the corner of a crop, uniform over those that hold a random instance, or a random part of a larger one."""
    crops = of.crops()
    chosen = crops[int(rng.integers(len(crops)))] if crops else None
    corner: list[int] = []
    for axis in (0, 1):
        side, limit = size_hw[axis], of.image.shape[axis]
        low, high = 0, limit - side
        if chosen is not None:
            length, start = chosen[0].shape[axis], chosen[1][axis]
            if length <= side:
                low, high = max(low, start + length - side), min(high, start)
            else:
                low, high = max(low, min(start, high)), min(high, start + length - side)
        corner.append(int(rng.integers(low, max(low, high) + 1)))
    return corner[0], corner[1]


def _on_canvas(part: Mask, corner_yx: tuple[int, int], size_hw: tuple[int, int]) -> Mask:
    canvas = np.zeros(size_hw, bool)
    canvas[corner_yx[0] : corner_yx[0] + part.shape[0], corner_yx[1] : corner_yx[1] + part.shape[1]] = part
    return canvas


def _warped(
    of: SegmentationImage, input_px: int, rng: np.random.Generator, *, zoom: float, angle_degrees: float
) -> Shown:
    """Crop an image after it was zoomed and turned; beyond its border the border's pixels are repeated."""
    height, width = of.image.shape[:2]
    size_hw = (min(input_px, max(1, round(height * zoom))), min(input_px, max(1, round(width * zoom))))
    # the crop as it lies in the image before the zoom
    own_hw = (min(height, max(1, round(size_hw[0] / zoom))), min(width, max(1, round(size_hw[1] / zoom))))
    top, left = _corner(of, own_hw, rng)
    centre = (left + own_hw[1] / 2 - 0.5, top + own_hw[0] / 2 - 0.5)
    matrix = cv2.getRotationMatrix2D(centre, angle_degrees, zoom)
    matrix[:, 2] += [size_hw[1] / 2 - 0.5 - centre[0], size_hw[0] / 2 - 0.5 - centre[1]]
    image = cv2.warpAffine(
        of.image, matrix, (size_hw[1], size_hw[0]), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    shown: list[int] = []
    masks: list[Mask] = []
    for index, (mask, (y, x)) in enumerate(of.crops()):
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ [x, y]
        soft = cv2.warpAffine(mask.astype(np.float32), shifted, (size_hw[1], size_hw[0]), flags=cv2.INTER_LINEAR)
        seen = soft >= 0.5
        if not is_sliver(int(seen.sum()), float(mask.sum()) * zoom**2):
            shown.append(index)
            masks.append(seen)
    ignore = np.zeros(size_hw, bool)
    if of.ignore is not None:
        whole = decode(of.ignore).astype(np.float32)
        ignore = cv2.warpAffine(whole, matrix, (size_hw[1], size_hw[0]), flags=cv2.INTER_LINEAR) >= 0.5
    return image.astype(np.uint8), shown, masks, np.asarray(ignore)


def _exposed(image: Image, policy: Policy, rng: np.random.Generator) -> NDArray[np.float32]:
    values = image.astype(np.float32) / 255
    if policy.contrast or policy.brightness:
        factor = rng.uniform(1 - policy.contrast, 1 + policy.contrast)
        added = rng.uniform(-policy.brightness, policy.brightness)
        mean = values.mean()
        values = (values - mean) * np.float32(factor) + (mean + np.float32(added))
    if policy.blur_px and rng.random() < 0.5:
        values = cv2.GaussianBlur(values, (0, 0), max(0.1, rng.uniform(0, policy.blur_px))).astype(np.float32)
    if policy.noise and rng.random() < 0.5:
        strength = np.float32(rng.uniform(0, policy.noise))
        # grey noise keeps grey images grey
        values = values + strength * rng.standard_normal(values.shape[:2], np.float32)[..., None]
    return np.clip(values, 0, 1).astype(np.float32)


def _tensors(
    image: NDArray[np.float32], labels: list[int], masks: list[Mask], doubtful: list[bool], ignore: Mask
) -> Sample:
    boxes: list[tuple[int, int, int, int]] = []
    kept: list[int] = []
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            kept.append(index)
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    height, width = image.shape[:2]
    stacked = np.stack([masks[i] for i in kept]) if kept else np.zeros((0, height, width), bool)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64),
        "masks": torch.from_numpy(np.ascontiguousarray(stacked).astype(np.uint8)),
    }
    flags = [doubtful[i] for i in kept]
    if ignore.any() or any(flags):
        target["ignore"] = torch.from_numpy(np.ascontiguousarray(ignore).astype(np.uint8))
        target["is_doubtful"] = torch.tensor(flags, dtype=torch.bool)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), target
