from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.dataset.config import SplitConfig
from defectory.dataset.split.make import make_split
from defectory.errors import FirewallError
from defectory.files import digest_file
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import encode

SIZE_HW = (64, 96)


def make_dataset(
    folder: Path,
    *,
    groups: int = 20,
    per_group: int = 2,
    clean_groups: int = 8,
    classes: int = 2,
    twin: bool = False,
    thin_groups: int = 0,
) -> Dataset:
    records: list[ImageRecord] = []

    def add(group: str, instances: tuple[Instance, ...], image: np.ndarray) -> None:
        name = f"{len(records):03d}.png"
        save_png(folder / "images" / name, image)
        digest = digest_file(folder / "images" / name)
        records.append(
            ImageRecord(
                id=len(records) + 1, file_name=name, size_hw=SIZE_HW, sha256=digest, group=group, instances=instances
            )
        )

    for group in range(groups):
        for shot in range(per_group):
            image = np.random.default_rng([group, shot]).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8)
            mask = np.zeros(SIZE_HW, bool)
            mask[10 : 16 if group < thin_groups else 20, 20 + shot : 40] = True
            add(f"g{group:02d}", (Instance(category_id=1 + group % classes, rle=encode(mask)),), image)
    for group in range(clean_groups):
        add(f"clean{group}", (), np.random.default_rng([99, group]).integers(0, 255, (*SIZE_HW, 3)).astype(np.uint8))
    if twin:
        add("copy", (), load_rgb(folder / "images" / "000.png"))
    return Dataset(
        categories=tuple(Category(id=i + 1, name=f"class{i}") for i in range(classes)), images=tuple(records)
    )


def groups_of(dataset: Dataset, ids: tuple[int, ...]) -> set[str]:
    return {dataset.image(i).group for i in ids}


def test_groups_never_straddle_subsets_and_the_seed_decides(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path)
    split = make_split(tmp_path, dataset, SplitConfig(), seed=3)
    subsets = [groups_of(dataset, ids) for ids in (split.train, split.val, split.test, split.pool)]
    for index, first in enumerate(subsets[:3]):
        for second in subsets[index + 1 :]:
            assert not first & second or (index == 0 and second is subsets[3])
    assert make_split(tmp_path, dataset, SplitConfig(), seed=3).digest() == split.digest()
    assert make_split(tmp_path, dataset, SplitConfig(), seed=4).digest() != split.digest()


def test_fractions_are_nested_share_their_test_and_keep_every_class(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, groups=40, per_group=1, classes=3)
    splits = [make_split(tmp_path, dataset, SplitConfig(fraction=f)) for f in (0.01, 0.5, 1.0)]
    for small, large in itertools.pairwise(splits):
        assert set(small.train + small.val) <= set(large.train + large.val)
        assert {i for i in small.test if dataset.image(i).instances} == {
            i for i in large.test if dataset.image(i).instances
        }
    for split in splits:
        assert {i.category_id for n in split.train for i in dataset.image(n).instances} == {1, 2, 3}
        assert any(dataset.image(n).instances for n in split.val)
    assert len(splits[0].train) < len(splits[1].train) < len(splits[2].train)


def test_folds_test_every_labelled_group_once(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, groups=9, per_group=1)
    tested = [i for fold in range(3) for i in make_split(tmp_path, dataset, SplitConfig(folds=3, fold=fold)).test]
    assert sorted(tested) == [record.id for record in dataset.images]


def test_near_duplicates_are_kept_together_and_reported(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, twin=True)
    split = make_split(tmp_path, dataset, SplitConfig())
    assert any("000.png" in line for line in split.moved_duplicates)
    twin, first = dataset.images[-1].id, dataset.images[0].id
    held_out = set(split.val) | set(split.test)
    # what shows a labelled defect is no background to draw defects on
    assert twin not in split.pool
    assert (twin in held_out) == (first in held_out)
    assert (twin in split.left_out_of_pool) == (first not in held_out)
    assert split.num_merges == 1


def test_the_firewall_refuses_val_and_test(tmp_path: Path) -> None:
    split = make_split(tmp_path, make_dataset(tmp_path), SplitConfig())
    split.require_training_ids([*split.train, *split.pool], stage="anything")
    for bad in (split.val[0], split.test[0]):
        with pytest.raises(FirewallError, match="prior"):
            split.require_training_ids([split.train[0], bad], stage="prior")


def test_without_defect_free_images_the_pool_is_crops_of_train(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, clean_groups=0)
    split = make_split(tmp_path, dataset, SplitConfig())
    assert split.pool_source == "train_crops"
