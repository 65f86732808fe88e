from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import torch

from defectory.rle import decode, encode
from defectory.segmentation.data import SegmentationTile, draw_batch, epoch_indices, to_sample

MakeTiles = Callable[..., list[SegmentationTile]]


def test_image_masks_and_boxes_are_flipped_together(make_tiles: MakeTiles) -> None:
    tile = make_tiles("t", 1)[0]
    truth = decode(tile.instances[0][1])
    seen: set[tuple[bool, bool]] = set()
    for seed in range(16):
        image, target = to_sample(tile, np.random.default_rng(seed))
        mask = target["masks"][0].numpy().astype(bool)
        bright = image.numpy().max(axis=0) > 0.7
        assert np.array_equal(mask, bright)
        x0, y0, x1, y1 = (int(v) for v in target["boxes"][0])
        assert mask[y0:y1, x0:x1].all()
        assert mask.sum() == truth.sum() == (y1 - y0) * (x1 - x0)
        assert target["labels"].tolist() == [1]
        seen |= {
            (fy, fx)
            for fy in (False, True)
            for fx in (False, True)
            if np.array_equal(mask, truth[:: 1 - 2 * fy, :: 1 - 2 * fx])
        }
    assert len(seen) == 4, "all four flips occur"


def test_a_defect_free_tile_gives_empty_targets_of_the_right_shape(make_tiles: MakeTiles) -> None:
    image, target = to_sample(make_tiles("t", 1, with_defect=False)[0], np.random.default_rng(0))
    assert image.shape == (3, 48, 64)
    assert (target["boxes"].shape, target["labels"].shape, target["masks"].shape) == ((0, 4), (0,), (0, 48, 64))


def test_an_empty_mask_is_no_instance() -> None:
    full, empty = np.ones((20, 30), bool), np.zeros((20, 30), bool)
    tile = SegmentationTile(
        id="t", image=np.zeros((20, 30, 3), np.uint8), instances=((1, encode(empty)), (2, encode(full)))
    )
    _, target = to_sample(tile, np.random.default_rng(0))
    assert target["labels"].tolist() == [2]
    assert target["boxes"].tolist() == [[0, 0, 30, 20]]


def test_every_tile_comes_once_per_epoch_and_epochs_differ() -> None:
    drawn = [i for step in range(10) for i in epoch_indices(7, 7, seed=1, step=step)]
    assert Counter(drawn) == dict.fromkeys(range(7), 10)
    assert drawn[:7] != drawn[7:14]
    across = [i for step in range(7) for i in epoch_indices(7, 3, seed=1, step=step)]
    assert across == drawn[:21]


def test_a_batch_depends_on_seed_and_step_alone(make_tiles: MakeTiles) -> None:
    def images(seed: int, step: int) -> torch.Tensor:
        batch = draw_batch(
            {"real": make_tiles("d", 6), "defect_free": make_tiles("f", 6, with_defect=False)},
            {"real": 2, "defect_free": 2},
            seed=seed,
            step=step,
        )
        assert [len(target["labels"]) for _, target in batch] == [1, 1, 0, 0]
        return torch.stack([image for image, _ in batch])

    assert torch.equal(images(0, 5), images(0, 5))
    assert not torch.equal(images(0, 5), images(0, 6))
    assert not torch.equal(images(0, 5), images(1, 5))


def test_a_source_without_a_member_in_the_batch_needs_no_tiles(make_tiles: MakeTiles) -> None:
    batch = draw_batch({"real": make_tiles("d", 2), "defect_free": []}, {"real": 5, "defect_free": 0}, seed=0, step=0)
    assert [len(target["labels"]) for _, target in batch] == [1] * 5
