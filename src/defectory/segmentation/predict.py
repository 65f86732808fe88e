"""Predicts whole images at the tiling's scale."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms

from defectory.artifacts.annotation import Category
from defectory.artifacts.value import Value
from defectory.drawing import draw_outlines, write_text
from defectory.images.save import save_png
from defectory.rle import Rle, box_of, box_xyxy, decode, encode, encode_crop
from defectory.segmentation.windows import resized

MAX_SIDE_PX = 1024
"""Larger scaled images are predicted in overlapping windows."""
OVERLAP_PX = 128
Image = NDArray[np.uint8]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A detection in image pixels, and the windows (boxes xyxy) it was seen in."""

    score: float
    label: int
    box: Box
    rle: Rle
    windows: tuple[Box, ...]


class Prediction(Value):
    """One detected instance, in image pixels."""

    image_id: int
    category_id: int
    score: float
    rle: Rle


@torch.no_grad()
def predict_images(
    model: Any, images: Iterable[tuple[int, Image]], *, scale: float, min_score: float = 0.05
) -> Iterator[list[Prediction]]:
    """Predict whole images one after the other.

    Args:
        model: a segmenter.
        images: image id and RGB uint8 [H,W,3].
        scale: pixels that the segmenter sees per image pixel.
        min_score: weaker detections are dropped.

    Yields:
        The predictions of each image, strongest first.
    """
    model.eval()
    for image_id, image in images:
        yield _predict_one(model, image_id, image, scale, min_score)


def _predict_one(model: Any, image_id: int, image: Image, scale: float, min_score: float) -> list[Prediction]:
    size_hw, scaled = (image.shape[0], image.shape[1]), resized(image, scale)
    # how much the sides really grew, after rounding
    ratio_yx = scaled.shape[0] / size_hw[0], scaled.shape[1] / size_hw[1]
    device = next(model.parameters()).device
    found: list[_Found] = []
    for y, x in _windows(scaled.shape[:2]):
        window = scaled[y : y + MAX_SIDE_PX, x : x + MAX_SIDE_PX]
        output = model([torch.from_numpy(np.ascontiguousarray(window)).permute(2, 0, 1).float().to(device) / 255])[0]
        top, left = round(y / ratio_yx[0]), round(x / ratio_yx[1])
        bottom, right = round((y + window.shape[0]) / ratio_yx[0]), round((x + window.shape[1]) / ratio_yx[1])
        seen = (left, top, min(size_hw[1], right), min(size_hw[0], bottom))
        for score, label, soft in zip(
            output["scores"].tolist(), output["labels"].tolist(), output["masks"][:, 0].cpu().numpy(), strict=True
        ):
            if score < min_score:
                continue
            mask, corner_yx = _at_native_size(soft, (y, x), ratio_yx, size_hw)
            if mask.any():
                # encoded at once, since the masks of a 20 MP image would fill the memory
                rle = encode_crop(mask, (corner_yx[1], corner_yx[0]), size_hw)
                found.append(_Found(score=float(score), label=int(label), box=box_of(rle), rle=rle, windows=(seen,)))
    return [Prediction(image_id=image_id, category_id=f.label, score=f.score, rle=f.rle) for f in _merge(found)]


def _at_native_size(
    soft: NDArray[np.float32], corner_yx: tuple[int, int], ratio_yx: tuple[float, float], size_hw: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Resize the part of a window's soft mask, float32 [h,w], that is not 0 to the image's own resolution.

    Returns:
        The mask, bool, and the position (y, x) of its first pixel in the image.
    """
    x0, y0, x1, y1 = box_xyxy(soft > 0)
    if x1 <= x0:
        return np.zeros((0, 0), bool), (0, 0)
    # one more pixel on each side, since the resized border is soft
    y0, x0, y1, x1 = max(0, y0 - 1), max(0, x0 - 1), min(soft.shape[0], y1 + 1), min(soft.shape[1], x1 + 1)
    crop, (y, x) = np.ascontiguousarray(soft[y0:y1, x0:x1]), (corner_yx[0] + y0, corner_yx[1] + x0)
    if ratio_yx == (1.0, 1.0):
        return crop >= 0.5, (y, x)
    top, left = int(y / ratio_yx[0]), int(x / ratio_yx[1])
    bottom = min(size_hw[0], int(np.ceil((y + crop.shape[0]) / ratio_yx[0])))
    right = min(size_hw[1], int(np.ceil((x + crop.shape[1]) / ratio_yx[1])))
    # centres of pixels map onto each other, as in `cv2.resize`
    matrix = np.array(
        [[ratio_yx[1], 0, (left + 0.5) * ratio_yx[1] - 0.5 - x], [0, ratio_yx[0], (top + 0.5) * ratio_yx[0] - 0.5 - y]]
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    native = cv2.warpAffine(crop, matrix, (right - left, bottom - top), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(native) >= 0.5, (top, left)


def _windows(size_hw: tuple[int, ...]) -> list[tuple[int, int]]:
    def starts(length: int) -> list[int]:
        if length <= MAX_SIDE_PX:
            return [0]
        stride = MAX_SIDE_PX - OVERLAP_PX
        return [min(i * stride, length - MAX_SIDE_PX) for i in range(-(-(length - OVERLAP_PX) // stride))]

    return [(y, x) for y in starts(size_hw[0]) for x in starts(size_hw[1])]


def _merge(found: list[_Found]) -> list[_Found]:
    """Join parts of a defect that windows cut, and drop duplicates."""
    if not found:
        return []
    if len({f.windows for f in found}) > 1:
        found = _join(found)
    boxes = torch.tensor([f.box for f in found], dtype=torch.float32)
    scores, labels = torch.tensor([f.score for f in found]), torch.tensor([f.label for f in found])
    keep = batched_nms(boxes, scores, labels, 0.5)
    return [found[i] for i in keep.tolist()]


def _join(found: list[_Found]) -> list[_Found]:
    joined: list[_Found] = []
    for part in sorted(found, key=lambda f: -f.score):
        rest: list[_Found] = []
        # a part may join two detections that were separate so far
        for other in joined:
            if _is_same(part, other):
                mask = decode(part.rle) | decode(other.rle)
                windows = (*other.windows, *part.windows)
                part = replace(other, rle=encode(mask), box=box_xyxy(mask), windows=windows)
            else:
                rest.append(other)
        joined = [*rest, part]
    return joined


def _is_same(first: _Found, second: _Found) -> bool:
    """Check whether two detections agree where their windows overlap."""
    if first.label != second.label or not _overlap(first.box, second.box):
        return False
    for a in first.windows:
        for b in second.windows:
            shared = _overlap(a, b)
            if a == b or shared is None or not _overlap(shared, first.box) or not _overlap(shared, second.box):
                continue
            x0, y0, x1, y1 = shared
            one, two = decode(first.rle)[y0:y1, x0:x1], decode(second.rle)[y0:y1, x0:x1]
            if (one & two).sum() >= 0.5 * max(1, (one | two).sum()):
                return True
    return False


def _overlap(a: Box, b: Box) -> Box | None:
    box = (max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    return box if box[0] < box[2] and box[1] < box[3] else None


def coco_results(predictions: Sequence[Prediction]) -> list[dict[str, object]]:
    """Convert predictions to a COCO results list (RLE)."""
    results: list[dict[str, object]] = []
    for p in predictions:
        x0, y0, x1, y1 = box_xyxy(decode(p.rle))
        rle = {"size": list(p.rle.size_hw), "counts": p.rle.counts}
        results.append(
            {
                "image_id": p.image_id,
                "category_id": p.category_id,
                "score": p.score,
                "segmentation": rle,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
            }
        )
    return results


def write_overlay(
    path: Path,
    image: Image,
    predictions: Sequence[Prediction],
    categories: Sequence[Category],
    *,
    min_score: float = 0.5,
) -> None:
    """Write a PNG with the outline and name of every prediction of at least `min_score`."""
    canvas = draw_outlines(image, [((255, 60, 30), decode(p.rle)) for p in predictions if p.score >= min_score])
    for p in predictions:
        if p.score >= min_score:
            x0, y0, _, _ = box_xyxy(decode(p.rle))
            text = f"{categories[p.category_id - 1].name} {p.score:.2f}"
            write_text(canvas, text, (x0, max(10, y0 - 3)), size=0.35, colour=(255, 230, 0))
    save_png(path, canvas)
