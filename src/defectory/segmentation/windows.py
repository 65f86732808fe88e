"""Cuts images into the windows that segmenters train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from defectory.geometry import resize_crop, resize_image
from defectory.rle import Rle, decode_crop, encode_crop
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.sizing import Sizing

WINDOW_INPUTS = 2
"""Side of a window, in inputs: crops of one input are drawn from it at random positions."""
SLIVER_SHARE, ALWAYS_KEPT_PX, MIN_AREA_PX = 0.25, 200, 4
"""A cut instance with less than this share of its area is not an instance, unless it has this many pixels."""
Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Piece = tuple[int, Mask, tuple[int, int]]
"""Category id, mask bool [h,w] cropped to its box, and the position (y, x) of its first pixel."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubt:
    """What training ignores in an image: pixels, and a flag per instance; empty for none."""

    ignore: Rle | None = None
    is_doubtful: tuple[bool, ...] = ()


NO_DOUBT = Doubt()


def resized(image: Image, scale: float) -> Image:
    """Resize an image uint8 [H,W,3] by a factor."""
    return resize_image(image, scaled_hw((image.shape[0], image.shape[1]), scale))


def scaled_hw(size_hw: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return the size of an image resized by a factor, at least one pixel on each side."""
    return max(1, round(size_hw[0] * scale)), max(1, round(size_hw[1] * scale))


def cut_windows(
    image: Image,
    instances: Sequence[tuple[int, Rle]],
    *,
    name: str,
    image_ids: tuple[int, ...],
    sizing: Sizing,
    seed: int,
    num_free: int = 0,
    crowds: Sequence[Rle] = (),
    doubt: Doubt = NO_DOUBT,
) -> tuple[list[SegmentationImage], list[SegmentationImage]]:
    """Cut an image into windows around its defects, and into windows without any.

    An image that fits a window stays whole. Every instance lies in at least one window, or in part if it is larger.

    Args:
        image: RGB uint8 [H,W,3] at its own resolution.
        instances: category id and mask of the image's size.
        name: of the windows.
        image_ids: ids of the images that it shows.
        sizing: scale and size of the input.
        seed: of the positions.
        num_free: most windows without a defect.
        crowds: masks of regions of defects that are no instances; no window without a defect shows them.
        doubt: pixels and instances that training ignores.

    Returns:
        Windows with defects, and windows without.
    """
    rng = np.random.default_rng([73, seed, *image_ids])
    scaled = resized(image, sizing.scale)
    size_hw, side = (scaled.shape[0], scaled.shape[1]), sizing.input_px * WINDOW_INPUTS
    found_pieces = [_piece(label, rle, size_hw) for label, rle in instances]
    pieces = [piece for piece in found_pieces if piece is not None]
    flags = doubt.is_doubtful or (False,) * len(instances)
    unclear = _Unclear(
        piece=None if doubt.ignore is None else _piece(0, doubt.ignore, size_hw),
        flags=tuple(flag for flag, piece in zip(flags, found_pieces, strict=True) if piece is not None),
    )
    if max(size_hw) <= side:
        whole = _window(scaled, pieces, (0, 0), side, f"{name}-000", image_ids, unclear)
        return ([whole], []) if whole.instances else ([], [] if instances or crowds or not num_free else [whole])
    corners: list[tuple[int, int]] = []
    for _, mask, (y, x) in pieces:
        height, width = mask.shape
        if not any(
            top <= y and left <= x and y + height <= top + side and x + width <= left + side for top, left in corners
        ):
            corners.append(_corner_around(mask, (y, x), size_hw, side, rng))
    found = [_window(scaled, pieces, at, side, f"{name}-{i:03d}", image_ids, unclear) for i, at in enumerate(corners)]
    avoided = [*pieces, *(piece for rle in crowds if (piece := _piece(0, rle, size_hw)) is not None)]
    free = [
        _window(scaled, (), at, side, f"{name}-free-{i:03d}", image_ids, _Unclear())
        for i, at in enumerate(_free_corners(avoided, size_hw, side, num_free, rng))
    ]
    return [window for window in found if window.instances], free


def _piece(label: int, rle: Rle, size_hw: tuple[int, int]) -> Piece | None:
    crop, (x, y) = decode_crop(rle)
    mask, corner_yx = resize_crop(crop, (y, x), rle.size_hw, size_hw)
    return (label, mask, corner_yx) if mask.any() else None


def _corner_around(
    mask: Mask, corner_yx: tuple[int, int], size_hw: tuple[int, int], side: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Return the corner of a window with a defect somewhere in it, or with a random part of a larger one."""
    ys, xs = np.nonzero(mask)
    pick = int(rng.integers(len(ys)))
    corner: list[int] = []
    for length, at, start, limit in zip(mask.shape, (ys[pick], xs[pick]), corner_yx, size_hw, strict=True):
        fits = length <= side
        first = int(rng.integers(start + length - side, start + 1)) if fits else start + int(at) - side // 2
        corner.append(min(max(first, 0), max(0, limit - side)))
    return corner[0], corner[1]


def _free_corners(
    pieces: Sequence[Piece], size_hw: tuple[int, int], side: int, count: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """Return corners of a grid's windows that no defect touches, at most `count`, at random."""
    starts = [
        [round(i * max(0, length - side) / max(1, n - 1)) for i in range(n)]
        for length in size_hw
        for n in [max(1, -(-length // side))]
    ]
    free = [
        (top, left)
        for top in starts[0]
        for left in starts[1]
        if not any(
            y < top + side and top < y + mask.shape[0] and x < left + side and left < x + mask.shape[1]
            for _, mask, (y, x) in pieces
        )
    ]
    return [free[int(i)] for i in sorted(rng.permutation(len(free))[:count])]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Unclear:
    """The doubt about the pieces of a scaled image."""

    piece: Piece | None = None
    flags: tuple[bool, ...] = ()


def _window(
    image: Image,
    pieces: Sequence[Piece],
    corner: tuple[int, int],
    side: int,
    name: str,
    image_ids: tuple[int, ...],
    unclear: _Unclear,
) -> SegmentationImage:
    (top, left) = corner
    shown = np.ascontiguousarray(image[top : top + side, left : left + side])
    size_hw = (shown.shape[0], shown.shape[1])
    instances: list[tuple[int, Rle]] = []
    flags: list[bool] = []
    for (label, mask, at), flag in zip(pieces, unclear.flags, strict=True):
        seen = visible(mask, (at[0] - top, at[1] - left), size_hw)
        if seen is not None:
            part, (y, x) = seen
            instances.append((label, encode_crop(part, (x, y), size_hw)))
            flags.append(flag)
    ignore: Rle | None = None
    if unclear.piece is not None:
        _, mask, at = unclear.piece
        seen = cut(mask, (at[0] - top, at[1] - left), size_hw)
        if seen is not None and seen[0].any():
            ignore = encode_crop(seen[0], (seen[1][1], seen[1][0]), size_hw)
    return SegmentationImage(
        id=name,
        image=shown,
        instances=tuple(instances),
        image_ids=image_ids,
        ignore=ignore,
        is_doubtful=tuple(flags) if any(flags) else (),
    )


def visible(mask: Mask, corner_yx: tuple[int, int], size_hw: tuple[int, int]) -> tuple[Mask, tuple[int, int]] | None:
    """Return the part of a cropped mask that lies in a window at (0, 0), and its position; None for a sliver."""
    seen = cut(mask, corner_yx, size_hw)
    if seen is None or seen[0].size == mask.size:
        return seen
    return None if is_sliver(int(seen[0].sum()), float(mask.sum())) else seen


def cut(mask: Mask, corner_yx: tuple[int, int], size_hw: tuple[int, int]) -> tuple[Mask, tuple[int, int]] | None:
    """Return the part of a cropped mask that lies in a window at (0, 0), and its position; None if there is none."""
    (y, x), (height, width) = corner_yx, mask.shape
    top, left, bottom, right = max(0, y), max(0, x), min(size_hw[0], y + height), min(size_hw[1], x + width)
    if top >= bottom or left >= right:
        return None
    return mask[top - y : bottom - y, left - x : right - x], (top, left)


def is_sliver(area_px: int, whole_px: float) -> bool:
    """Check whether a part of an instance, of so many of its pixels, is too little to be one."""
    return area_px < MIN_AREA_PX or (area_px < SLIVER_SHARE * whole_px and area_px < ALWAYS_KEPT_PX)
