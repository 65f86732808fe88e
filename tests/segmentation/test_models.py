from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from defectory.errors import WeightsError
from defectory.rle import decode
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.start import (
    CLASS_HEADS,
    apply_start,
    image_of_class_map,
    save_start,
    split_images,
    spread_rows,
)


@pytest.mark.parametrize("kind", ["light", "resnet50"])
def test_images_are_taken_as_they_are(kind: str) -> None:
    model = build_segmenter(kind, Build(num_classes=2, init="random"), seed=0)[0].eval()
    for size_hw in ((40, 72), (90, 50)):
        images, _ = model.transform([torch.rand(3, *size_hw)])
        assert images.image_sizes == [size_hw]
        with torch.no_grad():
            output = model([torch.rand(3, *size_hw)])[0]
        assert output["masks"].shape[1:] == (1, *size_hw)


def test_random_weights_depend_on_the_seed_alone_and_leave_the_global_generator() -> None:
    torch.manual_seed(4)
    before = torch.get_rng_state()
    first = build_segmenter("light", Build(num_classes=3, init="random"), seed=1)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    again = build_segmenter("light", Build(num_classes=3, init="random"), seed=1)[0].state_dict()
    other = build_segmenter("light", Build(num_classes=3, init="random"), seed=2)[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_the_shipped_start_is_the_same_for_every_seed_and_class() -> None:
    first, second = (
        build_segmenter("light", Build(num_classes=3, init="segmenter"), seed=seed)[0].state_dict() for seed in (0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    scores = first["roi_heads.box_predictor.cls_score.weight"]
    assert scores.shape[0] == 4
    assert torch.equal(scores[1], scores[2])
    assert torch.equal(scores[1], scores[3])
    assert not torch.equal(scores[0], scores[1])


def test_the_encoder_init_takes_the_shipped_encoder_and_trains_it() -> None:
    from defectory.engine.features.encoder import load_encoder

    model = build_segmenter("light", Build(num_classes=1, init="encoder"), seed=0)[0]
    shipped = load_encoder()[0].state_dict()
    own = model.state_dict()
    assert all(torch.equal(own[f"backbone.encoder.{name}"], value) for name, value in shipped.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_rows_of_a_class_are_spread_with_four_rows_per_box() -> None:
    rows = torch.arange(8.0)[:, None]
    assert spread_rows(rows, 4, 2)[:, 0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert spread_rows(rows[:2], 1, 3)[:, 0].tolist() == [0, 1, 1, 1]


def test_a_saved_start_is_applied_and_a_damaged_one_refused(tmp_path: Path) -> None:
    trained = build_segmenter("light", Build(num_classes=1, init="random"), seed=7)[0]
    (tmp_path / "trained").mkdir()
    save_file(dict(trained.state_dict()), tmp_path / "trained" / "model.safetensors")
    save_start(tmp_path / "trained", tmp_path / "start")
    model = build_segmenter("light", Build(num_classes=2, init="random"), seed=8)[0]
    apply_start(model, 2, tmp_path / "start")
    state = model.state_dict()
    for name, value in trained.state_dict().items():
        if not name.startswith(CLASS_HEADS):
            assert torch.equal(state[name], value.half().float()), name
    start, spread = trained.state_dict()[f"{CLASS_HEADS[0]}.bias"], state[f"{CLASS_HEADS[0]}.bias"]
    assert torch.allclose(spread[1:].exp().sum(), start[1].exp(), rtol=1e-3), "the chance of a defect stays what it was"
    about = tmp_path / "start" / "config.json"
    about.write_text(json.dumps({"sha256": "0" * 64}))
    with pytest.raises(WeightsError, match="digest differs"):
        apply_start(model, 2, tmp_path / "start")
    with pytest.raises(WeightsError, match="no segmenter start here"):
        apply_start(model, 2, tmp_path / "nowhere")


def test_class_maps_become_one_instance_per_connected_region() -> None:
    class_map = np.zeros((30, 44), np.uint8)
    class_map[2:8, 2:8] = 3
    class_map[20:28, 30:40] = 3
    class_map[8:12, 2:8] = 5
    class_map[0, 43] = 1  # too small
    tile = image_of_class_map("t", np.zeros((30, 44, 3), np.uint8), class_map)
    masks = [decode(rle) for _, rle in tile.instances]
    assert sorted(int(mask.sum()) for mask in masks) == [24, 36, 80]
    assert {category_id for category_id, _ in tile.instances} == {1}
    empty = image_of_class_map("e", tile.image, np.zeros((30, 44), np.uint8))
    assert split_images([tile, empty]) == ([tile], [empty])
