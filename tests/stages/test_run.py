from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.tiles import spread
from defectory.errors import ConfigError, WeightsError
from defectory.events import Progress, StageEnded
from defectory.images.load import load_rgb
from defectory.runs.graph import needed_for, states_of
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of

Open = Callable[..., Run]
Ran = Callable[..., set[str]]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
GUIDE = Path(__file__).parents[2] / "docs" / "guides" / "plain-diffusers.md"


@pytest.fixture
def copied_run(tiny_run: TinyRun, tmp_path: Path) -> TinyRun:
    folder, settings, ended = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy", settings, ended


@pytest.fixture
def ran(open_tiny: Open) -> Callable[..., set[str]]:
    def run(folder: Path, settings: dict[str, Any], *overrides: str, only: list[str] | None = None) -> set[str]:
        events = run_all(open_tiny(folder, settings, *overrides), only=only)
        return {event.stage for event in events if isinstance(event, StageEnded) and not event.skipped}

    return run


def test_all_stages_run_and_leave_what_the_readme_promises(tiny_run: TinyRun) -> None:
    folder, _, ended = tiny_run
    assert all(not event.skipped for event in ended)
    run = folder / "run"
    scores = json.loads((run / "scores.json").read_text())
    for arm in ("real", "synthetic", "synthetic_then_real"):
        assert {"segm_map", "bbox_map", "ap50", "iou", "hausdorff", "pixel_ap", "hd95", "plant"} <= set(scores[arm])
    assert {"mean", "per_class", "shuffled"} <= set(scores["fidelity"])
    assert scores["image_sets"]["encoder"] == "embedded-v1"
    assert scores["image_sets"]["kid"] is not None
    assert (run / "report.html").read_text().lower().startswith("<!doctype html>")


def test_synthetic_set_loads_in_pycocotools_and_every_mask_matches_its_image(tiny_run: TinyRun) -> None:
    from pycocotools.coco import COCO

    synthetic = tiny_run[0] / "run" / "synthetic"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coco = COCO(str(synthetic / "annotations.json"))
    assert len(coco.imgs) == 8
    for image_id, about in coco.imgs.items():
        image = load_rgb(synthetic / "images" / about["file_name"])
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
        assert annotations
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            assert mask.shape == image.shape[:2] == (about["height"], about["width"])
            assert int(mask.sum()) == annotation["area"] > 0
    provenance = [json.loads(line) for line in (synthetic / "provenance.jsonl").read_text().splitlines()]
    assert len(provenance) == 8
    drafts = [draft for record in provenance for draft in record["drafts"]]
    assert all(draft["seed"] is not None and draft["prompt"] for draft in drafts)


def test_nothing_is_run_again_when_nothing_changed(copied_run: TinyRun, ran: Ran) -> None:
    folder, settings, _ = copied_run
    assert ran(folder, settings) == set()


def test_a_changed_setting_runs_its_stage_and_those_after_it_again(copied_run: TinyRun, ran: Ran) -> None:
    folder, settings, _ = copied_run
    again = ran(folder, settings, "curation.difference_threshold=30")
    assert "curate" in again
    assert not again & {
        "import",
        "split",
        "tiles",
        "learn-concept",
        "learn-condition",
        "plan",
        "synthesize",
        "segment-real-seed0",
    }


def test_dry_run_states_name_what_would_run(copied_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = copied_run
    project = open_tiny(folder, settings, "synthesis.num_inference_steps=3")
    states = states_of(project, stages_of(project.config))
    assert states["learn-condition"].state == "up to date"
    for name in ("synthesize", "segment-synthetic-seed0", "report"):
        assert states[name].state == "to be run again"
    assert (
        states["synthesize"].why == "calibrate may change"
        or "synthesis.num_inference_steps: 2 -> 3" in states["synthesize"].why
    )


def test_a_changed_source_image_is_noticed(copied_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = copied_run
    image = next((folder / "source" / "images").iterdir())
    image.write_bytes(image.read_bytes() + b"\0")
    project = open_tiny(folder, settings)
    assert states_of(project, stages_of(project.config))["import"].state == "to be run again"


def test_a_stage_without_its_needs_says_what_to_run(copied_run: TinyRun, ran: Ran) -> None:
    folder, settings, _ = copied_run
    shutil.rmtree(folder / "run" / "plan")
    with pytest.raises(ConfigError, match="plan has not been run"):
        ran(folder, settings, only=["synthesize"])


def test_the_real_arm_is_trained_without_plan_or_drafts(copied_run: TinyRun, ran: Ran) -> None:
    folder, settings, _ = copied_run
    whole = (folder / "run" / "segment" / "real-seed0" / "model.safetensors").read_bytes()
    for name in ("plan", "drafts", "curation", "segment/real-seed0"):
        shutil.rmtree(folder / "run" / name)
    assert ran(folder, settings, only=["segment-real-seed0"]) == {"segment-real-seed0"}
    assert (folder / "run" / "segment" / "real-seed0" / "model.safetensors").read_bytes() == whole


def test_a_number_for_mask_guidance_holds_for_every_class_and_nothing_is_drawn_for_it(
    copied_run: TinyRun, open_tiny: Open
) -> None:
    folder, settings, _ = copied_run
    chosen = json.loads((folder / "run" / "calibration" / "calibration.json").read_text())["classes"]
    assert any(c["num_instances"] for c in chosen)
    events = list(run_all(open_tiny(folder, settings, "synthesis.mask_guidance=2.5"), only=["calibrate"]))
    assert not [event for event in events if isinstance(event, Progress)]
    fixed = json.loads((folder / "run" / "calibration" / "calibration.json").read_text())["classes"]
    assert [(c["name"], c["mask_guidance"]) for c in fixed] == [(c["name"], 2.5) for c in chosen]


def test_a_damaged_base_is_said_before_anything_is_written(
    tiny_run: TinyRun, tiny_base_folder: Path, open_tiny: Open, tmp_path: Path
) -> None:
    folder, settings, _ = tiny_run
    base = tmp_path / "base"
    shutil.copytree(tiny_base_folder, base)
    weights = base / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(folder, tmp_path / "copy", ignore=lambda _, names: {"run"} & set(names))
    project = open_tiny(tmp_path / "copy", settings, f"base={base}")
    with pytest.raises(WeightsError, match="unet"):
        list(run_all(project))
    assert not (project.folder / "data").exists()


def test_a_limit_takes_items_from_all_over() -> None:
    assert spread(range(10), 20) == list(range(10))
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread([], 3) == []
    few = spread(range(532), 400)
    assert len(set(few)) == 400
    assert max(few) == 531


def test_needed_stages_come_in_order(tiny_run: TinyRun, open_tiny: Open) -> None:
    folder, settings, _ = tiny_run
    config = open_tiny(folder, settings).config
    stages = stages_of(config)
    assert needed_for(stages, ["learn-condition"], config) == [
        "import",
        "split",
        "tiles",
        "learn-concept",
        "learn-condition",
    ]
    with pytest.raises(ConfigError, match="no such stage"):
        needed_for(stages, ["paint"], config)


def test_no_val_or_test_image_is_in_train_tiles_mask_bank_or_plan(tiny_run: TinyRun) -> None:
    run = tiny_run[0] / "run"
    split = json.loads((run / "split" / "split.json").read_text())
    kept_away = set(split["val"]) | set(split["test"])
    assert kept_away
    tiles = {t["id"]: t for t in json.loads((run / "tiles" / "tileset.json").read_text())["tiles"]}
    assert not {t["image_id"] for t in tiles.values() if t["subset"] in ("train", "pool")} & kept_away
    assert not {t["image_id"] for t in tiles.values()} & set(split["test"])
    assert not {e["image_id"] for e in json.loads((run / "plan" / "bank.json").read_text())["entries"]} & kept_away
    for job in json.loads((run / "plan" / "plan.json").read_text())["jobs"]:
        assert tiles[job["tile_id"]]["image_id"] not in kept_away


def test_the_guide_script_draws_with_plain_diffusers_alone(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run[0] / "run"
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert code is not None
    assert "defectory" not in code[1].replace("runs/", "")
    script = tmp_path / "guide.py"
    script.write_text("import sys\nsys.modules['defectory'] = None\n" + code[1])
    driver = sorted((run / "drafts" / "drivers").iterdir())[0]
    subprocess.run([sys.executable, str(script), str(run), str(driver)], cwd=tmp_path, check=True, capture_output=True)
    drawn = load_rgb(tmp_path / "drawn.png")
    assert drawn.shape == load_rgb(driver).shape
    assert np.ptp(drawn) > 0
