from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch

from defectory.rle import decode, encode
from defectory.segmentation.arms import ARMS
from defectory.segmentation.augment import to_sample
from defectory.segmentation.batches import Batches
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import Draws, SegmentationImage, repeats_of
from defectory.segmentation.policies import POLICIES, Policy

MakeTiles = Callable[..., list[SegmentationImage]]
FLIPS = POLICIES.get("flips")
STILL = Policy(flip=False)


def large(size_hw: tuple[int, int], box: tuple[int, int, int, int], category_id: int = 1) -> SegmentationImage:
    """A dark image of any size with one bright rectangle (x0, y0, x1, y1)."""
    mask = np.zeros(size_hw, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    image = np.full((*size_hw, 3), 40, np.uint8)
    image[mask] = 240
    return SegmentationImage(id="l", image=image, instances=((category_id, encode(mask)),), image_ids=(1,))


def test_image_masks_and_boxes_are_flipped_together(make_tiles: MakeTiles) -> None:
    tile = make_tiles("t", 1)[0]
    truth = decode(tile.instances[0][1])
    seen: set[tuple[bool, bool]] = set()
    for seed in range(16):
        image, target = to_sample(tile, np.random.default_rng(seed), policy=FLIPS, input_px=64)
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


def test_a_larger_image_is_shown_in_crops_that_hold_its_defect_at_every_place() -> None:
    of = large((200, 150), (100, 30, 120, 60))
    corners: set[tuple[int, int]] = set()
    for seed in range(60):
        image, target = to_sample(of, np.random.default_rng(seed), policy=STILL, input_px=64)
        assert image.shape == (3, 64, 64)
        assert np.array_equal(target["masks"][0].numpy().astype(bool), image.numpy()[0] > 0.5)
        x0, y0, x1, y1 = target["boxes"][0].tolist()
        assert (x1 - x0, y1 - y0) == (20, 30), "the defect is whole"
        corners.add((round(x0), round(y0)))
    assert max(x for x, _ in corners) - min(x for x, _ in corners) > 25
    assert max(y for _, y in corners) - min(y for _, y in corners) > 25


def test_a_defect_larger_than_a_crop_is_shown_in_parts() -> None:
    of = large((300, 260), (10, 120, 250, 132))
    middles = []
    for seed in range(20):
        image, target = to_sample(of, np.random.default_rng(seed), policy=STILL, input_px=64)
        assert np.array_equal(target["masks"][0].numpy().astype(bool), image.numpy()[0] > 0.5)
        middles.append(float(target["boxes"][0][2] - target["boxes"][0][0]))
    assert min(middles) >= 32, "never a sliver"


@pytest.mark.parametrize("name", ["scale", "turns"])
def test_zoom_and_rotation_move_image_and_masks_together(name: str) -> None:
    policy = POLICIES.get(name)
    still = Policy(
        flip=False, zoom=policy.zoom, quarter_turns=policy.quarter_turns, rotation_degrees=policy.rotation_degrees
    )
    of = large((140, 180), (60, 50, 110, 90))
    areas: list[float] = []
    for seed in range(24):
        image, target = to_sample(of, np.random.default_rng(seed), policy=still, input_px=96)
        mask = target["masks"][0].numpy().astype(bool)
        inner = cv2.erode(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        outer = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        grey = image.numpy()[0]
        assert (grey[inner] > 0.8).all()
        assert (grey[~outer] < 0.3).all()
        if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
            continue
        areas.append(mask.sum() / 2000)
    assert min(areas) < 0.75
    assert max(areas) > 1.3


def test_policies_vary_more_from_one_to_the_next() -> None:
    of = large((90, 120), (30, 30, 70, 60))

    def spread_of(name: str) -> float:
        images = [
            to_sample(of, np.random.default_rng(seed), policy=POLICIES.get(name), input_px=64)[0].numpy().mean()
            for seed in range(60)
        ]
        return float(np.std(images))

    assert spread_of("flips") < spread_of("exposure")
    for mild, strong in pairwise(("flips", "exposure", "scale", "turns")):
        one, two = POLICIES.get(mild), POLICIES.get(strong)
        assert (one.contrast, one.blur_px, one.zoom, one.rotation_degrees) <= (
            two.contrast,
            two.blur_px,
            two.zoom,
            two.rotation_degrees,
        )


def test_a_defect_free_tile_gives_empty_targets_of_the_right_shape(make_tiles: MakeTiles) -> None:
    tile = make_tiles("t", 1, with_defect=False)[0]
    image, target = to_sample(tile, np.random.default_rng(0), policy=FLIPS, input_px=64)
    assert image.shape == (3, 48, 64)
    assert (target["boxes"].shape, target["labels"].shape, target["masks"].shape) == ((0, 4), (0,), (0, 48, 64))


def test_an_empty_mask_is_no_instance() -> None:
    full, empty = np.ones((20, 30), bool), np.zeros((20, 30), bool)
    tile = SegmentationImage(
        id="t", image=np.zeros((20, 30, 3), np.uint8), instances=((1, encode(empty)), (2, encode(full)))
    )
    for seed in range(6):
        _, target = to_sample(tile, np.random.default_rng(seed), policy=FLIPS, input_px=64)
        assert target["labels"].tolist() == [2]
        assert target["boxes"].tolist() == [[0, 0, 30, 20]]


def test_every_image_comes_once_per_epoch_and_epochs_differ() -> None:
    draws = Draws([1.0] * 7, seed=1)
    drawn = [draws.at(position) for position in range(70)]
    assert Counter(drawn) == dict.fromkeys(range(7), 10)
    assert drawn[:7] != drawn[7:14]
    again = Draws([1.0] * 7, seed=1)
    assert [again.at(position) for position in (69, 3, 20)] == [drawn[i] for i in (69, 3, 20)], "in any order"


def test_images_of_rare_classes_come_more_often(make_tiles: MakeTiles) -> None:
    common = [large((30, 40), (5, 5, 15, 15), 1) for _ in range(9)]
    rare = [large((30, 40), (5, 5, 15, 15), 2)]
    repeats = repeats_of([*common, *rare], threshold=0.4)
    assert repeats == [1.0] * 9 + [2.0], "the square root of .4 / .1"
    draws = Draws(repeats, seed=0)
    counts = Counter(draws.at(position) for position in range(1100))
    assert counts[9] == pytest.approx(200, abs=3)
    assert repeats_of([*common, *rare], threshold=0.0) == [1.0] * 10
    assert repeats_of(make_tiles("f", 2, with_defect=False), threshold=0.5) == [1.0, 1.0]


def test_a_batch_depends_on_seed_and_step_alone(make_tiles: MakeTiles) -> None:
    config = SegmentationConfig(num_steps=8, batch_size=4, defect_free_share=0.5)

    def images(seed: int, step: int) -> torch.Tensor:
        groups = {"real": make_tiles("d", 6), "defect_free": make_tiles("f", 6, with_defect=False)}
        number, batch = Batches(ARMS.get("real"), "real", (0, 8), groups, config, seed).at(step)
        assert number == step
        assert [len(target["labels"]) for _, target in batch] == [1, 1, 0, 0]
        return torch.stack([image for image, _ in batch])

    assert torch.equal(images(0, 5), images(0, 5))
    assert not torch.equal(images(0, 5), images(0, 6))
    assert not torch.equal(images(0, 5), images(1, 5))
