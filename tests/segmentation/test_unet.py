"""The family that finds pixels first. Its weights are random here, except where the test says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch.nn.functional import interpolate

from defectory.artifacts.annotation import Category
from defectory.events import finish
from defectory.rle import decode, encode
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter, kept_in_start
from defectory.segmentation.models.unet import (
    MIN_AREA_PX,
    NO_LABEL,
    Decoder,
    LabelMap,
    detections,
    label_map,
    losses_of,
    regions,
)
from defectory.segmentation.predict import predict_images
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.start import save_start, shipped_start
from defectory.segmentation.training import load_segmenter, train_segmenter

CLASSES = (Category(id=1, name="crack"), Category(id=2, name="pit"))


def box(height: int, width: int, *where: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """A mask of boxes xyxy."""
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in where:
        mask[y0:y1, x0:x1] = True
    return mask


def target(masks: list[NDArray[np.bool_]], labels: list[int], **more: Any) -> dict[str, torch.Tensor]:
    stacked = torch.from_numpy(np.array(masks)).to(torch.uint8)
    return {"labels": torch.tensor(labels), "masks": stacked, **{k: torch.as_tensor(v) for k, v in more.items()}}


def test_it_learns_lines_two_pixels_wide_is_saved_and_finds_them(tmp_path: Path) -> None:
    tiles: list[SegmentationImage] = []
    for index in range(4):
        rng = np.random.default_rng(index)
        image = rng.integers(120, 150, (64, 88, 3)).astype(np.uint8)
        line = np.zeros((64, 88), np.uint8)
        y0, y1 = (int(y) for y in rng.integers(8, 56, 2))
        cv2.line(line, (6, y0), (80, y1), 1, 2)
        image[line > 0] = 20
        tiles.append(SegmentationImage(id=f"t{index}", image=image, instances=((1, encode(line > 0)),)))
    config = SegmentationConfig(
        model="unet",
        num_steps=60,
        batch_size=4,
        learning_rate=3e-3,
        validate_every=60,
        mixed_precision="no",
        ema_decay=0,
        init="random",
    )
    trained = finish(
        train_segmenter(
            arm="real",
            images={"real": tiles},
            validate=lambda _: 0.0,
            categories=CLASSES,
            sizing=Sizing(scale=1.0, input_px=96),
            config=config,
            seed=0,
            out=tmp_path,
        )
    )
    assert trained.losses[-1] < 0.3 * trained.losses[0]
    model, _, _ = load_segmenter(tmp_path)
    found = predict_images(model, [(i, tile.image) for i, tile in enumerate(tiles)], scale=1.0, min_score=0.5)
    for tile, (best, *_) in zip(tiles, found, strict=True):
        mask, truth = decode(best.rle), decode(tile.instances[0][1])
        assert best.category_id == 1
        assert (mask & truth).sum() / (mask | truth).sum() > 0.6


def test_the_decoder_joins_maps_whose_layers_are_frozen_and_others() -> None:
    """It convolves them apart, which is the same as joined."""
    torch.manual_seed(0)
    decoder = Decoder([4, 5, 6, 7, 8])
    maps = [torch.randn(2, width, 48 >> i, 32 >> i) for i, width in enumerate([4, 5, 6, 7, 8])]
    others = [one.clone().requires_grad_(i > 1) for i, one in enumerate(maps)]
    maps = [one.requires_grad_(i > 1) for i, one in enumerate(maps)]

    *skips, above = others
    joined: list[torch.Tensor] = []
    for skip, block in zip(reversed(skips), reversed(decoder.blocks), strict=True):
        above = block(torch.cat([interpolate(above, skip.shape[-2:], mode="bilinear"), skip], dim=1))
        joined.insert(0, above)
    apart = decoder(maps)
    for one, other in zip(apart, joined, strict=True):
        torch.testing.assert_close(one, other)

    parameters = list(decoder.parameters())
    wanted = torch.autograd.grad(torch.stack([one.square().mean() for one in joined]).sum(), [*parameters, *others[2:]])
    found = torch.autograd.grad(torch.stack([one.square().mean() for one in apart]).sum(), [*parameters, *maps[2:]])
    torch.testing.assert_close(found, wanted)


def test_an_image_finds_the_same_beside_others_of_another_size() -> None:
    model = build_segmenter("unet", Build(num_classes=2, init="random"), seed=0)[0].eval()
    small, large = torch.rand(3, 45, 70), torch.rand(3, 64, 130)
    with torch.no_grad():
        alone, (beside, other) = model([small])[0], model([small, large])
    assert all(torch.equal(value, beside[name]) for name, value in alone.items())
    assert beside["masks"].shape[1:] == (1, 45, 70)
    assert other["masks"].shape[1:] == (1, 64, 130)


def test_mirrored_an_image_has_the_mean_chances_of_its_four_mirror_images() -> None:
    plain: Any = build_segmenter("unet", Build(num_classes=2, init="random"), seed=0)[0].eval()
    model, built = build_segmenter("unet", Build(num_classes=2, init="random", mirrored=True), seed=0)
    mirrored: Any = model.eval()
    # with all heads at their start there is nothing to tell classes apart by
    for segmenter in (plain, mirrored):
        torch.nn.init.constant_(segmenter.class_head.layers[0].weight[0], 0.3)
    image = torch.rand(3, 45, 70)
    with torch.no_grad():
        every = [
            np.asarray(plain.chances(torch.from_numpy(image.numpy()[:, ::y, ::x].copy())))[:, ::y, ::x]
            for y in (1, -1)
            for x in (1, -1)
        ]
        found = mirrored.chances(image)
        assert np.allclose(found, np.mean(every, axis=0), atol=1e-6)
        assert not np.allclose(found, every[0], atol=1e-3)
        assert torch.allclose(mirrored.chances(image.flip(1)), found.flip(1), atol=1e-6)
        again: Any = build_segmenter("unet", Build(num_classes=2, built=built), seed=0)[0].eval()
        again.load_state_dict(mirrored.state_dict())
        assert torch.equal(again.chances(image), found)


@pytest.mark.parametrize(
    ("settings", "is_mirrored"), [({}, True), ({"mirrored": False}, False), ({"augmentation": "still:STILL"}, False)]
)
def test_images_are_mirrored_in_prediction_only_if_they_are_in_training(
    settings: dict[str, Any], is_mirrored: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = "from defectory.segmentation.policies import Policy\nSTILL = Policy(flip=False)\n"
    (tmp_path / "still.py").write_text(policy, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    tile = SegmentationImage(
        id="t", image=np.full((40, 56, 3), 90, np.uint8), instances=((1, encode(box(40, 56, (8, 8, 30, 20)))),)
    )
    config = SegmentationConfig(model="unet", init="random", num_steps=2, batch_size=1, **settings)
    training = train_segmenter(
        arm="real",
        images={"real": [tile]},
        validate=lambda model: 0.0,
        categories=CLASSES,
        sizing=Sizing(scale=1.0, input_px=56),
        config=config,
        seed=0,
        out=tmp_path / "out",
    )
    finish(training)
    model: Any = load_segmenter(tmp_path / "out")[0]
    assert model.mirrored == is_mirrored


def test_it_starts_from_the_decoder_of_a_pretraining_whatever_the_classes(tmp_path: Path) -> None:
    trained: Any = build_segmenter("unet", Build(num_classes=1, init="random"), seed=3)[0]
    (tmp_path / "trained").mkdir()
    save_file(trained.state_dict(), tmp_path / "trained" / "model.safetensors")
    save_start(tmp_path / "trained", tmp_path / "start", without=kept_in_start("unet"))
    assert not any(name.startswith("encoder") for name in load_file(tmp_path / "start" / "model.safetensors"))
    build = Build(num_classes=3, weights=tmp_path / "start")
    model: Any = build_segmenter("unet", build, seed=4)[0].eval()
    about = build_segmenter("unet", build, seed=4)[1]
    assert about["weights"]["folder"] == "start"
    own, other = model.decoder.state_dict(), trained.decoder.state_dict()
    assert all(torch.allclose(own[name], other[name], atol=2e-3) for name in own)
    # beside one class or three, a pixel has the same chance of being a defect
    image = torch.rand(3, 40, 60)
    with torch.no_grad():
        trained.eval().encoder.load_state_dict(model.encoder.state_dict())
        assert torch.allclose(model.chances(image).sum(dim=0), trained.chances(image)[0], atol=2e-2)


def test_without_a_folder_the_decoder_starts_from_the_shipped_one() -> None:
    shipped = load_file(shipped_start("unet") / "model.safetensors")
    models = [build_segmenter("unet", Build(num_classes=classes), seed=seed) for classes, seed in ((2, 0), (3, 1))]
    for model, built in models:
        own = model.state_dict()
        decoder = [name for name in shipped if name.startswith("decoder.")]
        assert decoder
        assert all(torch.equal(own[name], shipped[name].float()) for name in decoder)
        assert torch.equal(own["classify.weight"], shipped["classify.weight"].float())
        # every class is as likely as the others
        segmenter: Any = model.eval()
        chances = segmenter.chances(torch.rand(3, 40, 60))
        assert torch.allclose(chances, chances[:1].expand_as(chances))
        assert "weights" not in built, "they are not the user's"
        assert built["encoder"]["file"].startswith("efficientnet-lite0")


def each(chance: NDArray[np.float32]) -> list[NDArray[np.bool_]]:
    """The regions of a map of chances."""
    places, count = regions(chance)
    assert places.max() == count
    return [places == number for number in range(1, count + 1)]


def test_a_region_is_cut_out_at_the_highest_level_that_it_reaches() -> None:
    chance = np.zeros((40, 90), np.float32)
    chance[5:10, 5:20] = 0.3
    chance[6:9, 8:16] = 0.9
    chance[25:30, 40:60] = 0.3
    chance[20:23, 70:85] = 0.05
    found = each(chance)
    assert [mask.sum() for mask in found] == [3 * 8, 5 * 20]
    assert (found[0] == box(40, 90, (8, 6, 16, 9))).all()
    assert (found[1] == box(40, 90, (40, 25, 60, 30))).all()


def test_pieces_are_one_instance_where_a_path_of_half_their_level_joins_them() -> None:
    chance = np.zeros((30, 90), np.float32)
    for x0 in (5, 24, 50, 67):
        chance[10:13, x0 : x0 + 15] = 0.8
    # a weak path around a gap, a weaker one, and a gap without one
    chance[7, 12:30] = chance[8:10, 12] = chance[8:10, 29] = 0.25
    chance[11, 39:50] = 0.15
    joined, *apart = each(chance)
    assert (joined == box(30, 90, (5, 10, 20, 13), (24, 10, 39, 13))).all()
    assert [mask.sum() for mask in apart] == [3 * 15, 3 * 15]


def test_regions_of_true_pixels_are_their_connected_pieces() -> None:
    """Labels a pixel apart stay apart, whatever their shapes."""
    true = np.random.default_rng(0).random((40, 70)) < 0.04
    true = cv2.dilate(true.astype(np.uint8), np.ones((2, 2), np.uint8))
    count, labels, stats, _ = cv2.connectedComponentsWithStats(true, connectivity=8)
    wanted = {tuple(np.flatnonzero(labels == i)) for i in range(1, count) if stats[i, cv2.CC_STAT_AREA] >= MIN_AREA_PX}
    assert {tuple(np.flatnonzero(mask)) for mask in each(true.astype(np.float32))} == wanted
    assert len(wanted) > 3


def test_detections_have_mean_chances_as_scores_and_boxes_without_their_right_border() -> None:
    chances = torch.zeros(2, 40, 60)
    chances[1, 4:8, 10:20] = 0.6
    chances[0, 20:30, 30:40] = 0.9
    chances[0, 20:30, 30:35] = 0.7
    found = detections(chances)
    assert found["labels"].tolist() == [1, 2]
    assert found["scores"].tolist() == pytest.approx([0.8, 0.6])
    assert found["boxes"].tolist() == [[30, 20, 40, 30], [10, 4, 20, 8]]
    assert found["masks"].shape == (2, 1, 40, 60)
    # the classes of a region compete, and what lies below .05 is not told
    chances = torch.zeros(3, 20, 30)
    chances[0, 5:10, 5:15], chances[1, 5:10, 5:15], chances[2, 5:10, 5:15] = 0.2, 0.45, 0.02
    shared = detections(chances)
    assert shared["labels"].tolist() == [2, 1]
    assert shared["scores"].tolist() == pytest.approx([0.45, 0.2])
    assert torch.equal(shared["masks"][0], shared["masks"][1])
    assert int(shared["masks"][0].sum()) == 50
    # of very many regions the strongest are told
    specks = torch.zeros(1, 300, 400)
    specks[0, ::10, ::10] = specks[0, 1::10, ::10] = specks[0, ::10, 1::10] = specks[0, 1::10, 1::10] = 0.6
    specks[0, :2, :2] = 0.9
    many = detections(specks)
    assert len(many["scores"]) == 100
    assert many["scores"][:2].tolist() == pytest.approx([0.9, 0.6])
    nothing = detections(torch.zeros(2, 33, 47))
    assert [tuple(nothing[name].shape) for name in ("boxes", "labels", "scores", "masks")] == [
        (0, 4),
        (0,),
        (0,),
        (0, 1, 33, 47),
    ]


def test_the_smaller_of_two_instances_shows_and_what_is_doubtful_has_no_label() -> None:
    large, small, doubtful = box(20, 30, (2, 2, 20, 18)), box(20, 30, (5, 5, 9, 9)), box(20, 30, (22, 0, 26, 20))
    ignore = box(20, 30, (0, 0, 30, 3))
    masks = target([small, large, doubtful], [2, 1, 1], ignore=ignore, is_doubtful=[False, False, True])
    found = label_map(masks, (20, 30))
    expected = np.zeros((20, 30), np.int64)
    expected[large] = 2
    expected[small] = 1
    expected[doubtful | ignore] = NO_LABEL
    assert (found.instances.numpy() == expected).all()
    assert found.labels.tolist() == [2, 1, 1]
    empty = label_map({"labels": torch.zeros(0, dtype=torch.int64), "masks": torch.zeros(0, 20, 30)}, (20, 30))
    assert not empty.instances.any()


def test_losses_are_cross_entropy_and_dice_of_what_counts_and_each_instance_counts_alike() -> None:
    torch.manual_seed(0)
    of_defect, of_class = torch.randn(2, 2, 32, 64), torch.randn(2, 3, 32, 64)
    first, second = torch.zeros(30, 60, dtype=torch.int64), torch.zeros(32, 40, dtype=torch.int64)
    first[3:9, 4:20] = 2
    first[12:14, 4:6] = 3
    first[20:] = NO_LABEL
    second[5, 7] = 1
    # instance 1 of the first image does not show
    maps = [
        LabelMap(instances=first, labels=torch.tensor([2, 3, 1])),
        LabelMap(instances=second, labels=torch.tensor([2])),
    ]
    found = {name: float(loss) for name, loss in losses_of(of_defect, of_class, maps).items()}
    chances, named = of_defect.double().softmax(dim=1).numpy(), of_class.double().softmax(dim=1).numpy()
    shown = np.full((2, 32, 64), NO_LABEL)
    shown[0, :30, :60], shown[1, :, :40] = first, second
    picked = [
        -np.log(chances[b, int(shown[b, y, x] > 0), y, x]) for b, y, x in zip(*np.nonzero(shown >= 0), strict=True)
    ]
    assert found["loss_pixels"] == pytest.approx(np.mean(picked), rel=1e-5)
    true, chance = shown > 0, np.where(shown >= 0, chances[:, 1], 0)
    assert found["loss_dice"] == pytest.approx(1 - 2 * chance[true].sum() / (chance.sum() + true.sum()), rel=1e-5)
    of_instances = [
        -np.log(named[0, 2][shown[0] == 2]).mean(),
        -np.log(named[0, 0][shown[0] == 3]).mean(),
        -np.log(named[1, 1, 5, 7]),
    ]
    assert found["loss_class"] == pytest.approx(np.mean(of_instances), rel=1e-5)


def test_a_batch_in_which_nothing_counts_has_losses_of_zero_with_a_gradient() -> None:
    logits = [torch.randn(1, channels, 32, 32, requires_grad=True) for channels in (2, 3)]
    nothing = LabelMap(instances=torch.full((32, 32), NO_LABEL), labels=torch.zeros(0, dtype=torch.int64))
    losses = losses_of(logits[0], logits[1], [nothing])
    torch.stack(list(losses.values())).sum().backward()
    assert [float(loss.detach()) for loss in losses.values()] == [0, 0, 0]
    for one in logits:
        assert one.grad is not None
        assert not one.grad.any()


def test_ignored_pixels_change_no_gradient(make_tiles: Callable[..., list[SegmentationImage]]) -> None:
    model: Any = build_segmenter("unet", Build(num_classes=2, init="random"), seed=0)[0].train()
    image = torch.rand(3, 48, 64)
    ignore = box(48, 64, (0, 0, 32, 48))

    def gradient(mask: NDArray[np.bool_]) -> torch.Tensor:
        model.zero_grad()
        losses = model([image], [target([mask], [1], ignore=ignore, is_doubtful=[False])])
        torch.stack(list(losses.values())).sum().backward()
        return torch.cat([part.grad.flatten() for part in (model.classify.weight, model.class_head.layers[0].weight)])

    seen = box(48, 64, (40, 10, 60, 20))
    assert torch.equal(gradient(seen), gradient(seen | box(48, 64, (4, 4, 20, 20))))
    assert not torch.equal(gradient(seen), gradient(box(48, 64, (40, 10, 60, 30))))
