from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category
from defectory.artifacts.calibration import ClassCalibration
from defectory.condition.networks.controlnet import ControlNet
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.models import SamplingModels
from defectory.events import Progress
from defectory.synthesis.calibrate import (
    BOUNDS,
    LEVELS,
    CalibrationDraft,
    calibrate,
    choose_drafts,
    choose_guidance,
    guidance_map,
)
from defectory.synthesis.config import SynthesisConfig

SIZE_HW = (32, 48)
CATEGORIES = (Category(id=1, name="pit"), Category(id=2, name="burn"), Category(id=3, name="scratch"))


def row(category_id: int, slope: float, level: float = 0.0) -> tuple[int, tuple[float, ...]]:
    return category_id, tuple(level + slope * guidance for guidance in LEVELS)


def test_guidance_is_where_the_drawn_contrast_meets_the_real_one() -> None:
    rows = [row(1, 0.3)] * 5 + [row(2, 0.25, 0.05)] * 4
    pit, burn, scratch = choose_guidance(rows, {1: [0.6] * 7, 2: [0.5] * 4}, CATEGORIES)
    assert pit.mask_guidance == pytest.approx(2.0)
    assert burn.mask_guidance == pytest.approx(1.8)
    assert (pit.real, pit.num_instances) == (pytest.approx(0.6), 5)
    assert pit.drawn == tuple((guidance, pytest.approx(0.3 * guidance)) for guidance in LEVELS)
    # a class that was not measured takes what fits all measured defects
    assert (scratch.real, scratch.num_instances) == (None, 0)
    assert scratch.mask_guidance == pytest.approx(2.0)


@pytest.mark.parametrize(("num_drawn", "num_real"), [(5, 3), (3, 9), (5, 0)])
def test_a_class_of_few_defects_takes_what_fits_all_in_proportion_to_their_contrast(
    num_drawn: int, num_real: int
) -> None:
    rows = [row(1, 0.3)] * 20 + [row(2, 3.0)] * num_drawn
    pit, burn, _ = choose_guidance(rows, {1: [0.6] * 9, 2: [4.5] * num_real}, CATEGORIES)
    assert pit.mask_guidance == pytest.approx(2.0)
    assert (burn.mask_guidance, burn.real, burn.num_instances) == (pytest.approx(2.0), None, num_drawn)


@pytest.mark.parametrize(
    ("real", "slope", "expected"),
    [(0.1, 0.3, BOUNDS[0]), (9.0, 0.3, BOUNDS[1]), (0.5, 0.0, LEVELS[1]), (0.5, -0.2, LEVELS[1])],
)
def test_guidance_stays_in_bounds_and_is_no_extrapolation_where_it_does_nothing(
    real: float, slope: float, expected: float
) -> None:
    assert choose_guidance([row(1, slope, 0.2)] * 4, {1: [real] * 4}, CATEGORIES)[0].mask_guidance == pytest.approx(
        expected
    )


def test_between_levels_guidance_is_interpolated() -> None:
    saturating = [(1, (0.5, 0.7, 0.8))] * 4
    assert choose_guidance(saturating, {1: [0.65] * 4}, CATEGORIES)[0].mask_guidance == pytest.approx(
        1.0 + 0.75 * 0.15 / 0.2, abs=1e-3
    )
    assert choose_guidance(saturating, {1: [0.84] * 4}, CATEGORIES)[0].mask_guidance == pytest.approx(
        2.5 + 0.75 * 0.04 / 0.1, abs=1e-3
    )


def test_depth_of_tone_is_a_quantile_of_the_real_contrasts() -> None:
    rows, real = [row(1, 0.3)] * 4, {1: [0.36, 0.42, 0.48, 0.54, 0.6]}
    found = [choose_guidance(rows, real, CATEGORIES, quantile=q)[0].mask_guidance for q in (0.0, 0.5, 1.0)]
    assert found == [pytest.approx(1.2), pytest.approx(1.6), pytest.approx(2.0)]


def test_an_outlier_does_not_move_the_median_and_nothing_measured_is_the_middle_level() -> None:
    rows = [row(1, 0.3)] * 6 + [row(1, 5.0)]
    assert choose_guidance(rows, {1: [0.6] * 6 + [50.0]}, CATEGORIES)[0].mask_guidance == pytest.approx(2.0)
    assert {c.mask_guidance for c in choose_guidance([], {}, CATEGORIES)} == {LEVELS[1]}
    assert {c.mask_guidance for c in choose_guidance([], {1: [0.5] * 9}, CATEGORIES)} == {LEVELS[1]}


def test_drafts_are_chosen_so_that_rare_classes_come_often() -> None:
    classes_of = [[1]] * 40 + [[1, 2]] * 3 + [[3]] * 2
    chosen = choose_drafts(classes_of, 9, seed=0)
    assert len(chosen) == len(set(chosen)) == 9
    counts = {c: sum(c in classes_of[i] for i in chosen) for c in (1, 2, 3)}
    assert counts[2] == 3
    assert counts[3] == 2
    assert choose_drafts(classes_of, 9, seed=0) == chosen
    assert choose_drafts(classes_of, 9, seed=1) != chosen
    assert sorted(choose_drafts(classes_of, 99, seed=0)) == list(range(45))


def test_a_small_mask_on_a_large_one_keeps_its_class() -> None:
    large, small = np.zeros(SIZE_HW, bool), np.zeros(SIZE_HW, bool)
    large[4:20, 4:30], small[8:12, 8:12] = True, True
    for instances in ([(1, small), (2, large)], [(2, large), (1, small)]):
        made = guidance_map(instances, {1: 2.5, 2: 1.5}, SIZE_HW)
        assert made.dtype == np.float32
        assert (made[small] == 2.5).all()
        assert (made[large & ~small] == 1.5).all()
        assert (made[~large] == 1).all()


def test_each_draft_is_drawn_at_every_level_and_measured_where_its_masks_lie(tiny_base_folder: Path) -> None:
    backbone = load_base(tiny_base_folder)
    models = SamplingModels(backbone=backbone, network=ControlNet(backbone.controlnet))
    mask = np.zeros(SIZE_HW, bool)
    mask[8:18, 10:26] = True
    empty = np.zeros((*SIZE_HW, 3), np.uint8)
    driver = empty.copy()
    driver[mask] = (255, 0, 0)
    drafts = [
        CalibrationDraft(
            instances=((2, mask),),
            driver=driver,
            empty_driver=empty,
            prompt="an image of a sks with a crack",
            prompt_without="an image of a sks",
            seed=seed,
        )
        for seed in range(5)
    ]
    seen: list[np.ndarray] = []

    def contrast_of(image: np.ndarray, own: np.ndarray, labelled: np.ndarray) -> float:
        assert (own == mask).all()
        assert (labelled == mask).all()
        seen.append(image)
        # a line that meets the real value at 2
        return 0.25 * LEVELS[(len(seen) - 1) % 3]

    config = SynthesisConfig(num_inference_steps=2, batch_size=3, mixed_precision="no")
    work = calibrate(
        drafts,
        real={2: [0.5] * 4},
        models=models,
        class_noun="surface",
        categories=CATEGORIES,
        config=config,
        contrast_of=contrast_of,
    )
    progress: list[int] = []
    while True:
        try:
            event = next(work)
        except StopIteration as end:
            classes = end.value
            break
        assert isinstance(event, Progress)
        assert event.total == 15
        progress.append(event.done)
    assert progress == [3, 6, 9, 11, 13, 15]
    burn = classes[1]
    assert isinstance(burn, ClassCalibration)
    assert (burn.name, burn.num_instances) == ("burn", 5)
    assert burn.mask_guidance == pytest.approx(2.0)
    assert len(seen) == 5 * 3
    for first in range(0, 15, 3):
        assert not (seen[first] == seen[first + 2]).all()
