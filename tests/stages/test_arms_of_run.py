"""The rungs of the ladder on a finished run: what each trains on, and what its log says of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.artifacts.annotation import Category
from defectory.events import finish
from defectory.runs.stage import Run
from defectory.segmentation.training import load_segmenter
from defectory.stages.parts.report_tables import exposure_table
from defectory.stages.parts.segmenter_images import made_images, real_images, sizing_of
from defectory.stages.segment import Segment

TinyRun = tuple[Path, dict[str, Any], list[Any]]
Opened = Callable[..., Run]


@pytest.fixture
def project(tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path) -> Run:
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    steps = ("segmentation.num_steps=10", "segmentation.batch_size=4", "segmentation.validate_every=10")
    return open_tiny(tmp_path / "copy", tiny_run[1], *steps, "segmentation.defect_free_share=0.25")


@pytest.mark.parametrize(
    ("arm", "shown"),
    [
        ("mixed_75", {"real": 24, "synthetic": 6}),
        # `hybrid` shows every source
        pytest.param("real_plain", {"real": 30}, marks=pytest.mark.long),
        pytest.param("copy_paste", {"real": 18, "copy_paste": 12}, marks=pytest.mark.long),
        pytest.param("mixed", {"real": 18, "synthetic": 12}, marks=pytest.mark.long),
        pytest.param("procedural", {"real": 18, "procedural": 12}, marks=pytest.mark.long),
        ("hybrid", {"real": 18, "synthetic": 6, "copy_paste": 3, "procedural": 3}),
    ],
)
def test_an_arm_is_shown_the_sources_that_it_names(
    project: Run, tmp_path: Path, arm: str, shown: dict[str, int]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    told = finish(Segment(arm, 0).run(project.store(), project.config, out))
    assert "validation segm mAP" in told
    log, split = json.loads((out / "log.json").read_text()), project.store().split
    exposures = {source: count for source, count in log["exposures"].items() if source != "defect_free"}
    assert exposures == pytest.approx(shown, abs=2)
    assert sum(log["exposures"].values()) == 40
    assert log["exposures"]["defect_free"] == pytest.approx(10, abs=1)
    assert set(log["image_ids"]) <= {*split.train, *split.pool}
    _, categories, sizing = load_segmenter(out)
    assert isinstance(categories[0], Category)
    assert sizing.input_px == 64


def test_synthetic_images_are_seen_at_the_scale_of_real_ones(project: Run) -> None:
    store = project.store()
    sizing = sizing_of(store, input_px=64, scale=0.5)
    real, _ = real_images(store, sizing, seed=0, stage="x")
    made = made_images(store.synthetic, store, sizing, seed=0)
    assert made
    sizes = {image.image.shape[:2] for image in real}
    for image in made:
        nearest = min(abs(image.image.shape[0] - height) + abs(image.image.shape[1] - width) for height, width in sizes)
        assert nearest <= 2


def test_the_report_says_what_each_training_saw(project: Run) -> None:
    table = exposure_table(project.store().scores)
    rows = {row[0]: dict(zip(table.columns[1:], row[1:], strict=True)) for row in table.rows}
    assert set(rows) == {"real", "synthetic", "synthetic then real"}
    assert rows["real"]["synthetic"] == "none"
    assert rows["synthetic"]["real"] == "none"
    assert rows["synthetic then real"]["real"].startswith(("3 times", "4 times"))
