from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial.distance import cdist, directed_hausdorff
from skimage.metrics import hausdorff_distance
from skimage.morphology import skeletonize

from defectory.evaluation.borders import border_of, distances, distances_between, score_thin
from defectory.evaluation.scenes import scenes_of

from .random_scenes import LARGE_HW, SEEDS, SIZE_HW, random_mask, random_scene, record, rectangle, result

Mask = NDArray[np.bool_]
DIAGONAL_PX = float(np.hypot(*SIZE_HW))


def pair(seed: int) -> tuple[Mask, Mask]:
    rng = np.random.default_rng(seed)
    return random_mask(rng), random_mask(rng)


def border(mask: Mask) -> Mask:
    return mask & ~ndimage.binary_erosion(mask)


def hd95_px(first: Mask, second: Mask) -> float:
    """As MONAI defines it, from scipy alone."""
    one, two = border(first), border(second)
    return max(float(np.percentile(ndimage.distance_transform_edt(~to)[of], 95)) for of, to in ((one, two), (two, one)))


@pytest.mark.parametrize("seed", range(12))
def test_hausdorff_distance_is_that_of_scikit_image_and_scipy(seed: int) -> None:
    first, second = pair(seed)
    found = distances(first, second).hausdorff_px
    assert found == pytest.approx(hausdorff_distance(first, second), abs=1e-6)
    a, b = np.argwhere(first), np.argwhere(second)
    assert found == pytest.approx(max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0]), abs=1e-6)
    assert distances(second, first).hausdorff_px == found


@pytest.mark.parametrize("seed", range(12))
def test_hd95_is_the_quantile_of_border_distances(seed: int) -> None:
    first, second = pair(seed)
    assert distances(first, second).hd95_px == pytest.approx(hd95_px(first, second), abs=1e-6)


@pytest.mark.parametrize("seed", range(12))
def test_hd95_is_that_of_monai(seed: int) -> None:
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    first, second = pair(seed)
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (first, second)]
    expected = float(compute_hausdorff_distance(*tensors, include_background=True, percentile=95))
    assert distances(first, second).hd95_px / DIAGONAL_PX == pytest.approx(expected / DIAGONAL_PX, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_distances_of_regions_are_those_of_whole_masks(seed: int) -> None:
    first, second = pair(seed)
    scene = next(scenes_of([record(1, (1, first))], [result(1, 1, 0.9, second)]))
    assert distances_between(scene.true[0], scene.found[0]) == distances(first, second)


def test_distances_of_empty_full_and_equal_masks() -> None:
    empty, full, mask = np.zeros(SIZE_HW, bool), np.ones(SIZE_HW, bool), rectangle(10, 10, 30, 20)
    assert (distances(empty, empty).hausdorff_px, distances(empty, empty).hd95_px) == (0.0, 0.0)
    for one, other in ((empty, mask), (mask, empty)):
        assert (distances(one, other).hausdorff_px, distances(one, other).hd95_px) == (float("inf"), float("inf"))
    assert (distances(full, full).hausdorff_px, distances(mask, mask).hd95_px) == (0.0, 0.0)
    far = directed_hausdorff(np.argwhere(full), np.argwhere(mask))[0]
    assert distances(full, mask).hausdorff_px == pytest.approx(far, abs=1e-6)


def test_the_edge_of_the_image_is_a_border() -> None:
    full = np.ones((4, 6), bool)
    assert np.array_equal(border_of(full), ~np.pad(np.ones((2, 4), bool), 1))


def unions(records: list[Any], results: list[dict[str, Any]]) -> list[tuple[Any, Mask, Mask]]:
    """Each image's regions, and its unions of truth and detections as whole masks, all classes as one."""
    found = []
    for scene in scenes_of(records, results):
        masks = []
        for regions in (scene.true, scene.found):
            canvas = np.zeros(scene.record.size_hw, bool)
            for region in regions:
                x0, y0, x1, y1 = region.box
                canvas[y0:y1, x0:x1] |= region.crop
            masks.append(canvas)
        found.append((scene, masks[0], masks[1]))
    return found


def f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size_hw", [SIZE_HW, LARGE_HW])
@pytest.mark.parametrize("seed", SEEDS)
def test_boundary_f1_is_that_of_all_pairs_of_border_pixels(seed: int, size_hw: tuple[int, int]) -> None:
    values = []
    for scene, truth, drawn in unions(*random_scene(seed, size_hw)):
        scores = score_thin(scene.true, scene.found)
        if not truth.any() or not drawn.any():
            assert scores.boundary_f1_2px == 0.0
            continue
        apart = cdist(np.argwhere(border(drawn)), np.argwhere(border(truth)))
        expected = f1(float((apart.min(axis=1) <= 2).mean()), float((apart.min(axis=0) <= 2).mean()))
        assert scores.boundary_f1_2px == pytest.approx(expected, abs=1e-9)
        values.append(expected)
    assert max(values) > 0.5


@pytest.mark.parametrize("size_hw", [SIZE_HW, LARGE_HW])
@pytest.mark.parametrize("seed", SEEDS)
def test_cldice_is_that_of_skeletons_of_whole_images(seed: int, size_hw: tuple[int, int]) -> None:
    values = []
    for scene, truth, drawn in unions(*random_scene(seed, size_hw)):
        scores = score_thin(scene.true, scene.found)
        if not truth.any() or not drawn.any():
            assert scores.cldice == 0.0
            continue
        precision, sensitivity = truth[skeletonize(drawn)].mean(), drawn[skeletonize(truth)].mean()
        assert scores.cldice == pytest.approx(f1(float(precision), float(sensitivity)), abs=1e-9)
        values.append(scores.cldice)
    assert max(values) > 0.5


def test_a_thin_line_two_pixels_off_is_right_and_three_pixels_off_is_wrong() -> None:
    line = rectangle(10, 20, 70, 21)
    for shift, expected in ((0, 1.0), (2, 1.0), (3, 0.0)):
        scene = next(scenes_of([record(1, (1, line))], [result(1, 1, 0.9, np.roll(line, shift, 0))]))
        assert score_thin(scene.true, scene.found).boundary_f1_2px == expected


def test_a_line_a_pixel_too_thick_keeps_its_cldice() -> None:
    line, thick = rectangle(10, 20, 70, 23), rectangle(9, 19, 71, 24)
    scene = next(scenes_of([record(1, (1, line))], [result(1, 1, 0.9, thick)]))
    scores = score_thin(scene.true, scene.found)
    assert scores.cldice > 0.98
    assert scores.boundary_f1_2px == 1.0
    assert (line & thick).sum() / (line | thick).sum() < 0.6


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 2), (2, 3), (3, 3), (7, 4)])
def test_a_small_spot_found_exactly_scores_one(size: tuple[int, int]) -> None:
    spot = rectangle(10, 10, 10 + size[0], 10 + size[1])
    scene = next(scenes_of([record(1, (1, spot))], [result(1, 1, 0.9, spot)]))
    scores = score_thin(scene.true, scene.found)
    assert (scores.boundary_f1_2px, scores.cldice) == (1.0, 1.0)
