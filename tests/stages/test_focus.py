from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.difficulty import Difficulty, InstanceDifficulty, TileOverlap
from defectory.artifacts.plan import Plan
from defectory.events import StageEnded
from defectory.masks.config import MaskConfig
from defectory.masks.sources import MaskSources
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.stages.folds import NUM_FOLDS, FoldSegmenters, best_ious, overlap
from defectory.stages.parts.mask_supply import mask_supply
from defectory.stages.plan import Plan as PlanStage

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
FOCUS = (
    "synthesis.focus=segmenter",
    'curation.checks=["agreement"]',
    "curation.min_fidelity=0",
    "curation.max_stray_share=1000",
)


@pytest.fixture(scope="module")
def focused(tiny_run: TinyRun, open_tiny: Opened, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder, settings, _ = tiny_run
    copy = tmp_path_factory.mktemp("focused") / "copy"
    shutil.copytree(folder, copy)
    project = open_tiny(copy, settings, *FOCUS)
    for _ in run_all(project, only=["folds", "plan", "calibrate", "synthesize", "curate"]):
        pass
    return project


def difficulty(ious: dict[tuple[int, int], float]) -> Difficulty:
    return Difficulty(
        split_digest="",
        num_folds=2,
        instances=tuple(
            InstanceDifficulty(image_id=i, number=n, category_id=1, iou=iou) for (i, n), iou in ious.items()
        ),
    )


def test_what_is_missed_weighs_eleven_times_what_is_drawn_perfectly_and_the_mean_is_one() -> None:
    weights = difficulty({(1, 0): 1.0, (1, 1): 0.0, (2, 0): 0.5}).weights(floor=0.1)
    assert weights[1, 1] == pytest.approx(11 * weights[1, 0])
    assert np.mean(list(weights.values())) == pytest.approx(1.0)


def test_every_train_instance_is_judged_and_no_other(focused: Run) -> None:
    found = focused.store().difficulty
    train = {(t.image_id, i.number) for t in focused.store().tiles.tileset.of("train") for i in t.instances}
    assert {(i.image_id, i.number) for i in found.instances} == train
    assert {i.image_id for i in found.instances} <= set(focused.store().split.train)
    assert all(0 <= i.iou <= 1 for i in found.instances)
    assert [t.tile_id for t in found.tiles] == [t.id for t in focused.store().tiles.tileset.of("train") if t.instances]
    assert all(0 <= t.overlap <= 1 for t in found.tiles)


def test_segmenters_give_nothing_where_they_find_nothing(focused: Run) -> None:
    mask = np.zeros((32, 32), bool)
    mask[4:12, 4:12] = True
    seen = FoldSegmenters([focused.store().fold(n) for n in range(NUM_FOLDS)], "cpu", tile_scale=1.0).defects(
        np.full((32, 32, 3), 90, np.uint8)
    )
    assert best_ious(seen, [(1, mask), (2, mask)]) == [0.0, 0.0]
    assert overlap(seen, [(1, mask)]) == 0.0


def test_overlap_counts_what_has_no_label_and_ignores_classes() -> None:
    label, beside, half = (np.zeros((12, 20), bool) for _ in range(3))
    label[2:6, 2:12], beside[8:12, 2:12], half[2:6, 2:7] = True, True, True
    seen = [[(1, label)], [(2, label), (1, beside)], [(1, half)], []]
    assert overlap(seen, [(1, label)]) == pytest.approx((1 + 0.5 + 0.5 + 0) / 4)
    assert best_ious(seen, [(1, label), (2, label)]) == [1.0, 1.0]
    assert best_ious(seen[2:], [(1, label), (2, label)]) == [0.5, 0.0]


def test_what_is_expected_of_a_draft_is_what_its_classes_reach_in_train() -> None:
    tiles = tuple(
        TileOverlap(tile_id=f"t{n}", category_ids=of, overlap=value)
        for n, (of, value) in enumerate([((1,), 0.8), ((1,), 0.6), ((2,), 0.5), ((1, 2), 0.4)])
    )
    of = Difficulty(split_digest="", num_folds=2, instances=(), tiles=tiles)
    assert of.expected_overlap([1]) == pytest.approx(0.6)
    assert of.expected_overlap([2, 1, 1]) == pytest.approx((0.45 + 0.6 + 0.6) / 3)
    assert of.expected_overlap([3]) == pytest.approx(np.mean([0.8, 0.6, 0.5, 0.4])), (
        "of a class without a tile, what all reach"
    )
    assert of.overlap_limit(0.0) == pytest.approx(0.4 / 0.525)
    blind = of.model_copy(update={"tiles": tuple(t.model_copy(update={"overlap": 0.0}) for t in tiles)})
    assert blind.overlap_limit(0.5) == 0.0, "segmenters that find nothing reject nothing"


def test_folds_are_a_stage_only_where_something_needs_them(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run

    def needs(*overrides: str) -> dict[str, tuple[str, ...]]:
        config = open_tiny(folder, settings, *overrides).config
        return {stage.name: stage.inputs(config) for stage in stages_of(config)}

    assert "folds" not in needs()
    focus, agreement = needs("synthesis.focus=segmenter"), needs('curation.checks=["agreement"]')
    assert ("folds" in focus["plan"], "folds" in focus["curate"]) == (True, False)
    assert ("folds" in agreement["plan"], "folds" in agreement["curate"]) == (False, True)


def test_steps_of_folds_are_the_folds_alone(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    changed: list[str] = []
    plain, other = (
        open_tiny(folder, settings, "synthesis.focus=segmenter", f"segmentation.fold_steps={steps}") for steps in (2, 5)
    )
    for before, after in zip(stages_of(plain.config), stages_of(other.config), strict=True):
        changed += (
            [before.name]
            if before.cache_key(plain.config, plain.sources) != after.cache_key(other.config, other.sources)
            else []
        )
    assert changed == ["folds", "report"], "no arm is trained again"


def test_hard_instances_give_more_of_the_masks(focused: Run) -> None:
    bank = focused.store().bank
    several = [c for c, count in Counter(entry.category_id for entry in bank.entries).items() if count > 1]
    hard = next(entry for entry in bank.entries if entry.category_id in several)
    weights = {entry.id: (50.0 if entry.id == hard.id else 0.5) for entry in bank.entries}
    names = {c.id: c.name for c in focused.store().tiles.tileset.categories}
    rng = np.random.default_rng(0)
    sources = MaskSources(bank, (), config=MaskConfig(min_area_px=2), names=names, weights=weights)
    drawn = [sources.draw(hard.category_id, rng) for _ in range(60)]
    counts = Counter(d[1].bank_id for d in drawn if d is not None)
    assert counts[hard.id] > 40


def test_a_class_that_is_missed_comes_more_often(focused: Run) -> None:
    tileset = focused.store().tiles.tileset
    tiles = [t for t in tileset.of("train") if t.instances]
    classes = Counter(i.category_id for t in tiles for i in t.instances)
    rare = min(classes, key=lambda c: classes[c])
    plain = Plan.load(focused.folder / "plan" / "plan.json")
    path = focused.folder / "folds" / "difficulty.json"
    kept = path.read_text()
    # a stage without a manifest says nothing of its files, so that this one may be edited
    manifest = (focused.folder / "folds" / "stage.json").rename(focused.folder / "folds" / "aside.json")
    try:
        instances = [
            i.model_copy(update={"iou": 0.0 if i.category_id == rare else 1.0})
            for i in focused.store().difficulty.instances
        ]
        focused.store().difficulty.model_copy(update={"instances": tuple(instances)}).save(path)
        project = Run(
            config=focused.config.model_copy(
                update={"synthesis": focused.config.synthesis.model_copy(update={"num_images": 60})}
            ),
            folder=focused.folder,
            sources=Sources(folder=focused.sources.folder),
        )
        list(PlanStage().run(project.store(), project.config, project.folder / "plan"))
        with_focus = Counter(
            i.category_id for job in Plan.load(focused.folder / "plan" / "plan.json").jobs for i in job.instances
        )
    finally:
        path.write_text(kept)
        manifest.rename(focused.folder / "folds" / "stage.json")
        plain.save(focused.folder / "plan" / "plan.json")
    share = with_focus[rare] / sum(with_focus.values())
    assert share > 1.5 * classes[rare] / sum(classes.values())
    assert mask_supply(focused.store(), focused.config).shares, "places are learned all the same"


def test_drafts_are_held_against_what_segmenters_find(focused: Run) -> None:
    decisions = focused.store().decisions.decisions
    assert {c.name for d in decisions for c in d.checks} == {"agreement"}
    assert all(c.value <= 1 for d in decisions for c in d.checks)
    assert {c.limit for d in decisions for c in d.checks} == {1.0 - focused.store().difficulty.overlap_limit(0.05)}
