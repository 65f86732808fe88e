"""Run-length encodings as tools write them into COCO files: text or lists, with sizes missing or swapped.

All of them are checked before anything decodes them.
"""

from __future__ import annotations

import ast
import base64
import binascii
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.formats.fields import Entry, described, number_of
from defectory.formats.polygons import Notice
from defectory.rle import Rle, box_of, checked_runs, decode, edges_of_runs, encode, rle_of_edges, runs_of_text

Box = tuple[float, float, float, float]
"""x, y, width, height in pixels."""
MIN_BOX_IOU, MAX_OTHER_BOX_IOU = 0.7, 0.5


def rle_of_entry(entry: Entry, size_hw: tuple[int, int], box_xywh: Box | None, where: object, notice: Notice) -> Rle:
    """Return the mask of a `{"size", "counts"}` object.

    Args:
        entry: the object.
        size_hw: height and width of the image.
        box_xywh: the annotation's box, which shows what a swapped size means.
        where: named in errors.
        notice: receives remarks on tolerated deviations.

    Raises:
        AnnotationError: the size is another image's, `counts` are not run lengths of it, or the mask is empty.
    """
    stated = _stated_size(entry, size_hw, where, notice)
    is_swapped = stated != size_hw and stated == (size_hw[1], size_hw[0])
    if stated != size_hw and not is_swapped:
        raise AnnotationError(
            where,
            f"RLE size {stated[0]}x{stated[1]}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
            "re-export the mask at image size",
        )
    num_px = size_hw[0] * size_hw[1]
    try:
        runs = _runs(entry.get("counts"), num_px)
    except ValueError as error:
        raise AnnotationError(where, f"malformed RLE: {str(error).splitlines()[0]}", "export the mask again") from None
    edges = edges_of_runs(runs)
    if not len(edges):
        raise AnnotationError(where, "mask covers no pixel", "draw it or remove the annotation")
    rle = rle_of_edges(edges, size_hw)
    if is_swapped:
        rle = _unswapped(rle, edges, box_xywh, where, notice)
    total = int(runs.sum())
    if total < num_px:
        if box_xywh is None or _box_iou(box_of(rle), box_xywh) < MIN_BOX_IOU:
            raise AnnotationError(
                where, f"malformed RLE: runs add up to {total}, not {num_px}", "export the mask again"
            )
        notice("the RLE leaves out its last run; the rest is background", "")
    return rle


def _stated_size(entry: Entry, size_hw: tuple[int, int], where: object, notice: Notice) -> tuple[int, int]:
    size = entry.get("size")
    if size is None or (isinstance(size, list) and size and all(side is None for side in size)):
        notice("the RLE has no size; the image's is taken", "")
        return size_hw
    if not isinstance(size, list) or len(size) != 2:
        raise AnnotationError(
            where, f"RLE size is {described(size)}, but [height, width] is expected", "export the mask again"
        )
    sides = [number_of({"RLE size": side}, "RLE size", where) for side in size]
    height, width = sides
    if height is None or width is None or not height.is_integer() or not width.is_integer():
        raise AnnotationError(where, "RLE size is not two whole numbers", "export the mask again")
    return int(height), int(width)


def _runs(counts: Any, num_px: int) -> NDArray[np.int64]:
    if not isinstance(counts, str):
        return _runs_of_list(counts, num_px)
    text = _unquoted(counts)
    try:
        return runs_of_text(text, num_px, may_end_early=True)
    except ValueError as error:
        if _is_base64(text):
            raise ValueError("counts look base64-encoded, but COCO's compressed text is expected") from None
        raise error from None


def _unquoted(counts: str) -> str:
    """Remove what Python's `str(bytes)` puts around a text."""
    if re.fullmatch(r"""b'.*'|b".*\"""", counts, re.DOTALL):
        try:
            value = ast.literal_eval(counts)
            return value.decode("ascii") if isinstance(value, bytes) else counts
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return counts
    return counts


def _is_base64(text: str) -> bool:
    if len(text) < 8 or len(text) % 4 or not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", text):
        return False
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _runs_of_list(counts: Any, num_px: int) -> NDArray[np.int64]:
    if not isinstance(counts, list):
        raise ValueError(f"counts is {described(counts)}, but text or a list is expected")
    if not counts:
        raise ValueError("counts is an empty list")
    if any(kind not in (int, float, str) for kind in set(map(type, counts))):
        raise ValueError("counts holds something other than numbers")
    try:
        values = np.array([float(count) for count in counts], np.float64)
    except (ValueError, OverflowError):
        raise ValueError("counts holds something other than usable numbers") from None
    if not np.isfinite(values).all() or (np.abs(values) > 2 * num_px).any():
        raise ValueError(f"a run is longer than the {num_px} pixels of the image")
    if (values != np.rint(values)).any():
        raise ValueError("counts holds a number that is not whole")
    return checked_runs(values.astype(np.int64), num_px, may_end_early=True)


def _unswapped(rle: Rle, edges: NDArray[np.int64], box_xywh: Box | None, where: object, notice: Notice) -> Rle:
    """Decide by the annotation's box whether only the size is swapped or the whole mask is transposed."""
    if box_xywh is not None:
        height, width = rle.size_hw
        turned = encode(decode(rle_of_edges(edges, (width, height))).T)
        agreement = {
            candidate: _box_iou(box_of(candidate_rle), box_xywh)
            for candidate, candidate_rle in (("size", rle), ("mask", turned))
        }
        best, other = ("size", "mask") if agreement["size"] >= agreement["mask"] else ("mask", "size")
        if agreement[best] >= MIN_BOX_IOU and agreement[other] < MAX_OTHER_BOX_IOU:
            notice(
                "the RLE size is [width, height]; read by the annotation's box",
                "" if best == "size" else "the mask is transposed, too",
            )
            return rle if best == "size" else turned
    height, width = rle.size_hw
    raise AnnotationError(
        where,
        f"RLE size {width}x{height}, image is {height}x{width} (height x width), and no box shows which is meant",
        "write the size as [height, width]",
    )


def _box_iou(box_xyxy: tuple[int, int, int, int], box_xywh: Box) -> float:
    x, y, w, h = box_xywh
    width = min(box_xyxy[2], x + w) - max(box_xyxy[0], x)
    height = min(box_xyxy[3], y + h) - max(box_xyxy[1], y)
    shared = max(0.0, width) * max(0.0, height)
    both = (box_xyxy[2] - box_xyxy[0]) * (box_xyxy[3] - box_xyxy[1]) + max(w, 0.0) * max(h, 0.0) - shared
    return shared / both if both > 0 else 0.0
