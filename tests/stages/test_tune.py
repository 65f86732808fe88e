"""Validation chooses how segmenters are trained, once for all arms."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from defectory.events import Progress, finish
from defectory.runs.stage import Run, inputs_of
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.tuning import Tuning
from defectory.stages import tune
from defectory.stages.all import stages_of
from defectory.stages.segment import Segment
from defectory.stages.tune import Tune, as_tuned, needs_tuning

TinyRun = tuple[Path, dict[str, Any], list[Any]]
Opened = Callable[..., Run]
SETTINGS = (
    'segmentation.augmentation="auto"',
    "segmentation.num_steps=2",
    "segmentation.max_num_steps=4",
    "segmentation.patience=1",
    "segmentation.batch_size=2",
    "segmentation.validate_every=1",
    "segmentation.max_val_images=2",
    "segmentation.input_px=64",
)


@pytest.fixture
def folder(tiny_run: TinyRun, tmp_path: Path) -> Path:
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replace validation scores by ones that rise and fall, and note each call."""
    calls: list[str] = []
    monkeypatch.setattr(tune, "MIN_VAL_INSTANCES", 1)
    monkeypatch.setattr(tune, "predict", lambda *_: [])

    def score(*_: Any) -> float:
        calls.append("")
        return [0.1, 0.2, 0.15, 0.1][(len(calls) - 1) % 3]

    monkeypatch.setattr(tune, "SCORES", {"segm_map": score})
    return calls


def run_of(opened: Opened, tiny: TinyRun, folder: Path, *more: str, without: str = "-") -> Run:
    return opened(folder, tiny[1], *(setting for setting in SETTINGS if without not in setting), *more)


def test_it_chooses_and_every_arm_takes_what_it_chose(
    tiny_run: TinyRun, open_tiny: Opened, folder: Path, scored: list[str], tmp_path: Path
) -> None:
    run = run_of(open_tiny, tiny_run, folder, "segmentation.tuning_seeds=[0]")
    assert [s.name for s in stages_of(run.config)].count("tune") == 1
    assert all("tune" in s.inputs(run.config) for s in stages_of(run.config) if s.group == "segment")
    out = tmp_path / "out"
    out.mkdir()
    told = finish(Tune().run(run.store(), run.config, out))
    found = Tuning.load(out / "tuning.json")
    assert [t.augmentation for t in found.trials] == ["flips", "exposure", "scale", "turns", found.augmentation]
    assert found.augmentation in told
    assert f"{found.num_steps} steps" in told
    assert 1 <= found.num_steps <= 4
    assert found.trials[-1].num_steps == 4
    assert len(found.trials[-1].val) <= 3, "it ends when validation no longer rises"
    assert sorted(path.name for path in out.iterdir()) == ["tuning.json"], "no weights are left"


def test_an_interrupted_stage_repeats_no_training(
    tiny_run: TinyRun, open_tiny: Opened, folder: Path, scored: list[str], tmp_path: Path
) -> None:
    run = run_of(open_tiny, tiny_run, folder, "segmentation.tuning_seeds=[0]", without="max_num_steps")
    whole, left = tmp_path / "whole", tmp_path / "left"
    for out in (whole, left):
        out.mkdir()
    finish(Tune().run(run.store(), run.config, whole))
    scored.clear()
    work = Tune().run(run.store(), run.config, left)
    steps = (event for event in work if isinstance(event, Progress) and "scale" in event.note)
    list(islice(steps, 1))
    work.close()
    done = len(scored)
    assert {key.split("-")[0] for key in json.loads((left / "trials.json").read_text())} == {"flips", "exposure"}
    finish(Tune().run(run.store(), run.config, left))
    assert len(scored) - done <= 4, "two trainings of two validations were left"
    names = [[t.augmentation for t in Tuning.load(out / "tuning.json").trials] for out in (whole, left)]
    assert names[0] == names[1]
    assert [len(t.val) for t in Tuning.load(left / "tuning.json").trials] == [2] * 4


def test_with_few_defects_on_validation_the_settings_stay(
    tiny_run: TinyRun, open_tiny: Opened, folder: Path, tmp_path: Path
) -> None:
    run = run_of(open_tiny, tiny_run, folder, "segmentation.max_val_images=1")
    told = finish(Tune().run(run.store(), run.config, tmp_path))
    found = Tuning.load(tmp_path / "tuning.json")
    assert (found.augmentation, found.num_steps, found.trials) == ("flips", 2, ())
    assert "too few to choose by" in told


def test_settings_that_choose_nothing_need_no_stage(tiny_run: TinyRun, open_tiny: Opened, folder: Path) -> None:
    run = open_tiny(folder, tiny_run[1])
    assert "tune" not in [s.name for s in stages_of(run.config)]
    assert "tune" not in Segment("real", 0).inputs(run.config)
    plain = SegmentationConfig(model="light")
    assert not needs_tuning(plain)
    assert as_tuned(plain, run.store()) is plain
    assert needs_tuning(SegmentationConfig(max_num_steps=500))


def test_it_runs_again_when_what_is_tried_changes_and_not_for_another_arm(
    tiny_run: TinyRun, open_tiny: Opened, folder: Path
) -> None:
    def digest(*more: str) -> str:
        run = run_of(open_tiny, tiny_run, folder, *more)
        return inputs_of(run, Tune(), {s.name: s for s in stages_of(run.config)}).digest

    own = digest()
    assert digest('segmentation.arms=["real"]', "segmentation.seeds=[3]") == own
    assert digest("segmentation.patience=2") != own
    assert digest("segmentation.tuning_seeds=[1, 2]") != own
    assert digest("segmentation.learning_rate=0.002") != own
