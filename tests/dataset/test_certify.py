from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectory.artifacts.annotation import Category
from defectory.artifacts.certificate import Certificate, ImageUse, ReadFile, UsableSubset
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.dataset.certify import certify
from defectory.dataset.descriptor import describe
from defectory.dataset.duplicates import find_duplicates
from defectory.errors import InputError

SIZE_HW = (60, 84)
NUM_IMAGES = 12
DATASET = Dataset(
    categories=(Category(id=1, name="crack"),),
    images=tuple(
        ImageRecord(id=i, file_name=f"{i}.png", size_hw=SIZE_HW, sha256=f"sha{i}", group=str(i))
        for i in range(1, NUM_IMAGES + 1)
    ),
)
SPLIT = Split(
    dataset_digest=DATASET.digest(),
    seed=0,
    fraction=1.0,
    train=(1, 2, 3, 4),
    pool=(5, 6),
    val=(7, 8, 9),
    test=(10, 11, 12),
    pool_source="images",
    duplicate_threshold=0.8,
)
LEARNING: tuple[UsableSubset, ...] = ("train", "pool")


def use(*ids: int, may_use: tuple[UsableSubset, ...] = LEARNING, consumer: str = "mask bank") -> ImageUse:
    return ImageUse(consumer=consumer, may_use=may_use, image_ids=ids, files=(ReadFile(name="a.json", sha256="0"),))


def certified(*uses: ImageUse, **changed: Any) -> Certificate:
    known: dict[str, Any] = {
        "dataset": DATASET,
        "split": SPLIT,
        "pairs": (),
        "digests": {record.id: record.sha256 for record in DATASET.images},
        "compared": range(1, NUM_IMAGES + 1),
    }
    return certify(uses, **(known | changed))


def test_a_run_that_kept_to_its_split_holds() -> None:
    found = certified(
        use(1, 2, 5), use(7, 8, may_use=("val",), consumer="threshold"), use(10, may_use=("test",), consumer="evaluate")
    )
    assert (found.verdict, found.broken) == ("holds", ())
    assert [of.num_images for of in found.uses] == [3, 2, 1]


@pytest.mark.parametrize(
    ("of", "told"),
    [
        (use(1, 11), "mask bank: used image 11 (11.png) of test, and may use train and pool"),
        (use(8), "mask bank: used image 8 (8.png) of val, and may use train and pool"),
        (use(99), "mask bank: used image 99 of no subset, and may use train and pool"),
        (use(1, may_use=("val",), consumer="threshold"), "threshold: used image 1 (1.png) of train, and may use val"),
        (use(10, may_use=("val",), consumer="selection"), "selection: used image 10 (10.png) of test, and may use val"),
        (use(7, may_use=("test",), consumer="evaluate"), "evaluate: used image 7 (7.png) of val, and may use test"),
    ],
)
def test_an_image_of_another_subset_is_named(of: ImageUse, told: str) -> None:
    assert certified(use(2, consumer="prior"), of).broken == (told,)


def surface(seed: int) -> np.ndarray:
    rng = np.random.default_rng([11, seed])
    grey = sum(cv2.GaussianBlur(rng.normal(0, 1, SIZE_HW).astype(np.float32), (0, 0), s) * s for s in (1.0, 2.0, 5.0))
    grey = 120 + 30 * (grey - grey.mean()) / grey.std()
    return np.clip(np.round(np.repeat(grey[..., None], 3, axis=2)), 0, 255).astype(np.uint8)


def test_a_near_duplicate_of_a_test_image_in_train_is_named_and_only_where_it_was_used() -> None:
    images = {record.id: surface(record.id) for record in DATASET.images}
    images[3] = images[12][1:-1, ::-1].copy()  # mirrored and cut: another file, the same part
    pairs = find_duplicates({i: describe(image) for i, image in images.items()}, threshold=0.8).pairs
    found = certified(use(1, 3), use(1, 2, consumer="prior"), use(10, 12, may_use=("test",)), pairs=pairs)
    assert len(found.broken) == 1
    assert found.broken[0].startswith("mask bank: image 3 (3.png) is a near-duplicate of image 12 (12.png) of test (")


def test_a_copy_of_a_test_image_in_val_is_named_where_val_chooses() -> None:
    images = {record.id: surface(record.id) for record in DATASET.images}
    images[8] = images[11]
    pairs = find_duplicates({i: describe(image) for i, image in images.items()}, threshold=0.8).pairs
    found = certified(use(1, 3), use(7, 8, may_use=("val",), consumer="threshold"), pairs=pairs)
    assert found.broken == ("threshold: image 8 (8.png) is a near-duplicate of image 11 (11.png) of test (1.00)",)


def test_changed_files_and_a_partial_search_are_named() -> None:
    digests: dict[int, str | None] = {record.id: record.sha256 for record in DATASET.images}
    found = certified(use(1), digests=digests | {2: None, 10: "other"}, compared=range(1, 11))
    assert found.broken == (
        "missing or changed since the import: image 2 (2.png), image 10 (10.png)",
        "2 images took no part in the search for near-duplicates",
    )


def test_many_images_are_counted() -> None:
    found = certified(use(*range(20, 40)))
    assert found.broken[0].endswith("image 24 and 15 more of no subset, and may use train and pool")


def test_an_edited_certificate_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "certificate.json"
    found = certified(use(1, 11))
    found.save(path)
    assert Certificate.load(path) == found
    content = json.loads(path.read_text())
    assert (content["verdict"], content["seal"]) == ("broken", found.seal)
    content["uses"][0]["crossed"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="its content was changed after it was sealed"):
        Certificate.load(path)
