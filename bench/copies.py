"""Does curation name copies? Train tiles mirrored, shifted, re-exposed and passed through the autoencoder, and real
test tiles.

Wanted: at least 95% of the copies named, at most 1% of the test tiles. For a run whose tiles, test tiles and class
    images are there:
`python bench/copies.py PROJECT.toml [--each 2]`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from defectory import Project
from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.load import load_base
from defectory.engine.tensors import images_to_tensor, tensor_to_images
from defectory.stages.curate import checker_of

Image = NDArray[np.uint8]
MAX_SHIFT_PX = 8
GAINS, OFFSETS = (0.7, 1.3), (-20.0, 20.0)
BATCH_SIZE = 16


def changed(image: Image, rng: np.random.Generator) -> Image:
    """Give a copy RGB uint8 [H,W,3], mirrored, shifted and re-exposed."""
    image = image[:, ::-1] if rng.random() < 0.5 else image
    image = image[::-1] if rng.random() < 0.5 else image
    dx, dy = rng.integers(-MAX_SHIFT_PX, MAX_SHIFT_PX + 1, 2)
    shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
    moved = cv2.warpAffine(np.ascontiguousarray(image), shift, image.shape[1::-1], borderMode=cv2.BORDER_REFLECT_101)
    return np.clip(moved.astype(np.float32) * rng.uniform(*GAINS) + rng.uniform(*OFFSETS), 0, 255).astype(np.uint8)


def main() -> None:
    """Count copies that are named, by the right name, and test tiles that are taken for copies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--each", type=int, default=2)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    project = Project.open(args.project)
    checker, backbone = checker_of(project.store, project.config), load_base(resolve_base(project.config.base))
    tiles = [tile for tile in project.tiles.of("train") if tile.instances]
    rng = np.random.default_rng(5)
    made = [(tile, changed(project.store.tiles.image(tile), rng)) for tile in tiles for _ in range(args.each)]
    passed: list[Image] = []
    with torch.no_grad():
        for start in range(0, len(made), BATCH_SIZE):
            pictures = images_to_tensor([image for _, image in made[start : start + BATCH_SIZE]])
            passed.extend(tensor_to_images(backbone.decode_latents(backbone.encode_images(pictures))))
    found = [checker.originals.likeness(image, tile.valid_hw) for (tile, _), image in zip(made, passed, strict=True)]
    named = [like.value > checker.copy_limit for like in found]
    # other photographs of the same part show the same picture
    dataset = project.dataset
    group_of = {f"train tile {tile.id}": dataset.image(tile.image_id).group for tile in tiles}
    right = [
        group_of.get(like.name) == group_of[f"train tile {tile.id}"]
        for like, (tile, _) in zip(found, made, strict=True)
    ]
    test = project.store.test_tiles
    real = [checker.originals.likeness(test.image(tile), tile.valid_hw).value for tile in test.tileset.tiles]
    print(
        json.dumps(
            {
                "copies": len(made),
                "named": float(np.mean(named)),
                "by_the_right_name": float(np.mean(right)),
                "test_tiles": len(real),
                "false_alarms": float(np.mean(np.array(real) > checker.copy_limit)),
                "limit": checker.copy_limit,
                "least_likeness_of_a_copy": min(like.value for like in found),
                "most_of_a_test_tile": max(real),
            },
            indent=1,
        )
    )


if __name__ == "__main__":
    main()
