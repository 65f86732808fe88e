"""Connected components of masks as RLE, computed inside their boxes so that time and memory grow with the parts."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from defectory.errors import ImageError
from defectory.rle import Rle, box_xyxy, encode_crop, rle_of_edges

MAX_PARTS = 20_000
"""A mask with more separate parts is noise, not an annotation."""


def component_rles(mask: NDArray[np.bool_], *, min_area_px: int, where: object) -> list[Rle]:
    """Return the 8-connected components of a bool [H,W] mask with at least `min_area_px` pixels, as RLE of the image.

    Raises:
        ImageError: the mask has more than `MAX_PARTS` parts.
    """
    import cv2

    x0, y0, x1, y1 = box_xyxy(mask)
    if x1 == x0:
        return []
    crop = np.ascontiguousarray(mask[y0:y1, x0:x1]).view(np.uint8)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(crop, connectivity=8)
    areas_px = stats[:, cv2.CC_STAT_AREA]
    kept = [index for index in range(1, count) if areas_px[index] >= max(1, min_area_px)]
    _refuse_many(len(kept), "separate parts", where)
    result: list[Rle] = []
    for index in kept:
        left, top, width, height = (int(value) for value in stats[index, :4])
        part = labels[top : top + height, left : left + width] == index
        result.append(encode_crop(part, (x0 + left, y0 + top), (int(mask.shape[0]), int(mask.shape[1]))))
    return result


def rles_by_value(values: NDArray[np.unsignedinteger], *, where: object) -> dict[int, Rle]:
    """Return the RLE of the pixels of each value above 0 of a map [H,W], in one pass for any number of values.

    Raises:
        ImageError: the map contains more than `MAX_PARTS` values.
    """
    flat = np.ascontiguousarray(values.T).reshape(-1)
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    ends = np.append(starts[1:], len(flat))
    drawn = flat[starts] > 0
    of_run = flat[starts[drawn]]
    order = np.argsort(of_run, kind="stable")
    edges = np.stack([starts[drawn], ends[drawn]], axis=1)[order]
    distinct, first = np.unique(of_run[order], return_index=True)
    _refuse_many(len(distinct), "values", where)
    size_hw = (int(values.shape[0]), int(values.shape[1]))
    parts = np.split(edges, first[1:]) if len(distinct) else []
    return {int(value): rle_of_edges(part.reshape(-1), size_hw) for value, part in zip(distinct, parts, strict=True)}


def _refuse_many(count: int, what: str, where: object) -> None:
    if count > MAX_PARTS:
        raise ImageError(
            where,
            f"{count:,} {what} in one mask",
            "clean the mask, or leave out small parts (--min-area or data.min_area_px)",
        )
