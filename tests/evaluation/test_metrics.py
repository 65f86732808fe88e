from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.spatial.distance import directed_hausdorff
from scipy.stats import wasserstein_distance

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.evaluation.config import EvaluationConfig
from defectory.evaluation.image_metrics import fid, kid, score_image_sets
from defectory.evaluation.mask_metrics import coco_truth, hausdorff_px, score_segmenter
from defectory.rle import encode

SIZE_HW = (60, 80)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="burn"))


def block(
    rng: np.random.Generator, shift: int = 0, at: tuple[int, int, int, int] | None = None
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    y, x, h, w = at or tuple(int(v) for v in (rng.integers(0, 30), rng.integers(0, 40), rng.integers(6, 24), rng.integers(6, 30)))
    mask = np.zeros(SIZE_HW, bool)
    mask[y + shift : y + h + shift, x : x + w] = True
    return mask, (y, x, h, w)


def random_case(seed: int) -> tuple[list[ImageRecord], list[dict[str, Any]]]:
    rng = np.random.default_rng(seed)
    records: list[ImageRecord] = []
    results: list[dict[str, Any]] = []
    for image_id in range(1, 9):
        instances: list[Instance] = []
        for _ in range(int(rng.integers(0, 3))):
            mask, at = block(rng)
            category = int(rng.integers(1, 3))
            instances.append(Instance(category_id=category, rle=encode(mask)))
            if rng.random() < 0.8:
                found, _ = block(rng, int(rng.integers(0, 5)), at)
                results.append(result(image_id, category if rng.random() < 0.85 else 3 - category, found, float(rng.random())))
        if rng.random() < 0.5:
            results.append(result(image_id, 1, block(rng)[0], float(rng.random())))
        records.append(
            ImageRecord(id=image_id, file_name=f"{image_id}.png", size_hw=SIZE_HW, sha256="0", group="g", instances=tuple(instances))
        )
    return records, results


def result(image_id: int, category_id: int, mask: np.ndarray, score: float) -> dict[str, Any]:
    ys, xs = np.nonzero(mask)
    box = [float(xs.min()), float(ys.min()), float(xs.max() - xs.min() + 1), float(ys.max() - ys.min() + 1)]
    rle = encode(mask)
    segmentation = {"size": list(rle.size_hw), "counts": rle.counts}
    return {"image_id": image_id, "category_id": category_id, "segmentation": segmentation, "bbox": box, "score": score}


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_pycocotools(seed: int, tmp_path: Path) -> None:
    records, results = random_case(seed)
    scores = score_segmenter(records, CATEGORIES, results, score_threshold=0.5)
    (tmp_path / "truth.json").write_text(json.dumps(coco_truth(records, CATEGORIES)))
    with contextlib.redirect_stdout(io.StringIO()):
        api = COCO(str(tmp_path / "truth.json"))
        found = api.loadRes([dict(r) for r in results])
        for kind, value in (("segm", scores.segm_map), ("bbox", scores.bbox_map)):
            oracle = COCOeval(api, found, kind)
            oracle.evaluate()
            oracle.accumulate()
            oracle.summarize()
            assert value == pytest.approx(oracle.stats[0], abs=1e-6)
            if kind == "segm":
                assert scores.ap50 == pytest.approx(oracle.stats[1], abs=1e-6)


def test_a_missed_instance_counts_zero_iou_and_full_distance() -> None:
    rng = np.random.default_rng(0)
    mask, _ = block(rng, at=(10, 10, 20, 20))
    other, _ = block(rng, at=(35, 50, 10, 10))
    record = ImageRecord(
        id=1, file_name="a.png", size_hw=SIZE_HW, sha256="0", group="g",
        instances=(Instance(category_id=1, rle=encode(mask)), Instance(category_id=1, rle=encode(other))),
    )  # fmt: skip
    half, _ = block(rng, at=(10, 10, 20, 10))
    scores = score_segmenter([record], CATEGORIES, [result(1, 1, half, 0.9)], score_threshold=0.5)
    assert scores.iou == pytest.approx(0.25)
    assert scores.iou_matched == pytest.approx(0.5)
    assert scores.hausdorff == pytest.approx((10 / 100 + 1) / 2)
    weak = score_segmenter([record], CATEGORIES, [result(1, 1, mask, 0.4)], score_threshold=0.5)
    assert (weak.iou, weak.hausdorff) == (0.0, 1.0)
    assert weak.segm_map > 0
    nothing = score_segmenter([record], CATEGORIES, [], score_threshold=0.5)
    assert (nothing.segm_map, nothing.iou, nothing.hausdorff) == (0.0, 0.0, 1.0)


def test_hausdorff_is_scipys() -> None:
    rng = np.random.default_rng(5)
    for _ in range(10):
        a, b = block(rng)[0], block(rng)[0]
        pa, pb = np.argwhere(a), np.argwhere(b)
        expected = max(directed_hausdorff(pa, pb)[0], directed_hausdorff(pb, pa)[0])
        assert hausdorff_px(a, b) == pytest.approx(expected, abs=0.05 * expected + 1e-6)


def test_kid_and_fid_are_torchmetrics_on_the_same_features() -> None:
    from torchmetrics.image.kid import poly_mmd

    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((40, 12)), rng.standard_normal((30, 12)) * 1.3 + 0.4
    expected = float(poly_mmd(torch.from_numpy(a[:30]), torch.from_numpy(b)))
    assert kid(a[:30], b) == pytest.approx(expected, rel=1e-4)
    mean = ((a.mean(0) - b.mean(0)) ** 2).sum()
    from scipy.linalg import sqrtm

    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    assert fid(a, b) == pytest.approx(mean + np.trace(ca + cb - 2 * np.real(sqrtm(ca @ cb))), rel=1e-6)


def test_tones_are_compared_by_wasserstein_distance_with_a_real_floor() -> None:
    rng = np.random.default_rng(2)

    def images(level: float, count: int) -> list[np.ndarray]:
        return [np.clip(rng.normal(level + 4 * i, 20, (12, 16, 1)), 0, 255).astype(np.uint8).repeat(3, axis=2) for i in range(count)]

    synthetic, train, test = images(100, 6), images(60, 6), images(62, 6)
    features = tuple(rng.standard_normal((6, 5)) for _ in range(3))
    scores = score_image_sets(
        synthetic=synthetic, real_train=train, real_test=test, features=features, encoder_name="some-encoder",
        config=EvaluationConfig(bootstrap_samples=10), seed=0,
    )  # fmt: skip

    def means(batch: list[np.ndarray]) -> list[float]:
        return [float(i.mean()) for i in batch]

    assert scores.mean_wasserstein == pytest.approx(wasserstein_distance(means(synthetic), means(test)))
    assert scores.mean_wasserstein_floor == pytest.approx(wasserstein_distance(means(train), means(test)))
    assert scores.encoder == "some-encoder"
    assert scores.kid_interval[0] <= scores.kid_interval[1]
