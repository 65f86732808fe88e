"""Varies training images of segmenters, and converts them to torchvision's detection samples."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.policies import Policy
from defectory.segmentation.windows import is_sliver, visible

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Sample = tuple[Tensor, dict[str, Tensor]]


def to_sample(of: SegmentationImage, rng: np.random.Generator, *, policy: Policy, input_px: int) -> Sample:
    """Cut a crop of at most `input_px` out of an image at random, vary it, and convert it.

    The crop shows at least a part of a random instance, if the image has any.

    Returns:
        image float32 [3,H,W] in [0,1], and boxes float [N,4] xyxy, labels int64 [N], masks uint8 [N,H,W].
    """
    zoom = float(np.exp(rng.uniform(-np.log(policy.zoom), np.log(policy.zoom)))) if policy.zoom > 1 else 1.0
    angle = rng.uniform(-policy.rotation_degrees, policy.rotation_degrees) if policy.rotation_degrees else 0.0
    if zoom == 1.0 and angle == 0.0:
        image, labels, masks = _cropped(of, input_px, rng)
    else:
        image, labels, masks = _warped(of, input_px, rng, zoom=zoom, angle_degrees=angle)
    if policy.quarter_turns:
        turns = int(rng.integers(4))
        image, masks = np.rot90(image, turns), [np.rot90(mask, turns) for mask in masks]
    if policy.flip:
        flip_x, flip_y = rng.random(2) < 0.5
        steps = (slice(None, None, -1 if flip_y else 1), slice(None, None, -1 if flip_x else 1))
        image, masks = image[steps], [mask[steps] for mask in masks]
    return _tensors(_exposed(np.ascontiguousarray(image), policy, rng), labels, masks)


def _cropped(of: SegmentationImage, input_px: int, rng: np.random.Generator) -> tuple[Image, list[int], list[Mask]]:
    whole_hw = (of.image.shape[0], of.image.shape[1])
    size_hw = (min(input_px, whole_hw[0]), min(input_px, whole_hw[1]))
    top, left = _corner(of, size_hw, rng)
    labels: list[int] = []
    masks: list[Mask] = []
    for (label, _), (mask, (y, x)) in zip(of.instances, of.crops(), strict=True):
        seen = visible(mask, (y - top, x - left), size_hw)
        if seen is not None:
            labels.append(label)
            masks.append(_on_canvas(*seen, size_hw))
    return of.image[top : top + size_hw[0], left : left + size_hw[1]], labels, masks


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
) -> tuple[Image, list[int], list[Mask]]:
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
    labels: list[int] = []
    masks: list[Mask] = []
    for (label, _), (mask, (y, x)) in zip(of.instances, of.crops(), strict=True):
        shifted = matrix.copy()
        shifted[:, 2] += matrix[:, :2] @ [x, y]
        soft = cv2.warpAffine(mask.astype(np.float32), shifted, (size_hw[1], size_hw[0]), flags=cv2.INTER_LINEAR)
        seen = soft >= 0.5
        if not is_sliver(int(seen.sum()), float(mask.sum()) * zoom**2):
            labels.append(label)
            masks.append(seen)
    return image.astype(np.uint8), labels, masks


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


def _tensors(image: NDArray[np.float32], labels: list[int], masks: list[Mask]) -> Sample:
    boxes: list[tuple[int, int, int, int]] = []
    kept: list[int] = []
    for index, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            kept.append(index)
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    height, width = image.shape[:2]
    stacked = np.stack([masks[i] for i in kept]) if kept else np.zeros((0, height, width), bool)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([labels[i] for i in kept], dtype=torch.int64),
        "masks": torch.from_numpy(np.ascontiguousarray(stacked).astype(np.uint8)),
    }
