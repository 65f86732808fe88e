from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.errors import ConfigError, FirewallError
from defectory.events import StageEnded
from defectory.formats.writers.registry import writer_named
from defectory.rle import box_xyxy, decode
from defectory.runs.stage import Run
from defectory.segmentation.sizing import Sizing
from defectory.stages import all as stages
from defectory.stages.export import image_ids_of_jobs
from defectory.stages.folds import NUM_FOLDS
from defectory.stages.parts import doubt
from defectory.stages.parts.before_all import check_before_all
from defectory.stages.parts.report_tables import _doubt_table
from defectory.stages.parts.segmenter_images import made_images
from defectory.stages.parts.synthetic_set import load_synthetic
from defectory.tools.export import export_project

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
BOTH = 'curation.ignore=["segmenter","difference"]'


@pytest.fixture(scope="module")
def doubted(tiny_run: TinyRun, open_tiny: Opened, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, settings, _ = tiny_run
    copy = tmp_path_factory.mktemp("doubted") / "copy"
    shutil.copytree(folder, copy)
    project = open_tiny(copy, settings, BOTH)
    for _ in stages.run_all(project, only=["folds", "curate", "export", "segment-synthetic-seed0"]):
        pass
    return project


def keys(run: Run) -> dict[str, str]:
    return {stage.name: repr(stage.cache_key(run.config, run.sources)) for stage in stages.stages_of(run.config)}


def test_only_curation_depends_on_what_is_ignored_and_folds_if_segmenters_judge(
    tiny_run: TinyRun, open_tiny: Opened
) -> None:
    folder, settings, _ = tiny_run
    plain = keys(open_tiny(folder, settings))
    unused = keys(open_tiny(folder, settings, "curation.doubt_multiple=5"))
    assert [name for name in plain if plain[name] != unused[name]] in ([], ["report"])
    difference = keys(open_tiny(folder, settings, 'curation.ignore=["difference"]'))
    assert {name for name in plain if plain[name] != difference[name]} - {"report"} == {"curate"}
    assert list(difference) == list(plain), "no further stage"
    judged = keys(open_tiny(folder, settings, BOTH))
    assert set(judged) - set(plain) == {"folds"}
    assert {name for name in plain if plain[name] != judged[name]} - {"report"} == {"curate"}


def test_folds_train_on_the_pool_unless_segmenters_judge_drafts_on_it(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    agreement, both = (keys(open_tiny(folder, settings, *of)) for of in (['curation.checks=["agreement"]'], [BOTH]))
    assert agreement["folds"] != both["folds"]


def test_no_segmenter_judges_a_draft_of_its_own_training_images(doubted: Run) -> None:
    store = doubted.store()
    found, image_ids = store.doubts, image_ids_of_jobs(store)
    assert found is not None
    assert found.witnesses == ("difference", "segmenter")
    logs = [json.loads((store.fold(fold) / "log.json").read_bytes())["image_ids"] for fold in range(NUM_FOLDS)]
    assert not any(set(ids) & set(store.split.pool) for ids in logs)
    assert any(draft.judges for draft in found.drafts)
    for draft in found.drafts:
        for fold in draft.judges:
            assert not set(logs[fold]) & set(image_ids[draft.job_id])


def test_a_judge_that_trained_on_an_image_of_a_draft_stops_curation(
    doubted: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubt, "judges_of", lambda *_: tuple(range(NUM_FOLDS)))
    store = doubted.store()
    with pytest.raises(FirewallError, match="which the draft was made from"):
        list(doubt.doubts_of(store, doubted.config, store.decisions, plan=store.plan, drafts=store.drafts))


def test_what_curation_doubts_reaches_the_windows_that_segmenters_train_on(doubted: Run) -> None:
    store = doubted.store()
    found = store.doubts
    assert found is not None
    assert found.num_doubtful > 0, "a random base draws nothing, so labels are not drawn"
    loaded = load_synthetic(store.synthetic)
    assert sum(sum(of.is_doubtful) for of in loaded) == found.num_doubtful
    of_job = found.by_job()
    for of in loaded:
        (job_id,) = [draft["job"] for draft in of.drafts]
        expected = decode(of_job[job_id].ignore)
        shown = np.zeros(of.size_hw, bool) if of.ignore is None else decode(of.ignore)
        assert np.array_equal(shown, expected)
    windows = made_images(store.synthetic, store, Sizing(scale=loaded[0].scale, input_px=64), seed=0)
    assert sum(sum(window.is_doubtful) for window in windows) == found.num_doubtful
    assert "doubtful" in found.summary()
    losses = json.loads((doubted.folder / "segment" / "synthetic-seed0" / "log.json").read_bytes())["losses"]
    assert losses
    assert all(np.isfinite(losses))


def test_an_export_holds_what_training_ignores_by_file_class_and_box(doubted: Run, tmp_path: Path) -> None:
    store, out = doubted.store(), tmp_path / "out"
    for _ in export_project(doubted, writer_named("yolo"), out, real=None):
        pass
    rows = {Path(row["image"]).name: row for row in json.loads((out / "ignore.json").read_bytes())["images"]}
    names = {category.id: category.name for category in store.data.dataset.categories}
    loaded = {f"synthetic-{of.path.name}": of for of in load_synthetic(store.synthetic)}
    told = {name for name, of in loaded.items() if of.ignore is not None or any(of.is_doubtful)}
    assert rows.keys() == told
    for name, row in rows.items():
        of = loaded[name]
        assert (out / row["image"]).is_file()
        expected = [
            (names[i.category_id], list(box_xyxy(decode(i.rle))))
            for i, flag in zip(of.instances, of.is_doubtful, strict=True)
            if flag
        ]
        assert [(of["class"], of["box_xyxy"]) for of in row["doubtful"]] == expected
        if of.ignore is not None:
            assert row["ignore"] == {"size": list(of.ignore.size_hw), "counts": of.ignore.counts}


def test_the_report_counts_what_is_ignored(doubted: Run) -> None:
    found = doubted.store().doubts
    assert found is not None
    table = _doubt_table(found)
    assert "difference, segmenter" in table.title
    rows = dict(table.rows)
    assert rows["doubtful instances"] == f"{found.num_doubtful} of {found.num_instances}"
    assert rows["drafts that no segmenter may judge"] == f"{found.num_unjudged} of {len(found.drafts)}"


def test_without_ignoring_no_file_is_written(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    run = open_tiny(folder, settings)
    assert run.store().doubts is None
    assert not list(run.folder.rglob("ignore.json"))


def test_mask2former_is_refused_before_the_run(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    run = open_tiny(folder, settings, BOTH, "segmentation.model=mask2former", "segmentation.weights=source")
    every = stages.stages_of(run.config)
    with pytest.raises(ConfigError, match=r"curation\.ignore.*mask2former"):
        check_before_all(run, every, every, {}, [stage.name for stage in every])
