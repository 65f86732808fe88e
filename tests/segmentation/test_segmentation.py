from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.artifacts.annotation import Category
from defectory.artifacts.tiles import Tiling
from defectory.errors import ConfigError, WeightsError
from defectory.rle import decode, encode
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationTile, draw_batch, epoch_indices, to_sample
from defectory.segmentation.models import build_segmenter
from defectory.segmentation.predict import coco_results, predict_images
from defectory.segmentation.training import load_segmenter, train_segmenter

SIZE_HW = (64, 80)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="burn"))
TILING = Tiling(mode="tile", tile_px=64, scale=1.0, reason="test")


def tile(seed: int, *, defect: bool = True, name: str = "t") -> SegmentationTile:
    rng = np.random.default_rng(seed)
    image = rng.integers(140, 160, (*SIZE_HW, 3)).astype(np.uint8)
    mask = np.zeros(SIZE_HW, bool)
    y, x = rng.integers(4, 30, 2)
    mask[y : y + 20, x : x + 26] = True
    if defect:
        image[mask] = 20
    return SegmentationTile(id=f"{name}{seed}", image=image, instances=((1 + seed % 2, encode(mask)),) if defect else ())


REAL = [tile(i, name="real") for i in range(4)]
SYNTHETIC = [tile(i, name="synthetic") for i in range(10, 13)]
FREE = [tile(i, defect=False, name="free") for i in range(20, 23)]


def train(arm: Any, out: Path, validate: Callable[[Any], float] = lambda _m: 0.0, **changes: Any) -> list[Any]:
    values: dict[str, Any] = {"num_steps": 4, "batch_size": 4, "defect_free_share": 0.25, "validate_every": 2, "checkpoint_every": 2}
    config = SegmentationConfig(**(values | changes))
    return list(
        train_segmenter(
            arm=arm, real=REAL, synthetic=SYNTHETIC, defect_free=FREE, validate=validate, kind="light", categories=CATEGORIES, tiling=TILING,
            config=config, seed=0, out=out,
        )
    )  # fmt: skip


def test_all_arms_take_the_same_steps_and_the_same_defect_free_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from defectory.segmentation import training

    seen: dict[str, list[tuple[str, ...]]] = {}
    arm_now = ""

    def spy(defective: Any, defect_free: Any, **kw: Any) -> Any:
        rng = np.random.default_rng([71, kw["seed"], kw["step"]])
        num_free = round(kw["batch_size"] * kw["defect_free_share"])
        chosen = [defective[i].id for i in epoch_indices(len(defective), kw["batch_size"] - num_free, seed=kw["seed"], step=kw["step"])]
        chosen += [defect_free[int(i)].id for i in rng.integers(len(defect_free), size=num_free)]
        seen.setdefault(arm_now, []).append(tuple(chosen))
        return draw_batch(defective, defect_free, **kw)

    monkeypatch.setattr(training, "draw_batch", spy)
    for arm_now in ("real", "synthetic", "synthetic_then_real"):
        events = train(arm_now, tmp_path / arm_now)
        assert [event.step for event in events] == [1, 2, 3, 4]
    free = {arm: [[i for i in batch if i.startswith("free")] for batch in batches] for arm, batches in seen.items()}
    assert free["real"] == free["synthetic"] == free["synthetic_then_real"]
    kinds = {
        arm: ["synthetic" if any(i.startswith("synthetic") for i in batch) else "real" for batch in batches]
        for arm, batches in seen.items()
    }
    assert kinds == {"real": ["real"] * 4, "synthetic": ["synthetic"] * 4, "synthetic_then_real": ["synthetic"] * 2 + ["real"] * 2}


def test_the_checkpoint_with_the_best_validation_is_kept(tmp_path: Path) -> None:
    states: list[torch.Tensor] = []
    values = iter([0.9, 0.1])

    def validate(model: Any) -> float:
        states.append(model.roi_heads.box_predictor.cls_score.bias.detach().clone())
        return next(values)

    train("real", tmp_path, validate)
    kept = load_segmenter(tmp_path)[0].roi_heads.box_predictor.cls_score.bias  # type: ignore[union-attr]
    assert torch.equal(kept, states[0])
    assert not torch.equal(states[0], states[1])
    assert json.loads((tmp_path / "log.json").read_text())["best_val_map"] == 0.9


def test_an_arm_without_its_tiles_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no synthetic tiles"):
        list(
            train_segmenter(
                arm="synthetic", real=REAL, synthetic=[], defect_free=[], validate=lambda _m: 0.0, kind="light", categories=CATEGORIES, tiling=TILING,
                config=SegmentationConfig(), seed=0, out=tmp_path,
            )
        )  # fmt: skip


def test_a_light_segmenter_learns_to_find_dark_blocks(tmp_path: Path) -> None:
    train("real", tmp_path, num_steps=30, batch_size=4, defect_free_share=0.0, learning_rate=1e-3, validate_every=30, checkpoint_every=30)
    model, _, tiling = load_segmenter(tmp_path)
    found = list(predict_images(model, [(5, REAL[0].image)], tiling))[0]
    assert found
    truth = decode(REAL[0].instances[0][1])
    best = decode(found[0].rle)
    assert found[0].image_id == 5
    assert (best & truth).sum() / (best | truth).sum() > 0.6


def test_images_reach_the_network_as_they_are_in_training_and_in_prediction() -> None:
    model = build_segmenter("light", 2, seed=0)
    for mode in (True, False):
        model.train(mode)
        images, _ = model.transform([torch.zeros(3, 40, 56)], None)
        assert tuple(images.image_sizes[0]) == (40, 56)


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_predictions_lie_in_the_frame_of_the_whole_image(scale: float) -> None:
    model = build_segmenter("light", 2, seed=0)
    image = tile(3).image
    found = list(predict_images(model, [(1, image)], Tiling(mode="tile", tile_px=64, scale=scale, reason="t"), min_score=0.0))[0]
    for row in coco_results(found):
        assert row["segmentation"]["size"] == list(SIZE_HW)  # type: ignore[index]


def test_samples_flip_image_and_mask_together_and_epochs_see_every_tile() -> None:
    for seed in range(8):
        image, target = to_sample(REAL[0], np.random.default_rng(seed))
        mask = target["masks"][0].bool()
        assert image[0][mask].mean() < 0.4 < image[0][~mask].mean()
        x0, y0, x1, y1 = (int(v) for v in target["boxes"][0])
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
    drawn = [i for step in range(5) for i in epoch_indices(10, 4, seed=1, step=step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:20]) == list(range(10))


def test_every_class_starts_from_the_row_of_defect() -> None:
    one, three = build_segmenter("light", 1, seed=0), build_segmenter("light", 3, seed=0)
    weight = one.roi_heads.box_predictor.cls_score.weight  # type: ignore[union-attr]
    rows = three.roi_heads.box_predictor.cls_score.weight  # type: ignore[union-attr]
    assert torch.equal(rows[0], weight[0])
    for row in rows[1:]:
        assert torch.equal(row, weight[1])
    random = build_segmenter("light", 3, seed=0, init="random").roi_heads.box_predictor.cls_score.weight  # type: ignore[union-attr]
    assert not torch.equal(random, rows)


def test_resnet50_is_torchvisions_mask_rcnn() -> None:
    model = build_segmenter("resnet50", 2, seed=0)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3  # type: ignore[union-attr]
    model.eval()
    with torch.no_grad():
        assert set(model([torch.zeros(3, 64, 80)])[0]) == {"boxes", "labels", "scores", "masks"}


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    train("real", tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0" if weights.read_bytes()[-1:] != b"\0" else weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsError, match="digest"):
        load_segmenter(tmp_path)
