from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.spatial.distance import directed_hausdorff

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.mask_metrics import best_score_threshold, coco_truth, hausdorff_px, score_segmenter
from defectory.rle import box_xyxy, encode

CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"), Category(id=3, name="never seen"))
SIZE_HW = (60, 92)
Mask = NDArray[np.bool_]


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def record(image_id: int, *instances: tuple[int, Mask], crowd: bool = False) -> ImageRecord:
    coded = tuple(
        Instance(category_id=category_id, rle=encode(mask), is_crowd=crowd) for category_id, mask in instances
    )
    return ImageRecord(id=image_id, file_name=f"{image_id}.png", size_hw=SIZE_HW, sha256="", group="g", instances=coded)


def result(image_id: int, category_id: int, score: float, mask: Mask) -> dict[str, Any]:
    x0, y0, x1, y1 = box_xyxy(mask)
    rle = encode(mask)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
    }


def random_mask(rng: np.random.Generator) -> Mask:
    x, y = rng.integers(0, 60), rng.integers(0, 40)
    w, h = rng.integers(4, 32), rng.integers(4, 20)
    return rectangle(x, y, x + w, y + h) & (rng.random(SIZE_HW) < 0.9)


def random_scene(seed: int) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
    """True instances of two classes, and predictions that jitter them, miss some, err in class and invent others."""
    rng = np.random.default_rng(seed)
    records, results = [], []
    for image_id in range(1, 13):
        instances = [(int(rng.integers(1, 3)), random_mask(rng)) for _ in range(rng.integers(0, 4))]
        records.append(record(image_id, *instances))
        for category_id, mask in instances:
            if rng.random() < 0.8:
                shift = tuple(int(v) for v in rng.integers(-3, 4, 2))
                label = category_id if rng.random() < 0.8 else 3 - category_id
                results.append(result(image_id, label, float(rng.random()), np.roll(mask, shift, (0, 1))))
        if rng.random() < 0.6:
            results.append(result(image_id, int(rng.integers(1, 3)), float(rng.random()), random_mask(rng)))
    return records, results


@pytest.mark.parametrize("seed", range(5))
def test_average_precision_is_that_of_pycocotools(seed: int) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    records, results = random_scene(seed)
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    stats: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_truth(records, CATEGORIES)
        truth.createIndex()
        for kind in ("segm", "bbox"):
            evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats[kind] = evaluation
    assert 0.02 < scores.segm_map < 0.98
    assert scores.segm_map == pytest.approx(stats["segm"].stats[0], abs=1e-9)
    assert scores.ap50 == pytest.approx(stats["segm"].stats[1], abs=1e-9)
    assert scores.bbox_map == pytest.approx(stats["bbox"].stats[0], abs=1e-9)
    per_class = {
        category.name: values[values > -1].mean()
        for index, category in enumerate(CATEGORIES)
        if (values := stats["segm"].eval["precision"][:, :, index, 0, -1]).max() > -1
    }
    assert scores.per_class_segm_map == pytest.approx(per_class, abs=1e-9)


def test_missed_instances_count_zero_for_iou_and_one_for_hausdorff() -> None:
    found, half, missed = rectangle(4, 4, 24, 14), rectangle(40, 20, 60, 30), rectangle(70, 40, 90, 50)
    records = [record(1, (1, found), (1, half)), record(2, (2, missed))]
    results = [result(1, 1, 0.9, found), result(1, 1, 0.8, rectangle(40, 20, 50, 30)), result(2, 1, 0.9, missed)]
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    assert scores.iou == pytest.approx((1 + 0.5 + 0) / 3)
    assert scores.iou_matched == pytest.approx((1 + 0.5) / 2)
    assert scores.hausdorff == pytest.approx((0 + 10 / np.hypot(*SIZE_HW) + 1) / 3)
    assert scores.num_instances == 3


def test_a_prediction_serves_one_instance_and_the_best_one() -> None:
    left, right = rectangle(10, 10, 30, 20), rectangle(30, 10, 50, 20)
    both = rectangle(10, 10, 50, 20)
    scores = score_segmenter(
        [record(1, (1, left), (1, right))], CATEGORIES, [result(1, 1, 0.9, both)], score_threshold=0.5
    )
    assert scores.iou == pytest.approx(0.25)
    assert scores.iou_matched == pytest.approx(0.5)
    better = [result(1, 1, 0.99, both), result(1, 1, 0.6, left), result(1, 1, 0.6, right)]
    assert score_segmenter([record(1, (1, left), (1, right))], CATEGORIES, better, score_threshold=0.5).iou == 1.0


def test_weak_predictions_count_for_map_alone() -> None:
    mask = rectangle(10, 10, 30, 20)
    scores = score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 1, 0.4, mask)], score_threshold=0.5)
    assert scores.segm_map == pytest.approx(1.0)
    assert (scores.iou, scores.hausdorff) == (0.0, 1.0)
    assert (
        score_segmenter([record(1, (1, mask))], CATEGORIES, [result(1, 1, 0.4, mask)], score_threshold=0.4).iou == 1.0
    )


def test_predictions_on_defect_free_images_lower_map() -> None:
    mask = rectangle(10, 10, 30, 20)
    records = [record(1, (1, mask)), record(2)]
    clean = score_segmenter(records, CATEGORIES, [result(1, 1, 0.7, mask)], score_threshold=0.5)
    noisy = score_segmenter(
        records, CATEGORIES, [result(1, 1, 0.7, mask), result(2, 1, 0.9, mask)], score_threshold=0.5
    )
    assert clean.segm_map == pytest.approx(1.0)
    assert noisy.segm_map == pytest.approx(0.5)


def test_crowds_are_neither_missed_nor_found_falsely() -> None:
    mask, crowd = rectangle(10, 10, 30, 20), rectangle(50, 30, 90, 55)
    records = [record(1, (1, mask)), record(2, (1, crowd), crowd=True)]
    results = [result(1, 1, 0.9, mask), result(2, 1, 0.95, rectangle(52, 32, 80, 50))]
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    assert (scores.num_instances, scores.iou) == (1, 1.0)
    assert scores.segm_map == pytest.approx(1.0)


def test_empty_cases_are_zero_and_hausdorff_one() -> None:
    mask = rectangle(10, 10, 30, 20)
    nothing_found = score_segmenter([record(1, (1, mask))], CATEGORIES, [], score_threshold=0.5)
    assert (nothing_found.segm_map, nothing_found.iou, nothing_found.iou_matched, nothing_found.hausdorff) == (
        0.0,
        0.0,
        0.0,
        1.0,
    )
    assert nothing_found.per_class_segm_map == {"crack": 0.0}
    nothing_there = score_segmenter([record(1)], CATEGORIES, [result(1, 1, 0.9, mask)], score_threshold=0.5)
    assert (nothing_there.segm_map, nothing_there.iou, nothing_there.hausdorff, nothing_there.num_instances) == (
        0.0,
        0.0,
        1.0,
        0,
    )
    assert nothing_there.per_class_segm_map == {}


@pytest.mark.parametrize("seed", range(6))
def test_hausdorff_is_scipys(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first, second = random_mask(rng), random_mask(rng)
    a, b = np.argwhere(first), np.argwhere(second)
    expected = max(directed_hausdorff(a, b)[0], directed_hausdorff(b, a)[0])
    assert hausdorff_px(first, second) == pytest.approx(expected, abs=1e-3)
    assert hausdorff_px(second, first) == pytest.approx(expected, abs=1e-3)


def test_hausdorff_of_empty_and_full_masks() -> None:
    empty, full, mask = np.zeros(SIZE_HW, bool), np.ones(SIZE_HW, bool), rectangle(10, 10, 30, 20)
    assert hausdorff_px(empty, empty) == 0.0
    assert hausdorff_px(empty, mask) == hausdorff_px(mask, empty) == float("inf")
    assert hausdorff_px(full, full) == 0.0
    far = directed_hausdorff(np.argwhere(full), np.argwhere(mask))[0]
    assert hausdorff_px(full, mask) == pytest.approx(far, abs=1e-3)


def test_the_score_threshold_is_where_f1_is_best() -> None:
    left, right = rectangle(2, 2, 12, 12), rectangle(20, 20, 30, 30)
    nowhere = rectangle(40, 2, 44, 6)
    records = [record(1, (1, left), (1, right)), record(2, (2, left))]
    results = [
        result(1, 1, 0.9, left),
        result(1, 1, 0.6, right),
        result(2, 2, 0.4, left),
        result(1, 1, 0.2, nowhere),
        result(2, 2, 0.1, nowhere),
    ]
    assert best_score_threshold(records, results) == pytest.approx(0.3)
    wrong_class_and_twice = [*results, result(2, 1, 0.5, left), result(1, 1, 0.55, left)]
    # 3 right of 5 against 3 true: 0.75; 2 of 2 against 3: 0.8
    assert best_score_threshold(records, wrong_class_and_twice) == pytest.approx((0.6 + 0.55) / 2)


def test_without_a_right_detection_the_score_threshold_is_a_half() -> None:
    mask = rectangle(2, 2, 12, 12)
    assert best_score_threshold([record(1, (1, mask))], []) == 0.5
    assert best_score_threshold([record(1)], [result(1, 1, 0.9, mask)]) == 0.5
