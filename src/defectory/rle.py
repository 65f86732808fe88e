"""COCO run-length encoding of masks (column-major, compressed text), the stored form of all instances.

Every number in the text is checked against the size of the mask, because COCO's C decoder trusts its input and writes
out of bounds if the numbers are wrong. A mask is handled as its **edges**: the ascending column-major positions, from
0, at which it changes, first to True, then to False, and so on. Time and memory of operations on edges grow with the
outline, not with the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

MAX_PIXELS = 1 << 31
"""COCO's own tools count pixels in 32 bits."""
_CODE_BITS = 5
_MAX_DIGITS = 8
"""Maximum number of 5-bit digits of a number; no difference of runs of `MAX_PIXELS` needs more."""


class Rle(BaseModel):
    """A mask of `size_hw` pixels as COCO's compressed run-length text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_hw: tuple[int, int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encode a bool [H,W] mask (True = defect)."""
    import numpy as np

    height, width = int(mask.shape[0]), int(mask.shape[1])
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return rle_of_edges(np.empty(0, np.int64), (height, width))
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    return encode_crop(mask[y0:y1, x0:x1], (x0, y0), (height, width))


def encode_crop(crop: NDArray[np.bool_], corner_xy: tuple[int, int], size_hw: tuple[int, int]) -> Rle:
    """Encode a bool [h,w] crop at `corner_xy` of an image of `size_hw`; the rest of the image is False."""
    import numpy as np

    if 0 in crop.shape:
        return rle_of_edges(np.empty(0, np.int64), size_hw)
    crop_height = int(crop.shape[0])
    columns = np.zeros((crop.shape[1], crop_height + 2), np.int8)
    columns[:, 1:-1] = crop.T
    column, row = np.divmod(np.flatnonzero(np.diff(columns, axis=1).reshape(-1)), crop_height + 1)
    edges = (column + corner_xy[0]) * size_hw[0] + corner_xy[1] + row
    return rle_of_edges(_without_pairs(edges.astype(np.int64)), size_hw)


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Decode to a bool [H,W] mask.

    Raises:
        ValueError: the text is not a run-length encoding of a mask of this size.
    """
    import numpy as np

    crop, (x0, y0) = decode_crop(rle)
    mask = np.zeros(rle.size_hw, bool)
    mask[y0 : y0 + crop.shape[0], x0 : x0 + crop.shape[1]] = crop
    return mask


def decode_crop(rle: Rle) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Decode to the bool [h,w] crop of the mask's bounding box, and the position (x, y) of its first pixel.

    Raises:
        ValueError: as for `decode`.
    """
    import numpy as np

    edges, height = edges_of(rle), rle.size_hw[0]
    if not len(edges):
        return np.zeros((0, 0), bool), (0, 0)
    x0, y0, x1, y1 = _box_of_edges(edges, height)
    if y1 - y0 < height:  # split runs at column ends, so that rows outside the box can be removed from all of them
        starts, ends = edges[0::2], edges[1::2] - 1
        inside = np.empty_like(edges)
        inside[0::2] = (starts // height - x0) * (y1 - y0) + starts % height - y0
        inside[1::2] = (ends // height - x0) * (y1 - y0) + ends % height - y0 + 1
        edges = _without_pairs(inside)
    else:
        edges = edges - x0 * height
    flips = np.zeros((x1 - x0) * (y1 - y0) + 1, bool)
    flips[edges] = True
    crop = np.logical_xor.accumulate(flips[:-1]).reshape(x1 - x0, y1 - y0)
    return np.ascontiguousarray(crop.T), (x0, y0)


def area_px(rle: Rle) -> int:
    """Return the number of True pixels.

    Raises:
        ValueError: as for `decode`.
    """
    edges = edges_of(rle)
    return int((edges[1::2] - edges[0::2]).sum())


def box_of(rle: Rle) -> tuple[int, int, int, int]:
    """Return the tight pixel box (x0, y0, x1, y1) of a mask without decoding it; as `box_xyxy`.

    Raises:
        ValueError: as for `decode`.
    """
    edges = edges_of(rle)
    return _box_of_edges(edges, rle.size_hw[0]) if len(edges) else (0, 0, 0, 0)


def _box_of_edges(edges: NDArray[np.int64], height: int) -> tuple[int, int, int, int]:
    starts, ends = edges[0::2], edges[1::2] - 1
    x0, x1 = int(starts[0]) // height, int(ends[-1]) // height + 1
    if (starts // height != ends // height).any():  # a run across a column end covers the first and the last row
        return x0, 0, x1, height
    return x0, int((starts % height).min()), x1, int((ends % height).max()) + 1


def box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the tight pixel box (x0, y0, x1, y1), ends exclusive; all zero for an empty mask."""
    import numpy as np

    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return (0, 0, 0, 0)
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def edges_of(rle: Rle) -> NDArray[np.int64]:
    """Return the edges int64 [2*runs] of a mask, strictly ascending.

    Raises:
        ValueError: as for `decode`.
    """
    num_px = _num_px(rle.size_hw)
    return edges_of_runs(runs_of_text(rle.counts, num_px))


def edges_of_runs(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the edges of checked run lengths (False first), without empty runs."""
    ends = runs.cumsum()
    return _without_pairs(ends if len(runs) % 2 == 0 else ends[:-1])


def _without_pairs(edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Remove pairs of equal edges, which cancel: an empty run, or a run that continues in the next column."""
    import numpy as np

    if len(edges) < 2 or not (edges[1:] == edges[:-1]).any():
        return edges
    places, times = np.unique(edges, return_counts=True)
    return places[times % 2 == 1]


def rle_of_edges(edges: NDArray[np.int64], size_hw: tuple[int, int]) -> Rle:
    """Return the RLE of a mask from its edges, which are strictly ascending, even in number and at most H*W."""
    import numpy as np

    num_px = size_hw[0] * size_hw[1]
    whole = np.empty(len(edges) + 2, np.int64)
    whole[0], whole[1:-1], whole[-1] = 0, edges, num_px
    runs = np.diff(whole)
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    return Rle(size_hw=(int(size_hw[0]), int(size_hw[1])), counts=_text_of_runs(runs))


def union(rles: Sequence[Rle]) -> Rle:
    """Return the union of several masks of one size.

    Raises:
        ValueError: as for `decode`.
    """
    import numpy as np

    every = [edges_of(rle) for rle in rles]
    if len(every) == 1:
        return rles[0]
    places = np.concatenate(every)
    order = np.argsort(places, kind="stable")
    places = places[order]
    depth = np.cumsum(np.concatenate([np.resize(np.array([1, -1]), len(edges)) for edges in every])[order])
    last = np.append(places[1:] != places[:-1], True)[: len(places)]
    places, inside = places[last], depth[last] > 0
    return rle_of_edges(places[inside != np.append(False, inside[:-1])[: len(inside)]], rles[0].size_hw)


def runs_of_text(counts: str, num_px: int, *, may_end_early: bool = False) -> NDArray[np.int64]:
    """Return the checked run lengths int64, False first, of COCO's compressed text.

    `may_end_early` is as for `checked_runs`.

    Raises:
        ValueError: a character outside the code, an unfinished number, a negative or too long run, or runs that do not
            add up to `num_px`.
    """
    import numpy as np

    try:
        codes = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise ValueError("a character outside the code") from None
    if len(codes) and (codes.min() < 0 or codes.max() > 63):
        raise ValueError("a character outside the code")
    last = np.flatnonzero((codes & 0x20) == 0)
    if not len(last) or last[-1] != len(codes) - 1:
        raise ValueError("the text ends inside a number" if len(codes) else "the text is empty")
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    if digits.max() > _MAX_DIGITS:
        raise ValueError("a number too large for any mask")
    place = np.arange(len(codes)) - np.repeat(first, digits)
    values = np.add.reduceat((codes & 0x1F) << (_CODE_BITS * place), first)
    values -= np.where(codes[last] & 0x10, np.int64(1) << (_CODE_BITS * digits), 0)
    if np.abs(values).max() > num_px:
        raise ValueError(f"a run differs by more than the {num_px} pixels of the image")
    runs = values
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return checked_runs(runs, num_px, may_end_early=may_end_early)


def checked_runs(runs: NDArray[np.int64], num_px: int, *, may_end_early: bool = False) -> NDArray[np.int64]:
    """Check run lengths for a mask of `num_px` pixels and return them unchanged.

    Args:
        runs: int64, False first.
        num_px: number of pixels in the image.
        may_end_early: allow the final False run to be left out.

    Raises:
        ValueError: there are too many runs, a run is negative or too long, or the sum is wrong.
    """
    if len(runs) > num_px + 2:
        raise ValueError(f"{len(runs)} runs for {num_px} pixels")
    if len(runs) and (int(runs.min()) < 0 or int(runs.max()) > num_px):
        raise ValueError(
            "a run is negative" if int(runs.min()) < 0 else f"a run is longer than the {num_px} pixels of the image"
        )
    total = int(runs.sum())
    if total != num_px and not (may_end_early and total < num_px and len(runs) % 2 == 0 and len(runs)):
        raise ValueError(f"runs add up to {total}, not {num_px}")
    return runs


def _num_px(size_hw: tuple[int, int]) -> int:
    height, width = size_hw
    if height < 1 or width < 1 or height * width >= MAX_PIXELS:
        raise ValueError(f"a mask of {height}x{width} pixels")
    return height * width


def _text_of_runs(runs: NDArray[np.int64]) -> str:
    import numpy as np

    values = runs.copy()
    values[3:] -= runs[1:-2]
    table = np.empty((len(values), _MAX_DIGITS), np.uint8)
    used = np.zeros((len(values), _MAX_DIGITS), bool)
    left, open_ = values, np.ones(len(values), bool)
    for digit in range(_MAX_DIGITS):
        code = left & 0x1F
        left = left >> _CODE_BITS
        more = np.where(code & 0x10, left != -1, left != 0)
        table[:, digit] = code + np.where(more, 0x20, 0) + 48
        used[:, digit] = open_
        open_ = open_ & more
        if not open_.any():
            break
    return table[used].tobytes().decode("ascii")
