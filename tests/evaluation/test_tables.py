from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import ImageRecord
from defectory.errors import StageError
from defectory.evaluation.mask_metrics import score_segmenter, score_with_table
from defectory.evaluation.tables import TABLE_SCORES, ScoreTable
from defectory.rle import encode

SIZE_HW = (17, 23)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="pit"))


def scene(seed: int, num_images: int) -> tuple[list[ImageRecord], list[dict[str, object]]]:
    """Images with random boxes as instances, some without any, and detections near and far; scores are often equal."""
    rng = np.random.default_rng(seed)
    records: list[ImageRecord] = []
    results: list[dict[str, object]] = []

    def box() -> np.ndarray:
        mask = np.zeros(SIZE_HW, bool)
        y, x, h, w = (int(v) for v in rng.integers([0, 0, 2, 2], [12, 18, 6, 6]))
        mask[y : y + h, x : x + w] = True
        return mask

    for number in range(1, num_images + 1):
        instances: list[Instance] = []
        for _ in range(int(rng.integers(0, 3))):
            mask, category_id = box(), int(rng.integers(1, 3))
            instances.append(Instance(category_id=category_id, rle=encode(mask)))
            if rng.random() < 0.7:
                results.append(_result(number, category_id, np.roll(mask, int(rng.integers(0, 2)), 1), rng))
        if rng.random() < 0.5:
            results.append(_result(number, int(rng.integers(1, 3)), box(), rng))
        records.append(
            ImageRecord(
                id=number,
                file_name=f"{number}.png",
                size_hw=SIZE_HW,
                sha256=str(number),
                group=str(number // 2),
                instances=tuple(instances),
            )
        )
    return records, results


def _result(image_id: int, category_id: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
    rle = encode(mask)
    return {
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": {"size": list(rle.size_hw), "counts": rle.counts},
        "score": round(float(rng.random()), 1),
        "bbox": [0, 0, 1, 1],
    }


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), num_images=st.integers(1, 7))
def test_a_table_gives_the_scores_of_the_images_as_they_are(seed: int, num_images: int) -> None:
    records, results = scene(seed, num_images)
    scores, table = score_with_table(records, CATEGORIES, results, score_threshold=0.4)
    found = {name: float(score(table)[0]) for name, score in TABLE_SCORES.items()}
    assert found["segm_map"] == pytest.approx(scores.segm_map, abs=1e-9)
    assert found["pixel_ap"] == pytest.approx(scores.pixel_ap, abs=1e-9)
    assert found["missed_defect_rate"] == pytest.approx(scores.plant.missed_defect_rate or 0.0)
    assert found["false_alarms_per_100_good_images"] == pytest.approx(
        scores.plant.false_alarms_per_100_good_images or 0.0
    )


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_copies_of_images_score_like_a_data_set_that_holds_them(seed: int, data: st.DataObject) -> None:
    records, results = scene(seed, 4)
    copies = np.array(data.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4)))
    _, table = score_with_table(records, CATEGORIES, results, score_threshold=0.4)
    repeated: list[ImageRecord] = []
    of_copies: list[dict[str, object]] = []
    for record, count in zip(records, copies, strict=True):
        for _ in range(count):
            number = len(repeated) + 1
            repeated.append(record.model_copy(update={"id": number}))
            of_copies += [{**r, "image_id": number} for r in results if r["image_id"] == record.id]
    wanted = score_segmenter(repeated, CATEGORIES, of_copies, score_threshold=0.4)
    found = {name: float(score(table, copies[None])[0]) for name, score in TABLE_SCORES.items()}
    assert found["pixel_ap"] == pytest.approx(wanted.pixel_ap, abs=1e-9)
    assert found["missed_defect_rate"] == pytest.approx(wanted.plant.missed_defect_rate or 0.0)
    assert found["false_alarms_per_100_good_images"] == pytest.approx(
        wanted.plant.false_alarms_per_100_good_images or 0.0
    )


def test_a_table_is_the_same_after_saving(tmp_path: Path) -> None:
    records, results = scene(3, 6)
    _, table = score_with_table(records, CATEGORIES, results, score_threshold=0.4)
    table.save(tmp_path / "t.npz")
    loaded = ScoreTable.load(tmp_path / "t.npz")
    copies = np.random.default_rng(0).integers(0, 3, (5, 6))
    for score in TABLE_SCORES.values():
        np.testing.assert_array_equal(score(loaded, copies), score(table, copies))


def test_half_a_table_is_refused_in_one_line(tmp_path: Path) -> None:
    records, results = scene(3, 6)
    _, table = score_with_table(records, CATEGORIES, results, score_threshold=0.4)
    table.save(tmp_path / "t.npz")
    whole = (tmp_path / "t.npz").read_bytes()
    (tmp_path / "t.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StageError, match="run the stage `evaluate` again"):
        ScoreTable.load(tmp_path / "t.npz")
