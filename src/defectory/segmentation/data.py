"""Makes training batches of segmenters from tiles with instances, as functions of (seed, step)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defectory.rle import Rle, box_xyxy, decode
from defectory.segmentation.arms import AT_RANDOM


@dataclass(frozen=True, kw_only=True)
class SegmentationTile:
    """A training tile: RGB uint8 [H,W,3], and (category id, mask) per instance; no instances if defect-free.

    `image_ids` names the data set images that the tile shows parts of: the image it was cut from, or the sources of a
    draft's background and masks. It is empty for tiles that belong to no data set.
    """

    id: str
    image: NDArray[np.uint8]
    instances: tuple[tuple[int, Rle], ...] = ()
    image_ids: tuple[int, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 hex digest of image and instances."""
        instances = [(category_id, rle.size_hw, rle.counts) for category_id, rle in self.instances]
        state = hashlib.sha256(repr((self.image.shape, instances)).encode())
        state.update(np.ascontiguousarray(self.image).tobytes())
        return state.hexdigest()


def to_sample(tile: SegmentationTile, rng: np.random.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Convert a tile to torchvision's detection sample, randomly flipped and mildly re-exposed.

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
    tiles: Mapping[str, Sequence[SegmentationTile]], counts: Mapping[str, int], *, seed: int, step: int
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Draw one step's batch, a pure function of the arguments.

    Args:
        tiles: by source.
        counts: tiles of each source, in the order of the batch. Sources in `AT_RANDOM` are drawn with replacement, all
            others without repeats in an epoch.
        seed: of tiles and augmentation.
        step: counted from 0.
    """
    rng = np.random.default_rng([71, seed, step])
    chosen: list[SegmentationTile] = []
    for source, count in counts.items():
        if count and source in AT_RANDOM:
            indices = rng.integers(len(tiles[source]), size=count).tolist()
        else:
            indices = epoch_indices(len(tiles[source]), count, seed=seed, step=step) if count else []
        chosen += [tiles[source][index] for index in indices]
    return [to_sample(tile, rng) for tile in chosen]


def epoch_indices(count: int, batch_size: int, *, seed: int, step: int) -> list[int]:
    """Return the indices of one step: every tile once per epoch, shuffled per epoch."""
    result: list[int] = []
    for position in range(step * batch_size, (step + 1) * batch_size):
        epoch, place = divmod(position, count)
        result.append(int(np.random.default_rng([72, seed, epoch]).permutation(count)[place]))
    return result
