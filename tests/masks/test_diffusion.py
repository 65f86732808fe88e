from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectory.engine.training.events import Checkpointed
from defectory.errors import WeightsError
from defectory.events import finish
from defectory.files import digest_file
from defectory.masks.canvas import SIDE_PX, from_canvas, on_canvas
from defectory.masks.config import MaskConfig
from defectory.masks.diffusion import MODEL_FILE, MaskDiffusion, branches_of, miss, wish_of
from defectory.masks.generate import fit

Mask = NDArray[np.bool_]


def crack(seed: int, length: int = 44) -> Mask:
    rng = np.random.default_rng(seed)
    ys = 20 + np.cumsum(rng.normal(0, 0.7, length))
    canvas = np.zeros((60, 70), np.uint8)
    points = np.stack([np.arange(length) + 8, ys.round()], axis=1).astype(np.int32)
    cv2.polylines(canvas, [points], False, 1, 3)
    return canvas > 0


def blob(seed: int) -> Mask:
    rng = np.random.default_rng(seed)
    canvas = np.zeros((60, 70), np.uint8)
    axes = (int(rng.integers(8, 14)), int(rng.integers(6, 12)))
    cv2.ellipse(canvas, (34, 30), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return canvas > 0


def forked() -> Mask:
    canvas = np.zeros((70, 90), np.uint8)
    cv2.line(canvas, (8, 35), (80, 35), 1, 3)
    cv2.line(canvas, (44, 35), (66, 8), 1, 3)
    return canvas > 0


MASKS = [*((1, crack(seed)) for seed in range(4)), *((2, blob(seed)) for seed in range(4))]
CONFIG, LONGER = (
    MaskConfig.model_validate({"diffusion": {"num_steps": num_steps, "batch_size": 8}}) for num_steps in (30, 400)
)


def learn(config: MaskConfig, out: Path) -> MaskDiffusion:
    model = MaskDiffusion(MASKS, config=config, seed=1)
    assert finish(model.learn(out)) == digest_file(out / MODEL_FILE)
    return model


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> tuple[MaskDiffusion, Path]:
    out = tmp_path_factory.mktemp("masks")
    return learn(CONFIG, out), out


@pytest.mark.parametrize("mask", [crack(1), blob(2), forked(), np.ones((1, 1), bool), np.ones((4, 40), bool)])
def test_the_canvas_gives_a_mask_back_at_its_size(mask: Mask) -> None:
    ys, xs = np.nonzero(mask)
    crop = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]
    canvas = on_canvas(crop)
    assert canvas.shape == (SIDE_PX, SIDE_PX)
    assert canvas.dtype == np.float32
    assert np.abs(canvas).max() <= 1
    back = from_canvas(canvas, max(crop.shape))
    assert back is not None
    if crop.sum() < 9:
        return
    assert max(back.shape) == pytest.approx(max(crop.shape), abs=2)
    assert back.sum() == pytest.approx(crop.sum(), rel=0.3)


def test_an_empty_canvas_has_no_mask() -> None:
    assert from_canvas(np.full((SIDE_PX, SIDE_PX), -1, np.float32), 20) is None


def test_a_larger_wish_gives_a_larger_mask_of_the_same_shape() -> None:
    canvas = on_canvas(crack(1)[10:40, 5:60])
    small, large = from_canvas(canvas, 20), from_canvas(canvas, 60)
    assert small is not None
    assert large is not None
    assert max(small.shape) == pytest.approx(20, abs=2)
    assert max(large.shape) == pytest.approx(60, abs=3)


def test_masks_are_cropped_whole_and_new(learned: tuple[MaskDiffusion, Path]) -> None:
    model, _ = learned
    require_new_masks({category: [model.draw(category, seed=seed) for seed in range(3)] for category in (1, 2)})


@pytest.mark.long
def test_masks_have_the_shape_of_their_class(tmp_path: Path) -> None:
    model = learn(LONGER, tmp_path)
    drawn = {category: [model.draw(category, seed=seed) for seed in range(8)] for category in (1, 2)}
    require_new_masks(drawn)
    fullness = {
        category: np.median([mask.sum() / max(mask.shape) ** 2 for mask in masks]) for category, masks in drawn.items()
    }
    assert fullness[1] < 0.3 < 0.4 < fullness[2], "thin cracks, compact pits"


def require_new_masks(drawn: dict[int, list[Mask]]) -> None:
    for masks in drawn.values():
        assert all(mask.any() and mask.any(axis=0).all() and mask.any(axis=1).all() for mask in masks), (
            "cropped to its box"
        )
        assert all(cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)[0] == 2 for mask in masks), (
            "one piece"
        )
        assert len({mask.tobytes() for mask in masks}) == len(masks)


def test_a_mask_depends_on_its_seed_alone(learned: tuple[MaskDiffusion, Path]) -> None:
    model, out = learned
    again = MaskDiffusion(MASKS, config=CONFIG, seed=1)
    again.load(out / MODEL_FILE)
    torch.manual_seed(99)
    assert np.array_equal(model.draw(1, seed=5), again.draw(1, seed=5))
    assert not np.array_equal(model.draw(1, seed=5), model.draw(1, seed=6))


def test_severity_keeps_to_quantiles_of_the_training_sizes(learned: tuple[MaskDiffusion, Path]) -> None:
    sized = [(1, crack(0, length)) for length in (14, 20, 40, 56)]
    model = MaskDiffusion([*sized, *MASKS[4:]], config=CONFIG, seed=1)
    model.load(learned[1] / MODEL_FILE)
    small = [max(model.draw(1, seed=seed, severity=(0.0, 0.4)).shape) for seed in range(6)]
    large = [max(model.draw(1, seed=seed, severity=(0.6, 1.0)).shape) for seed in range(6)]
    assert max(small) < min(large)


def test_copies_of_training_masks_are_known_however_turned(learned: tuple[MaskDiffusion, Path]) -> None:
    likeness = learned[0]._likeness  # pyright: ignore[reportPrivateUsage]
    own = on_canvas(crack(2)[crack(2).any(axis=1)][:, crack(2).any(axis=0)]) > 0
    assert likeness(own) == 1
    assert likeness(np.rot90(own)[:, ::-1]) == 1
    assert likeness(on_canvas(forked()[5:40, 6:84]) > 0) < 0.8


@pytest.mark.long
def test_killed_training_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    config = MaskConfig.model_validate({"diffusion": {"num_steps": 6, "batch_size": 4}})
    list(MaskDiffusion(MASKS, config=config, seed=2).learn(tmp_path / "whole"))
    events = MaskDiffusion(MASKS, config=config, seed=2).learn(tmp_path / "left")
    for event in events:
        if getattr(event, "step", 0) == 3:
            events.close()
            break
    assert (tmp_path / "left" / "checkpoint").is_dir()
    resumed = list(MaskDiffusion(MASKS, config=config, seed=2).learn(tmp_path / "left"))
    assert sum(1 for event in resumed if isinstance(event, Checkpointed)) == 1
    assert (tmp_path / "left" / MODEL_FILE).read_bytes() == (tmp_path / "whole" / MODEL_FILE).read_bytes()
    assert sorted(path.name for path in (tmp_path / "left").iterdir()) == ["log.jsonl", MODEL_FILE]


def test_damaged_and_foreign_weights_are_told(learned: tuple[MaskDiffusion, Path], tmp_path: Path) -> None:
    cut = tmp_path / MODEL_FILE
    cut.write_bytes((learned[1] / MODEL_FILE).read_bytes()[:5000])
    with pytest.raises(WeightsError, match="was not trained on these masks; run the stage `learn-masks` again"):
        MaskDiffusion(MASKS, config=CONFIG, seed=1).load(cut)
    with pytest.raises(WeightsError, match="was not trained on these masks"):
        MaskDiffusion(MASKS[:4], config=CONFIG, seed=1).load(learned[1] / MODEL_FILE)


def test_a_miss_counts_size_and_branches() -> None:
    mask = forked()[5:40, 6:84]
    assert branches_of(mask) == 1
    assert branches_of(blob(1)) == 0
    wish = wish_of(1, mask, 1.0)
    assert miss(mask, wish) == 0
    assert miss(mask, wish_of(1, mask, 3.0)) == pytest.approx(0.6)
    assert miss(np.kron(mask, np.ones((2, 2), bool)), wish) == pytest.approx(2, abs=0.4), (
        "twice as large has four times the area"
    )


def test_the_statistical_model_draws_as_many_branches_as_are_asked_for() -> None:
    counts = {
        number: np.mean(
            [
                branches_of(fit([(1, crack(s, 56)) for s in range(3)], num_branches=number).draw(1, seed=seed))
                for seed in range(8)
            ]
        )
        for number in (0, 1, 3)
    }
    assert counts[0] < 0.5
    assert counts[0] < counts[1] < counts[3]
