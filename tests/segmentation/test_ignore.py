from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork

from defectory.artifacts.annotation import Category
from defectory.errors import ConfigError
from defectory.rle import decode, encode
from defectory.segmentation.augment import to_sample
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter, require_heeding
from defectory.segmentation.models.ignore import central, mask_loss, shares_of
from defectory.segmentation.policies import POLICIES, Policy
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import train_segmenter
from defectory.segmentation.windows import Doubt, cut_windows

MakeTiles = Callable[..., list[SegmentationImage]]
SIZE_HW = (64, 96)
BOX = (20, 10, 40, 30)


def target(*, doubtful: bool = False, ignored: tuple[int, int, int, int] | None = None) -> dict[str, Tensor]:
    x0, y0, x1, y1 = BOX
    masks = torch.zeros(1, *SIZE_HW, dtype=torch.uint8)
    masks[0, y0:y1, x0:x1] = 1
    ignore = torch.zeros(SIZE_HW, dtype=torch.uint8)
    if ignored is not None:
        ignore[ignored[1] : ignored[3], ignored[0] : ignored[2]] = 1
    return {
        "boxes": torch.tensor([BOX], dtype=torch.float32),
        "labels": torch.tensor([2]),
        "masks": masks,
        "ignore": ignore,
        "is_doubtful": torch.tensor([doubtful]),
    }


def without_doubt(of: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in of.items() if name not in ("ignore", "is_doubtful")}


@pytest.fixture(scope="module")
def model() -> Any:
    return build_segmenter("light", Build(num_classes=2, init="random"), seed=0)[0].train()


def losses(model: Any, *targets: dict[str, Tensor]) -> dict[str, Tensor]:
    images = [torch.rand(3, *SIZE_HW, generator=torch.Generator().manual_seed(n)) for n in range(len(targets))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return model(images, list(targets))


def test_without_doubt_losses_and_gradients_are_those_of_torchvision_to_the_bit(model: Any) -> None:
    plain: Any = copy.deepcopy(model)
    plain.rpn.__class__, plain.roi_heads.__class__ = RegionProposalNetwork, RoIHeads
    assert isinstance(model, MaskRCNN)
    certain = without_doubt(target())
    ours, theirs = losses(model, certain), losses(plain, certain)
    assert {name: value.item() for name, value in ours.items()} == {n: v.item() for n, v in theirs.items()}
    assert list(model.state_dict()) == list(plain.state_dict())


def test_an_image_with_nothing_to_ignore_has_the_losses_of_one_without_doubt(model: Any) -> None:
    ours, theirs = losses(model, target()), losses(model, without_doubt(target()))
    for name, value in theirs.items():
        assert ours[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_a_doubtful_box_teaches_nothing_about_its_anchors(model: Any) -> None:
    anchors = torch.tensor([[20.0, 10, 40, 30], [22, 12, 44, 32], [0, 30, 16, 46], [28, 10, 48, 30]])
    (labels,), _ = model.rpn.assign_targets_to_anchors([anchors], [target(doubtful=True)])
    assert labels.tolist() == [-1, -1, 0, -1], "only the anchor elsewhere is background"
    (certain,), _ = model.rpn.assign_targets_to_anchors([anchors], [target()])
    assert certain.tolist()[0] == 1


def test_the_best_anchor_of_a_small_doubtful_box_is_left_out(model: Any) -> None:
    anchors = torch.tensor([[0.0, 0, 64, 48], [0, 30, 16, 46]])
    (labels,), _ = model.rpn.assign_targets_to_anchors([anchors], [target(doubtful=True)])
    assert labels.tolist() == [-1, 0]


def test_anchors_in_ignored_pixels_are_no_background_and_those_of_certain_boxes_stay(model: Any) -> None:
    anchors = torch.tensor([[20.0, 10, 40, 30], [0, 30, 16, 46], [48, 0, 64, 10]])
    of = target(ignored=(0, 8, 44, 48))
    (labels,), _ = model.rpn.assign_targets_to_anchors([anchors], [of])
    assert labels.tolist() == [1, -1, 0]


def test_a_doubtful_box_gives_its_proposals_no_gradient(model: Any) -> None:
    proposals = [torch.tensor([[20.0, 10, 40, 30], [21, 11, 41, 31]])]
    features = {name: torch.rand(1, 64, 64 // s, 96 // s) for name, s in (("0", 4), ("1", 8), ("2", 16), ("pool", 32))}
    for of in (target(doubtful=True), target(doubtful=False)):
        model.zero_grad()
        _, found = model.roi_heads(features, proposals, [SIZE_HW], [of])
        torch.stack(list(found.values())).sum().backward()
        gradient = sum(float(p.grad.abs().sum()) for p in model.roi_heads.parameters() if p.grad is not None)
        assert (gradient == 0) == bool(of["is_doubtful"][0])
        assert all(torch.isfinite(value) for value in found.values())


def test_mostly_ignored_background_is_no_proposal_and_a_defect_in_it_is(model: Any) -> None:
    proposals = torch.tensor([[20.0, 10, 40, 30], [0, 32, 16, 48], [48, 0, 64, 10]])
    kept = model.roi_heads._kept(proposals, target(ignored=(0, 8, 44, 48)))
    assert kept.tolist() == proposals[[0, 2]].tolist()


def test_ignored_pixels_leave_the_mask_loss() -> None:
    logits = torch.zeros(1, 3, 20, 20)
    logits[0, 2, :, :10] = 3.0
    logits.requires_grad_(True)
    boxes, places = [torch.tensor([BOX], dtype=torch.float32)], [torch.tensor([0])]
    right_half = {**target(ignored=(30, 0, 64, 48)), "masks": torch.ones(1, *SIZE_HW, dtype=torch.uint8)}
    loss = mask_loss(logits, boxes, [right_half], places)
    assert loss.item() == pytest.approx(float(np.log1p(np.exp(-3.0))), rel=1e-3)
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad[0, 2, :, 10:].any()
    assert logits.grad[0, 2, :, :9].all()


def test_with_all_pixels_ignored_the_mask_loss_is_0() -> None:
    logits = torch.randn(1, 3, 20, 20, requires_grad=True)
    boxes, places = [torch.tensor([BOX], dtype=torch.float32)], [torch.tensor([0])]
    loss = mask_loss(logits, boxes, [target(ignored=(0, 0, 64, 48))], places)
    assert loss.item() == 0
    loss.backward()
    assert logits.grad is not None
    assert not logits.grad.any()


def test_an_image_that_is_doubtful_everywhere_teaches_the_whole_model_nothing(model: Any) -> None:
    model.zero_grad()
    found = losses(model, target(doubtful=True, ignored=(0, 0, 96, 64)))
    assert {name: value.item() for name, value in found.items()} == dict.fromkeys(found, 0.0)
    torch.stack(list(found.values())).sum().backward()
    assert not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_shares_count_the_pixels_of_a_box_within_the_image() -> None:
    ignore = torch.zeros(SIZE_HW, dtype=torch.uint8)
    ignore[:, :16] = 1
    boxes = torch.tensor([[8.0, 0, 24, 10], [-20, -20, 16, 5], [30, 5, 40, 9], [70, 70, 80, 80]])
    assert shares_of(ignore, boxes).tolist() == [0.5, 1.0, 0.0, 0.0]
    assert central(torch.tensor([[0.0, 0, 8, 4]])).tolist() == [[2.0, 1.0, 6.0, 3.0]]


def in_red(size_hw: tuple[int, int]) -> SegmentationImage:
    """An image whose ignored pixels are red, one doubtful instance green, and a certain one blue."""
    image = np.full((*size_hw, 3), 20, np.uint8)
    ignore, first, second = (np.zeros(size_hw, bool) for _ in range(3))
    ignore[4:20, 30:55], first[10:30, 5:25], second[24:44, 30:58] = True, True, True
    for channel, mask in enumerate((ignore, first, second)):
        image[mask, channel] = 250
    return SegmentationImage(
        id="r",
        image=image,
        instances=((1, encode(first)), (2, encode(second))),
        ignore=encode(ignore),
        is_doubtful=(True, False),
    )


@pytest.mark.parametrize("name", ["flips", "turns", "scale"])
def test_ignored_pixels_move_with_the_image(name: str) -> None:
    policy: Policy = replace(POLICIES.get(name), contrast=0.0, brightness=0.0, blur_px=0.0, noise=0.0)
    for seed in range(12):
        image, found = to_sample(in_red(SIZE_HW), np.random.default_rng(seed), policy=policy, input_px=64)
        ignore, red = found["ignore"].numpy().astype(bool), image.numpy()[0] > 0.5
        assert ignore.shape == red.shape
        assert (ignore & red).sum() / (ignore | red).sum() > 0.9
        for label, flag in zip(found["labels"].tolist(), found["is_doubtful"].tolist(), strict=True):
            assert flag == (label == 1)


def test_doubt_changes_neither_image_nor_masks_of_a_sample(make_tiles: MakeTiles) -> None:
    tile = make_tiles("t", 1)[0]
    doubted = replace(tile, ignore=tile.instances[0][1], is_doubtful=(True,))
    assert doubted.digest() != tile.digest()
    for seed in range(5):
        plain, doubt = (
            to_sample(of, np.random.default_rng(seed), policy=POLICIES.get("turns"), input_px=32)
            for of in (tile, doubted)
        )
        assert torch.equal(plain[0], doubt[0])
        assert torch.equal(plain[1]["masks"], doubt[1]["masks"])
        assert "ignore" not in plain[1]


def test_windows_cut_what_is_ignored_and_hold_nothing_where_there_is_none() -> None:
    image = np.full((300, 500, 3), 30, np.uint8)
    first, second, ignore = (np.zeros((300, 500), bool) for _ in range(3))
    first[20:40, 30:60], second[250:280, 450:490], ignore[22:30, 32:70] = True, True, True
    image[ignore] = (250, 30, 30)
    near, far = cut_windows(
        image,
        [(1, encode(first)), (2, encode(second))],
        name="a",
        image_ids=(1,),
        sizing=Sizing(scale=1.0, input_px=64),
        seed=0,
        doubt=Doubt(ignore=encode(ignore), is_doubtful=(True, False)),
    )[0]
    assert near.ignore is not None
    assert np.array_equal(decode(near.ignore), near.image[..., 0] == 250)
    assert near.is_doubtful == (True,)
    assert (far.ignore, far.is_doubtful) == (None, ())
    assert not far.has_doubt


def test_a_family_that_cannot_ignore_is_refused_in_one_line(make_tiles: MakeTiles, tmp_path: Path) -> None:
    require_heeding("light")
    with pytest.raises(ConfigError, match=r"curation\.ignore.*mask2former cannot leave") as error:
        require_heeding("mask2former")
    assert "\n" not in str(error.value)
    doubted = [replace(tile, is_doubtful=(True,)) for tile in make_tiles("t", 2)]
    with pytest.raises(ConfigError, match="mask2former"):
        next(
            train_segmenter(
                arm="real_plain",
                images={"real": doubted},
                validate=lambda _: 0.0,
                categories=(Category(id=1, name="a"), Category(id=2, name="b")),
                sizing=Sizing(scale=1.0, input_px=64),
                config=SegmentationConfig(model="mask2former", num_steps=2, batch_size=2),
                seed=0,
                out=tmp_path / "out",
            )
        )
