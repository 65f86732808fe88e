"""What segmenters train on: squares with instances, batches as functions of (seed, step)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectory.rle import Rle, box_xyxy, decode


@dataclass(frozen=True, kw_only=True)
class SegmentationTile:
    """A training square: RGB uint8 [H,W,3] and (category id, mask) per instance; none for a defect-free one.

    `image_ids` are the images of the data set that it shows anything of: the one it was cut from, or those that a draft
    took its background and its masks from. It is empty for squares of no data set.
    """

    id: str
    image: NDArray[np.uint8]
    instances: tuple[tuple[int, Rle], ...] = ()
    image_ids: tuple[int, ...] = ()


def to_sample(tile: SegmentationTile, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Return a flipped, mildly re-exposed copy of a tile as torchvision's detection sample.

    Returns:
        image float32 [3,H,W] in [0,1], and boxes float [N,4] xyxy, labels int64 [N], masks uint8 [N,H,W].
    """
    flip_x, flip_y = rng.random(2) < 0.5
    image = tile.image.astype(np.float32) / 255
    image = np.clip((image - image.mean()) * rng.uniform(0.9, 1.1) + image.mean() + rng.uniform(-0.04, 0.04), 0, 1)
    masks = [decode(rle) for _, rle in tile.instances]
    step = (-1 if flip_y else 1, -1 if flip_x else 1)
    image = image[:: step[0], :: step[1]]
    masks = [mask[:: step[0], :: step[1]] for mask in masks]
    boxes = [box_xyxy(mask) for mask in masks]
    keep = [i for i, (x0, y0, x1, y1) in enumerate(boxes) if x1 > x0 and y1 > y0]
    height, width = image.shape[:2]
    stacked = np.stack([masks[i] for i in keep]) if keep else np.zeros((0, height, width), bool)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1), {
        "boxes": torch.tensor([boxes[i] for i in keep], dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor([tile.instances[i][0] for i in keep], dtype=torch.int64),
        "masks": torch.from_numpy(stacked.astype(np.uint8)),
    }


def draw_batch(
    defective: Sequence[SegmentationTile],
    defect_free: Sequence[SegmentationTile],
    *,
    batch_size: int,
    defect_free_share: float,
    seed: int,
    step: int,
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return one step's batch, a pure function of its arguments; epochs are shuffled without repeats."""
    rng = np.random.default_rng([71, seed, step])
    num_free = round(batch_size * defect_free_share) if defect_free else 0
    chosen: list[SegmentationTile] = [
        defective[i] for i in epoch_indices(len(defective), batch_size - num_free, seed=seed, step=step)
    ]
    chosen += [defect_free[int(i)] for i in rng.integers(len(defect_free), size=num_free)] if num_free else []
    return [to_sample(tile, rng) for tile in chosen]


def epoch_indices(count: int, batch_size: int, *, seed: int, step: int) -> list[int]:
    """Return the indices of one step: every tile once per epoch, in an order of the epoch's own."""
    result: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        result.append(int(np.random.default_rng([72, seed, epoch]).permutation(count)[place]))
    return result
