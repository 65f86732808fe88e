from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory import StageEnded
from defectory.errors import ConfigError
from defectory.evaluation.tables import ScoreTable, table_segm_map
from defectory.events import finish
from defectory.images.save import save_png
from defectory.procedural.borescope import write_dataset
from defectory.runs.stage import Run
from defectory.stages.parts.real_tiles import RealTiles
from defectory.studies import elsewhere
from defectory.studies.elsewhere import OTHERS, TRANSFER, score_others, score_transfer

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture
def cell(tiny_run: TinyRun, tmp_path: Path, open_tiny: Callable[..., Run]) -> Run:
    """A finished run, as a cell of a study."""
    shutil.copytree(tiny_run[0], tmp_path / "project")
    cells = tmp_path / "project" / "cells"
    cells.mkdir()
    (tmp_path / "project" / "run").rename(cells / "first")
    return replace(open_tiny(tmp_path / "project", tiny_run[1]), folder=cells / "first", siblings=cells)


def test_another_data_set_is_predicted_with_every_segmenter(cell: Run) -> None:
    finish(score_transfer(cell, cell.sources.folder / "source" / "annotations.json"))
    data, scores = cell.store().data.dataset, cell.store().scores
    for arm in scores["arms"]:
        table = ScoreTable.load(cell.folder / TRANSFER / f"{arm}-seed0.npz")
        assert len(table.image_ids) == len(data.images)
        assert table.num_defects.sum() == sum(len(record.instances) for record in data.images)
    # the same images, as the run's own test: the same figure
    arm = next(iter(scores["arms"]))
    table = ScoreTable.load(cell.folder / TRANSFER / f"{arm}-seed0.npz")
    is_test = np.isin(table.image_ids, cell.store().split.test).astype(np.int64)
    own = ScoreTable.load(cell.store().score_table(arm, 0))
    assert table_segm_map(table, is_test[None])[0] == pytest.approx(table_segm_map(own)[0], abs=1e-9)


def test_a_data_set_of_other_classes_is_refused_with_both_lists(cell: Run) -> None:
    other = cell.sources.folder / "other"
    write_dataset(other, seed=3, num_labelled=6, num_defect_free=2, size_hw=(24, 40))
    file = other / "annotations.json"
    content = json.loads(file.read_text())
    for number, category in enumerate(content["categories"]):
        category["name"] = f"unheard-of {number}"
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"has the classes unheard-of 0.*name its classes"):
        finish(score_transfer(cell, file))
    assert not (cell.folder / TRANSFER).exists()


def test_images_made_elsewhere_are_scored_like_drafts(cell: Run, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    made = tmp_path / "made"
    for driver in range(2):
        (made / str(driver)).mkdir(parents=True)
        for sample in range(3):
            save_png(made / str(driver) / f"{sample}.png", rng.integers(0, 255, (30, 20, 3), np.uint8))
    finish(score_others(cell, {"made": made}))
    scores = json.loads((cell.folder / OTHERS / "scores.json").read_bytes())["made"]
    assert scores["image_sets"]["num_synthetic"] == 6
    assert (scores["diversity"]["num_drivers"], scores["diversity"]["num_samples"]) == (2, 6)


def test_too_few_images_from_elsewhere_are_refused(cell: Run, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(ConfigError, match="0 images beside"):
        finish(score_others(cell, {"made": tmp_path / "made"}))


def test_a_cell_without_defects_in_test_is_refused(cell: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_test(*args: Any, **kwargs: Any) -> RealTiles:
        tiles = RealTiles(*args, **kwargs)
        tiles.test = []
        return tiles

    monkeypatch.setattr(elsewhere, "RealTiles", without_test)
    with pytest.raises(ConfigError, match=r"^study\.others: \d+ real tiles of train and 0 of test show defects; label"):
        finish(score_others(cell, {"made": tmp_path}))
