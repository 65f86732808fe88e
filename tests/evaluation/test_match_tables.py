"""The table's segm mAP is COCO's, on data sets as they are and with images repeated."""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.errors import InputError
from defectory.evaluation.detection import coco_truth
from defectory.evaluation.detection import segm_map as coco_segm_map
from defectory.evaluation.match_tables import match_table, segm_map
from defectory.rle import encode

CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"), Category(id=3, name="never seen"))
SIZE_HW = (40, 64)
Mask = NDArray[np.bool_]


def rectangle(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros(SIZE_HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def random_mask(rng: np.random.Generator) -> Mask:
    x, y = rng.integers(0, 40), rng.integers(0, 24)
    return rectangle(x, y, x + rng.integers(4, 24), y + rng.integers(4, 16)) & (rng.random(SIZE_HW) < 0.95)


def result(image_id: int, category_id: int, score: float, mask: Mask) -> dict[str, Any]:
    rle = encode(mask)
    segmentation = {"size": list(rle.size_hw), "counts": rle.counts}
    return {"image_id": image_id, "category_id": category_id, "score": score, "segmentation": segmentation}


def scene(seed: int, *, num_scores: int) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
    """Images, some empty and some with crowds, with jittered, invented and misnamed detections of tied scores."""
    rng = np.random.default_rng(seed)
    records: list[ImageRecord] = []
    results: list[dict[str, Any]] = []
    for image_id in rng.permutation(14) * 10 + 3:
        true = [(int(rng.integers(1, 3)), random_mask(rng), rng.random() < 0.2) for _ in range(rng.integers(0, 5))]
        instances = tuple(Instance(category_id=c, rle=encode(m), is_crowd=crowd) for c, m, crowd in true)
        records.append(
            ImageRecord(id=int(image_id), file_name="a.png", size_hw=SIZE_HW, sha256="", group="g", instances=instances)
        )
        invented = [(int(rng.integers(1, 3)), random_mask(rng), False) for _ in range(rng.integers(0, 3))]
        for category_id, mask, _ in [*true, *true[:1], *invented]:
            if rng.random() < 0.85:
                moved = np.roll(mask, tuple(int(v) for v in rng.integers(-2, 3, 2)), (0, 1))
                score = float(rng.integers(1, num_scores + 1)) / num_scores
                results.append(result(int(image_id), category_id if rng.random() < 0.9 else 3, score, moved))
    return records, results


def repeated(
    records: list[ImageRecord], results: list[dict[str, Any]], copies: NDArray[np.int64]
) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
    """The data set with each image there as often as told, copies of an image one after another."""
    some: list[ImageRecord] = []
    found: list[dict[str, Any]] = []
    for record, count in zip(records, copies, strict=True):
        for n in range(count):
            image_id = record.id * 100 + n
            some.append(record.model_copy(update={"id": image_id}))
            found += [r | {"image_id": image_id} for r in results if r["image_id"] == record.id]
    return some, found


def coco_map(records: list[ImageRecord], results: list[dict[str, Any]]) -> float:
    """Segm mAP by pycocotools, written in Python by COCO's authors."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not results:
        return 0.0
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = coco_truth(records, CATEGORIES)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return max(0.0, float(evaluation.stats[0]))


@pytest.mark.parametrize("num_scores", [1, 4, 10**6], ids=["all tied", "many ties", "no ties"])
@pytest.mark.parametrize("seed", range(4))
def test_segm_map_is_cocos_on_images_as_they_are_and_repeated(seed: int, num_scores: int) -> None:
    records, results = scene(seed, num_scores=num_scores)
    table = match_table(records, CATEGORIES, results)
    assert segm_map(table)[0] == pytest.approx(coco_map(records, results), abs=1e-9)
    assert segm_map(table)[0] == pytest.approx(coco_segm_map(records, CATEGORIES, results), abs=1e-9)
    copies = np.random.default_rng(seed).integers(0, 5, (6, len(records)))
    expected = [coco_map(*repeated(records, results, row)) for row in copies]
    assert max(expected) > 0.05
    assert segm_map(table, copies) == pytest.approx(expected, abs=1e-9)


def test_equal_scores_within_an_image_are_counted_copy_by_copy() -> None:
    """Right before wrong, twice: COCO sees right, wrong, right, wrong, and not right, right, wrong, wrong."""
    true, elsewhere = rectangle(2, 2, 12, 12), rectangle(30, 20, 44, 30)
    instance = Instance(category_id=1, rle=encode(true))
    record = ImageRecord(id=1, file_name="a.png", size_hw=SIZE_HW, sha256="", group="", instances=(instance,))
    results = [result(1, 1, 0.5, true), result(1, 1, 0.5, elsewhere)]
    table = match_table([record], CATEGORIES, results)
    twice = np.array([[2]])
    expected = (51 * 1 + 50 * 2 / 3) / 101
    assert coco_map(*repeated([record], results, twice[0])) == pytest.approx(expected)
    assert segm_map(table, twice) == pytest.approx(expected)


def test_data_sets_without_instances_or_detections_score_zero() -> None:
    records, results = scene(1, num_scores=9)
    assert segm_map(match_table(records, CATEGORIES, [])) == pytest.approx([0.0])
    table = match_table(records, CATEGORIES, results)
    assert segm_map(table, np.zeros((2, len(records)), np.int64)) == pytest.approx([0.0, 0.0])


def test_a_hundred_detections_of_a_class_count_in_an_image() -> None:
    true, elsewhere = rectangle(2, 2, 12, 12), rectangle(30, 20, 44, 30)
    instance = Instance(category_id=1, rle=encode(true))
    record = ImageRecord(id=1, file_name="a.png", size_hw=SIZE_HW, sha256="", group="", instances=(instance,))
    wrong = [result(1, 1, 0.9, elsewhere) for _ in range(100)]
    assert segm_map(match_table([record], CATEGORIES, [*wrong, result(1, 1, 0.8, true)])) == pytest.approx([0.0])
    assert segm_map(match_table([record], CATEGORIES, [*wrong[1:], result(1, 1, 0.8, true)])) == pytest.approx([0.01])


def test_a_result_of_another_image_or_without_a_score_is_refused() -> None:
    records, results = scene(1, num_scores=9)
    with pytest.raises(InputError, match="image 7, which is not one of"):
        match_table(records, CATEGORIES, [results[0] | {"image_id": 7}])
    with pytest.raises(InputError, match="has the score nan"):
        match_table(records, CATEGORIES, [results[0] | {"image_id": 3, "score": float("nan")}])
