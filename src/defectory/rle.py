"""COCO run-length encoding of masks (column-major, compressed text), the truth for instances."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Rle(BaseModel):
    """A mask of `size_hw` pixels as COCO's compressed run-length text."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_hw: tuple[int, int]
    counts: str


def encode(mask: NDArray[np.bool_]) -> Rle:
    """Encode a bool [H,W] mask (True = defect)."""
    import numpy as np
    from faster_coco_eval.core import mask as mask_api

    coded = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    return Rle(size_hw=(int(mask.shape[0]), int(mask.shape[1])), counts=coded["counts"].decode("ascii"))


def decode(rle: Rle) -> NDArray[np.bool_]:
    """Decode to a bool [H,W] mask."""
    import numpy as np
    from faster_coco_eval.core import mask as mask_api

    coded = {"size": list(rle.size_hw), "counts": rle.counts.encode("ascii")}
    return np.ascontiguousarray(mask_api.decode(coded)).astype(bool)


def area_px(rle: Rle) -> int:
    """Give the number of True pixels."""
    return int(decode(rle).sum())


def box_xyxy(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Give the tight pixel box (x0, y0, x1, y1), ends exclusive; all zero for an empty mask."""
    import numpy as np

    ys, xs = np.nonzero(mask)
    if len(ys) == 0:
        return (0, 0, 0, 0)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
