from __future__ import annotations

import numpy as np

from defectory.curation.calibration import Pair, calibrate, degrade
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import LOCAL_SHARE
from defectory.procedural.world import render_pair

SIZE_HW = (96, 128)


def pairs(count: int) -> list[Pair]:
    made: list[Pair] = []
    for index in range(count):
        shown, hidden = render_pair(5_000_000 + index, SIZE_HW)
        masks = [mask for _, mask in shown.instances if mask.any()]
        if masks:
            changes = {"blur_px": 0.8, "noise_sigma": 2.0, "drift": 6.0}
            made.append(
                (
                    degrade(shown.image, seed=2 * index, **changes),
                    degrade(hidden.image, seed=2 * index + 1, **changes),
                    masks,
                )
            )
    return made


def test_the_threshold_in_use_separates_true_from_shuffled_labels_on_rendered_pairs() -> None:
    rendered = pairs(30)
    in_use = calibrate(rendered, CurationConfig().difference_threshold)
    assert in_use.true > 0.5
    assert in_use.true_low < in_use.true
    assert in_use.shuffled < 0.15
    assert in_use.true > calibrate(rendered, 2.0).true + 0.05
    assert in_use.true > calibrate(rendered, 240.0).true + 0.4


def test_the_local_share_tells_a_label_from_one_that_is_a_pixel_thicker() -> None:
    rendered = pairs(30)
    fixed, local = (calibrate(rendered, 24.0, local_share=share) for share in (0.0, LOCAL_SHARE))
    assert local.true - local.thicker > fixed.true - fixed.thicker + 0.05
    assert local.above_thicker > fixed.above_thicker + 0.1


def test_calibration_finds_the_one_threshold_that_fits() -> None:
    """Defects 40 levels deep on a surface that trembles by 15: under 15 all differs, over twice that of a defect
    nothing does.
    """
    made: list[Pair] = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        hidden = np.full((*SIZE_HW, 3), 120.0)
        hidden[::6] += 15
        mask = np.zeros(SIZE_HW, bool)
        y, x = rng.integers(10, 60, 2)
        mask[y : y + 20, x : x + 30] = True
        shown = np.full((*SIZE_HW, 3), 120.0)
        shown[3::6] += 15
        shown[mask] -= 40
        made.append((shown.astype(np.uint8), hidden.astype(np.uint8), [mask]))
    found = {threshold: calibrate(made, threshold, local_share=0).true for threshold in (3.0, 20.0, 150.0)}
    assert max(found, key=lambda t: found[t]) == 20.0
    assert found[20.0] > 0.9
    assert found[150.0] < 0.1


def test_degrading_is_seeded_and_keeps_shape_and_tone() -> None:
    image = np.full((40, 60, 3), 120, np.uint8)
    first = degrade(image, seed=1, blur_px=0.8, noise_sigma=2.0, drift=6.0)
    assert np.array_equal(first, degrade(image, seed=1, blur_px=0.8, noise_sigma=2.0, drift=6.0))
    assert not np.array_equal(first, degrade(image, seed=2, blur_px=0.8, noise_sigma=2.0, drift=6.0))
    assert (first.shape, first.dtype) == (image.shape, np.uint8)
    assert 1.0 < first.astype(float).std() < 15.0
    assert abs(first.mean() - 120) < 12
