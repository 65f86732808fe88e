from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from safetensors.torch import load_file

from defectory.artifacts.annotation import Category
from defectory.engine.training.events import Step, Validated
from defectory.engine.training.loop import Trained
from defectory.engine.training.schedule import learning_rate_at
from defectory.errors import ConfigError, WeightsError
from defectory.events import Notice, Work, finish
from defectory.rle import decode
from defectory.segmentation import batches
from defectory.segmentation.arms import ARMS, first_steps
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.predict import predict_images
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import WARMUP_STEPS, load_segmenter, loop_settings, train_segmenter

MakeTiles = Callable[..., list[SegmentationImage]]
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
SIZING = Sizing(scale=1.0, input_px=64)
BUILT_IN = ("real", "synthetic", "synthetic_then_real")
CONFIG = SegmentationConfig(
    model="light", num_steps=6, batch_size=4, defect_free_share=0.25, ema_decay=0, validate_every=2, checkpoint_every=2
)


def train(
    make_tiles: MakeTiles,
    out: Path,
    arm: str,
    *,
    config: SegmentationConfig = CONFIG,
    validate: Callable[[Any], float] = lambda _: 0.0,
) -> Work[Trained]:
    return train_segmenter(
        arm=arm,
        images={
            "real": make_tiles("real", 5),
            "synthetic": make_tiles("made", 7, seed=1),
            "defect_free": make_tiles("free", 9, with_defect=False),
        },
        validate=validate,
        categories=CATEGORIES,
        sizing=SIZING,
        config=config,
        seed=3,
        out=out,
    )


def test_all_arms_take_the_same_steps_and_the_same_defect_free_tiles(
    make_tiles: MakeTiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    steps = 0
    to_sample, adam_step = batches.to_sample, torch.optim.AdamW.step

    def seen(of: SegmentationImage, rng: Any, **how: Any) -> Any:
        drawn.append(of.id)
        return to_sample(of, rng, **how)

    def counted(self: Any, *args: Any) -> Any:
        nonlocal steps
        steps += 1
        return adam_step(self, *args)

    monkeypatch.setattr(batches, "to_sample", seen)
    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    per_arm: dict[str, list[list[str]]] = {}
    for arm in BUILT_IN:
        drawn.clear()
        steps = 0
        events = list(train(make_tiles, tmp_path / arm, arm))
        assert [event.step for event in events if isinstance(event, Step)] == [1, 2, 3, 4, 5, 6]
        assert steps == 6
        per_arm[arm] = [drawn[start : start + 4] for start in range(0, len(drawn), 4)]
        assert len(per_arm[arm]) == 6
    free = {arm: [[t for t in batch if t.startswith("free")] for batch in batches] for arm, batches in per_arm.items()}
    assert all(len(batch) == 1 for batch in free["real"])
    assert free["real"] == free["synthetic"] == free["synthetic_then_real"]
    kinds = {
        arm: ["".join(sorted({t[:4] for t in batch} - {"free"})) for batch in batches]
        for arm, batches in per_arm.items()
    }
    assert kinds == {
        "real": ["real"] * 6,
        "synthetic": ["made"] * 6,
        "synthetic_then_real": ["made"] * 3 + ["real"] * 3,
    }


def test_the_checkpoint_with_the_best_val_score_is_kept(make_tiles: MakeTiles, tmp_path: Path) -> None:
    scores = iter([0.1, 0.9, 0.3])
    states: list[dict[str, torch.Tensor]] = []

    def validate(model: Any) -> float:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    events = list(train(make_tiles, tmp_path, "real", validate=validate))
    checks = [(event.step, event.value) for event in events if isinstance(event, Validated)]
    assert checks == [(2, 0.1), (4, 0.9), (6, 0.3)]
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())
    assert any(not torch.equal(kept[name], value) for name, value in states[2].items())
    assert json.loads((tmp_path / "log.json").read_text())["best_val_score"] == 0.9


@pytest.mark.parametrize(("values", "told"), [((0.0, 0.0, 0.0), 1), ((0.0, 0.2, 0.3), 0), ((0.1, 0.0, 0.0), 1)])
def test_a_training_that_finds_nothing_after_half_of_its_steps_says_so_once(
    make_tiles: MakeTiles, tmp_path: Path, values: tuple[float, ...], told: int
) -> None:
    scores = iter(values)
    events = list(train(make_tiles, tmp_path, "real", validate=lambda _: next(scores)))
    notices = [event.text for event in events if isinstance(event, Notice)]
    assert len(notices) == told
    assert all("after 4 of 6 steps" in text and "segmentation.num_steps" in text for text in notices)


def test_synthetic_then_real_keeps_a_checkpoint_that_has_seen_real_tiles(make_tiles: MakeTiles, tmp_path: Path) -> None:
    scores = iter([0.9, 0.2, 0.1])
    states: list[dict[str, torch.Tensor]] = []

    def validate(model: Any) -> float:
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(scores)

    assert finish(train(make_tiles, tmp_path, "synthetic_then_real", validate=validate)).best == 0.2
    kept = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(kept[name], value) for name, value in states[1].items())
    assert json.loads((tmp_path / "log.json").read_text())["best_val_score"] == 0.2


@pytest.mark.parametrize("mixed_precision", [pytest.param("no", marks=pytest.mark.long), "auto"])
def test_training_lowers_the_loss_and_finds_the_rectangles(
    make_tiles: MakeTiles, tmp_path: Path, mixed_precision: Literal["no", "auto"]
) -> None:
    config = SegmentationConfig(
        model="light",
        num_steps=30,
        batch_size=3,
        defect_free_share=0,
        validate_every=30,
        checkpoint_every=30,
        learning_rate=3e-3,
        mixed_precision=mixed_precision,
    )
    losses = finish(train(make_tiles, tmp_path, "real", config=config)).losses
    assert sum(losses[-6:]) < 0.7 * sum(losses[:6])
    model, categories, sizing = load_segmenter(tmp_path)
    assert (categories, sizing) == (CATEGORIES, SIZING)
    tiles = make_tiles("real", 2)
    for tile, found in zip(
        tiles, predict_images(model, ((i, t.image) for i, t in enumerate(tiles)), scale=sizing.scale), strict=True
    ):
        assert found, "nothing found"
        mask, truth = decode(found[0].rle), decode(tile.instances[0][1])
        assert mask.shape == tile.image.shape[:2]
        assert (mask & truth).sum() / (mask | truth).sum() > 0.5


def test_an_arm_without_its_tiles_is_refused(make_tiles: MakeTiles, tmp_path: Path) -> None:
    def run(arm: str, tiles: dict[str, list[SegmentationImage]]) -> None:
        next(
            train_segmenter(
                arm=arm,
                images=tiles,
                validate=lambda _: 0.0,
                categories=CATEGORIES,
                sizing=SIZING,
                config=CONFIG,
                seed=0,
                out=tmp_path / "out",
            )
        )

    with pytest.raises(ConfigError, match=r"arm synthetic: no synthetic images; check curation"):
        run("synthetic", {"real": make_tiles("real", 2), "synthetic": []})
    with pytest.raises(ConfigError, match=r"arm real: no real images; add annotated images"):
        run("real", {"synthetic": make_tiles("made", 2)})
    with pytest.raises(ConfigError, match=r"segmentation\.arms 'twice': is not known"):
        run("twice", {})
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_files(kill_three_times: Callable[..., tuple[Path, Path]]) -> None:
    whole, killed = kill_three_times(
        """
        import numpy as np
        from defectory.artifacts.annotation import Category
        from defectory.rle import encode
        from defectory.segmentation.config import SegmentationConfig
        from defectory.segmentation.data import SegmentationImage
        from defectory.segmentation.sizing import Sizing
        from defectory.segmentation.training import train_segmenter
        def tiles(seed, with_defect=True):
            mask = np.zeros((48, 64), bool)
            mask[8:20, 10:40] = True
            images = np.random.default_rng(seed).integers(0, 255, (4, 48, 64, 3)).astype(np.uint8)
            instances = ((1, encode(mask)),) * with_defect
            return [SegmentationImage(id=str(i), image=im, instances=instances) for i, im in enumerate(images)]
        def stage(out):
            out.mkdir(parents=True, exist_ok=True)
            (out / ".tmpQ3fx9a").write_bytes(b"left by a killed write of safetensors")
            (out / ".defectory-12-0123abcd.tmp.safetensors").write_bytes(b"left by a killed write of ours")
            config = SegmentationConfig(
                model="light", num_steps=16, batch_size=3, defect_free_share=0.3, validate_every=3, checkpoint_every=2
            )
            for _ in train_segmenter(
                arm="synthetic_then_real",
                images={"real": tiles(0), "synthetic": tiles(1), "defect_free": tiles(2, False)},
                validate=lambda model: float(next(model.parameters()).detach().abs().sum()) % 1,
                categories=(Category(id=1, name="crack"),),
                sizing=Sizing(scale=1.0, input_px=64), config=config, seed=5, out=out,
            ):
                pass
        """
    )
    names = sorted(path.name for path in whole.iterdir())
    assert names == ["log.json", "model.safetensors", "segmenter.json"]
    assert sorted(path.name for path in killed.iterdir()) == names
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in names)


def test_a_run_resumes_from_its_checkpoint_unless_its_tiles_changed(make_tiles: MakeTiles, tmp_path: Path) -> None:
    whole = finish(train(make_tiles, tmp_path / "whole", "real"))
    for name in ("cut", "other"):
        work = train(make_tiles, tmp_path / name, "real")
        for event in work:
            if isinstance(event, Step) and event.step == 5:
                work.close()
    resumed = [event for event in train(make_tiles, tmp_path / "cut", "real") if isinstance(event, Step)]
    assert [(event.step, event.loss) for event in resumed] == [(6, whole.losses[5])]
    assert (tmp_path / "cut" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()

    def others(prefix: str, count: int, *, seed: int = 0, with_defect: bool = True) -> list[SegmentationImage]:
        return make_tiles(prefix, count, seed=seed + 1, with_defect=with_defect)

    anew = [event for event in train(others, tmp_path / "other", "real") if isinstance(event, Step)]
    assert anew[0].step == 1


def test_a_pickle_or_a_damaged_segmenter_is_refused(make_tiles: MakeTiles, tmp_path: Path) -> None:
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "model.pt").write_bytes(b"\x80\x04")
    with pytest.raises(WeightsError, match=r"model\.pt: a pickle"):
        load_segmenter(tmp_path / "pickled")
    with pytest.raises(WeightsError, match="no segmenter here"):
        load_segmenter(tmp_path / "nowhere")
    finish(
        train(
            make_tiles, tmp_path / "made", "real", config=SegmentationConfig(model="light", num_steps=2, batch_size=2)
        )
    )
    weights = tmp_path / "made" / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(WeightsError, match="digest differs"):
        load_segmenter(tmp_path / "made")


def test_each_part_of_synthetic_then_real_has_a_schedule_of_its_own() -> None:
    config = SegmentationConfig(num_steps=100, learning_rate=1.0, real_share_of_steps=0.4)

    def rates(arm: str) -> list[float]:
        begins = first_steps(ARMS.get(arm), name=arm, settings=config, num_steps=100)
        return [learning_rate_at(step, loop_settings(begins, config).schedules) for step in range(100)]

    both = rates("synthetic_then_real")
    for begin, end in ((0, 60), (60, 100)):
        part = both[begin:end]
        assert part.index(max(part)) in (WARMUP_STEPS - 1, WARMUP_STEPS)
        assert max(part) == pytest.approx(1.0)
        assert part[-1] < 0.1
    alone = rates("real")
    assert alone[WARMUP_STEPS:] == sorted(alone[WARMUP_STEPS:], reverse=True)
