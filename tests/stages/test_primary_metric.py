"""The score that decides comes from the labels of train, and chooses checkpoint, threshold and verdict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import Dataset
from defectory.events import StageEnded
from defectory.rle import encode
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.training import load_segmenter, score_threshold_of
from defectory.stages.all import run_all
from defectory.stages.parts import primary_metric
from defectory.stages.parts.primary_metric import SCORES, choose_metric, choose_threshold
from defectory.stages.parts.validation import predict, val_records
from defectory.stages.segment import Segment

TinyRun = tuple[Path, dict[str, Any], list[Any]]
Opened = Callable[..., Run]
THIN = np.abs(np.mgrid[:200, :300][0] * 1.5 - np.mgrid[:200, :300][1]) < 3


def with_thin_labels(run: Run, *, subset: str) -> Any:
    """The store of a run whose defects of one subset are thin cracks in wide boxes."""
    store = run.store()
    ids = set(getattr(store.split, subset))
    thin = encode(np.pad(THIN, 1))

    def changed(record: Any) -> Any:
        if record.id not in ids:
            return record
        instances = tuple(Instance.model_validate(dict(i) | {"rle": thin}) for i in record.instances)
        return record.model_copy(update={"instances": instances})

    dataset = store.data.dataset
    thinned = Dataset.model_validate({**dict(dataset), "images": tuple(map(changed, dataset.images))})
    return SimpleNamespace(data=SimpleNamespace(dataset=thinned), split=store.split)


def test_thin_labels_of_train_make_pixels_decide(tiny_run: TinyRun, open_tiny: Opened) -> None:
    run = open_tiny(tiny_run[0], tiny_run[1])
    settings = SegmentationConfig(model="light")
    compact = choose_metric(run.store(), settings)
    assert (compact.metric, compact.why) == ("segm_map", "")
    assert compact.best_mask_iou is not None
    assert compact.best_mask_iou > 0.9
    thin = choose_metric(with_thin_labels(run, subset="train"), settings)
    assert thin.metric == "pixel_ap"
    assert thin.best_mask_iou is not None
    assert f"mean IoU of {thin.best_mask_iou:.2f} at best" in thin.why


def test_segmenters_that_find_pixels_are_judged_as_others_are(tiny_run: TinyRun, open_tiny: Opened) -> None:
    run = open_tiny(tiny_run[0], tiny_run[1])
    for store in (run.store(), with_thin_labels(run, subset="train")):
        told = {model: choose_metric(store, SegmentationConfig(model=model)) for model in ("unet", "light")}
        assert len({(choice.metric, choice.best_mask_iou) for choice in told.values()}) == 1
        advice = ' segmentation.model = "unet" finds pixels instead.' if told["unet"].why else ""
        assert told["light"].why == told["unet"].why + advice
    assert told["unet"].why


def test_labels_of_test_and_families_without_cells_change_nothing(tiny_run: TinyRun, open_tiny: Opened) -> None:
    run = open_tiny(tiny_run[0], tiny_run[1])
    settings = SegmentationConfig(model="light")
    assert choose_metric(with_thin_labels(run, subset="test"), settings) == choose_metric(run.store(), settings)
    thin = with_thin_labels(run, subset="train")
    assert choose_metric(thin, settings.model_copy(update={"model": "mask2former"})).metric == "segm_map"
    assert choose_metric(thin, settings.model_copy(update={"primary_metric": "segm_map"})).metric == "segm_map"


def test_pixels_choose_the_checkpoint_the_threshold_the_verdict_and_the_best_segmenter(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_run[0], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "run" / "segment")
    # all labels count as thin
    monkeypatch.setattr(primary_metric, "LEAST_MASK_IOU", 1.1)
    briefly = (
        'curation.ignore=["difference", "segmenter"]',
        'segmentation.arms=["real", "synthetic"]',
        "segmentation.mirrored=false",
    )
    run = open_tiny(tmp_path / "copy", tiny_run[1], "segmentation.model=unet", *briefly)
    told = {event.stage: event.summary for event in run_all(run) if isinstance(event, StageEnded)}
    store, out = run.store(), run.folder / Segment("real", 0).folder
    log = json.loads((out / "log.json").read_bytes())
    assert log["metric"] == "pixel_ap"
    assert told["segment-real-seed0"].startswith("validation pixel AP ")
    assert "; unet, " in told["segment-real-seed0"]
    assert {json.loads(path.read_bytes())["kind"] for path in run.folder.rglob("segmenter.json")} == {"unet"}
    model, categories, sizing = load_segmenter(out)
    val = val_records(store, run.config.segmentation.max_val_images)
    results = predict(model, store.data, val, sizing.scale)
    assert log["best_val_score"] == pytest.approx(SCORES["pixel_ap"](val, categories, results), abs=1e-6)
    assert score_threshold_of(out) == pytest.approx(choose_threshold("pixel_ap", val, results))
    assert store.scores["primary_metric"]["metric"] == store.scores["verdict"]["metric"] == "pixel_ap"
    card = json.loads((run.folder / layout.BEST_SEGMENTER / layout.CARD_FILE).read_bytes())
    assert (card["metric"], card["family"]) == ("pixel_ap", "unet")
    assert card["initial_weights"].startswith("The encoder's training started from EfficientNet-Lite0")
    page = (run.folder / layout.RUN_REPORT).read_text(encoding="utf-8")
    assert "Pixel AP on test" in page
    assert "pixel AP per class" in page
