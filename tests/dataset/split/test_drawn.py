from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.split.make import make_split
from defectory.errors import ConfigError
from defectory.rle import encode

NAMES = ("blowhole", "break", "crack")
SIZE_HW = (6, 9)
A_PIXEL = encode(np.indices(SIZE_HW).sum(axis=0) == 0)
# (group, class ids) of an image
Row = tuple[str, Sequence[int]]


def dataset_of(rows: Sequence[Row], *, subset: Any = None, is_crowd: bool = False) -> Dataset:
    """A data set whose images are not on disk."""
    return Dataset(
        categories=tuple(Category(id=i, name=name) for i, name in enumerate(NAMES, start=1)),
        images=tuple(
            ImageRecord(
                id=number,
                file_name=f"{number}.png",
                size_hw=SIZE_HW,
                sha256=str(number),
                group=group,
                subset=subset,
                instances=tuple(Instance(category_id=c, rle=A_PIXEL, is_crowd=is_crowd) for c in classes),
            )
            for number, (group, classes) in enumerate(rows, start=1)
        ),
    )


def split_of(dataset: Dataset, *, seed: int = 0, **config: Any) -> Split:
    return make_split(Path("nowhere"), dataset, SplitConfig(**config), seed=seed, descriptors={})


def rows_of(*sizes: Sequence[int], free: int = 0) -> list[Row]:
    """A group of each size for each class in turn, and defect-free images, each a group of its own."""
    rows: list[Row] = []
    for category_id, groups in enumerate(sizes, start=1):
        rows += [(f"{category_id}-{g}", [category_id]) for g, size in enumerate(groups) for _ in range(size)]
    return rows + [(f"free{i}", []) for i in range(free)]


def classes_in(dataset: Dataset, ids: Sequence[int]) -> set[str]:
    return {dataset.category_name(i.category_id) for image_id in ids for i in dataset.image(image_id).instances}


sizes_of_groups = st.lists(st.integers(1, 9), min_size=1, max_size=8)
sets_of_data = st.tuples(st.lists(st.integers(1, 9), min_size=3, max_size=8), sizes_of_groups, sizes_of_groups)


@settings(max_examples=60, deadline=None)
@given(sizes=sets_of_data, seed=st.integers(0, 5), fraction=st.sampled_from([0.01, 0.1, 0.4, 1.0]))
def test_a_class_is_in_every_subset_that_its_groups_suffice_for(
    sizes: tuple[list[int], ...], seed: int, fraction: float
) -> None:
    dataset = dataset_of(rows_of(*sizes, free=4))
    split = split_of(dataset, seed=seed, fraction=fraction)
    for name, groups in zip(NAMES, sizes, strict=True):
        found = {s for s in ("train", "val", "test") if name in classes_in(dataset, getattr(split, s))}
        expected = ({"train"}, {"train", "test"}, {"train", "val", "test"})[min(len(groups), 3) - 1]
        assert found == expected
        lacking = {"train", "val", "test"} - expected
        assert any(f"no instance of `{name}`" in remark for remark in split.remarks) == bool(lacking)


@settings(max_examples=40, deadline=None)
@given(
    sizes=sets_of_data,
    seed=st.integers(0, 5),
    amounts=st.one_of(
        st.lists(st.builds(lambda f: {"fraction": f}, st.floats(0.01, 1)), min_size=2, max_size=4),
        st.lists(st.builds(lambda n: {"num_labelled": n}, st.integers(3, 60)), min_size=2, max_size=4),
    ),
)
def test_less_is_contained_in_more_and_test_stays(
    sizes: tuple[list[int], ...], seed: int, amounts: list[dict[str, Any]]
) -> None:
    dataset = dataset_of(rows_of(*sizes, free=7))
    splits = sorted((split_of(dataset, seed=seed, **of) for of in amounts), key=lambda split: len(split.train))
    for small, large in itertools.pairwise(splits):
        assert set(small.train) <= set(large.train)
        assert set(small.val) <= set(large.val)
        assert (small.test, small.pool) == (large.test, large.pool)
    for split in splits:
        assert not set(splits[-1].val) & set(split.train)


def test_the_same_seed_gives_the_same_split_and_another_one_another() -> None:
    dataset = dataset_of(rows_of([1] * 20, [1] * 20, free=10))
    assert split_of(dataset, seed=4) == split_of(dataset, seed=4)
    tests = {split_of(dataset, seed=seed).test for seed in range(5)}
    assert len(tests) == 5


def test_few_groups_of_a_class_are_named_with_the_reason() -> None:
    dataset = dataset_of(rows_of([1] * 10, [2, 2], [9]))
    split = split_of(dataset)
    assert split.remarks == (
        "val has no instance of `break`: all its images are two groups",
        "val and test have no instance of `crack`: all its images are one group",
    )


def test_a_group_that_holds_most_of_a_class_stays_in_train() -> None:
    dataset = dataset_of(rows_of([1] * 12, [20, 1, 2]))
    for seed in range(5):
        split = split_of(dataset, seed=seed)
        assert set(range(13, 33)) <= set(split.train)
        assert (
            "20 of 23 images of `break` are one group, which is in train, so the subsets miss their shares of it"
            in (split.remarks)
        )


def test_val_and_test_show_a_defect_even_if_every_class_is_one_group() -> None:
    dataset = dataset_of(rows_of([3], [3], [3], free=5))
    split = split_of(dataset)
    assert all(len(classes_in(dataset, getattr(split, subset))) == 1 for subset in ("train", "val", "test"))
    assert sum("all its images are one group" in remark for remark in split.remarks) == 3


def test_defect_free_images_have_their_share_of_every_subset() -> None:
    dataset = dataset_of(rows_of([2] * 10, free=40))
    split = split_of(dataset)
    free = [sum(not dataset.image(i).instances for i in ids) for ids in (split.val, split.test, split.pool)]
    assert free == [8, 8, 24]


def test_crowds_are_no_instance_of_their_class() -> None:
    crowds = dataset_of(rows_of([1] * 3), is_crowd=True).images
    rows = dataset_of(rows_of([1] * 3, [1] * 6))
    dataset = rows.model_copy(update={"images": (*crowds, *rows.images[3:])})
    assert not any("blowhole" in remark for remark in split_of(dataset).remarks)


def test_exactly_the_wanted_number_is_labelled_where_groups_permit() -> None:
    dataset = dataset_of(rows_of([1] * 40, [1] * 25, [1] * 20))
    for wanted in (5, 10, 25, 50):
        split = split_of(dataset, num_labelled=wanted)
        assert len(split.train) == wanted
        assert classes_in(dataset, split.train) == classes_in(dataset, split.val) == set(NAMES)
        assert split.fraction == pytest.approx(wanted / 51, abs=1e-3)
        assert not split.remarks


def test_a_number_of_images_is_met_exactly_and_comes_from_many_groups() -> None:
    dataset = dataset_of(rows_of([4] * 20, [4] * 20, [4] * 20))
    split = split_of(dataset, num_labelled=25)
    assert len(split.train) == 25
    assert len({dataset.image(i).group for i in split.train}) == 25
    assert not split.remarks
    few = split_of(dataset, num_labelled=5)
    assert len(few.train) == 5
    assert classes_in(dataset, few.train) == classes_in(dataset, few.val) == set(NAMES)
    assert len(few.val) == 3


def test_more_images_than_there_are_is_told() -> None:
    split = split_of(dataset_of(rows_of([1] * 5, [1] * 5, [1] * 5)), num_labelled=500)
    assert split.remarks == ("train has 9 labelled images, not 500, since there are no more",)


def test_test_images_have_a_seed_of_their_own() -> None:
    dataset = dataset_of(rows_of([1] * 20, [2] * 20, [3] * 5, free=10))
    splits = [split_of(dataset, seed=seed, test_seed=0, num_labelled=6) for seed in range(4)]
    assert len({split.test for split in splits}) == 1
    assert splits[0].test == split_of(dataset, seed=0).test
    assert len({split.train for split in splits}) == len({split.val for split in splits}) == 4
    folds = [split_of(dataset, seed=seed, test_seed=0, folds=3, fold=1) for seed in range(4)]
    assert len({split.test for split in folds}) == 1


def test_fewer_images_than_classes_are_refused_in_one_line() -> None:
    with pytest.raises(ConfigError) as caught:
        split_of(dataset_of(rows_of([1] * 9, [1] * 9, [1] * 9)), num_labelled=2)
    assert str(caught.value) == (
        "split.num_labelled 2: fewer images than the 3 classes of train; ask for 3 or more, or leave classes out "
        "(data.classes)"
    )


def test_a_fraction_of_less_than_an_image_per_class_is_told() -> None:
    split = split_of(dataset_of(rows_of([1] * 50, [1] * 50, [1] * 50)), fraction=0.01)
    assert split.remarks == (
        "split.fraction 0.01 asks for 1 of 90 labelled training images; train has 3, since each of 3 classes needs a "
        "group",
    )


def test_so_many_images_per_class_and_so_many_defect_free_ones() -> None:
    dataset = dataset_of(rows_of([1] * 50, [1] * 20, [1] * 10, free=80))
    five, eight = (split_of(dataset, num_per_class=n, num_defect_free=4 * n) for n in (5, 8))
    counts = [sum(name in classes_in(dataset, [i]) for i in five.train) for name in NAMES]
    assert counts == [5, 5, 5]
    assert len(five.pool) == 20
    assert set(five.pool) < set(eight.pool)
    assert set(five.train) < set(eight.train)
    assert five.test == eight.test == split_of(dataset).test
    assert five.remarks == ()
    assert eight.remarks == ("for 1 of 3 classes train has fewer than 8 images, and all are used",)


def test_defect_free_images_come_from_many_groups_and_none_may_be_wanted() -> None:
    rows = [*rows_of([1] * 9), *((f"part{i}", []) for i in range(10) for _ in range(6))]
    dataset = dataset_of(rows)
    split = split_of(dataset, num_defect_free=6)
    assert len({dataset.image(i).group for i in split.pool}) == 6
    none = split_of(dataset, num_defect_free=0)
    assert (none.pool, none.pool_source) == ((), "train_crops")
    few = split_of(dataset, num_defect_free=1000)
    assert any(f"the pool has {len(few.pool)} defect-free images, not 1000" in remark for remark in few.remarks)


def test_the_amount_of_labels_is_said_in_one_way() -> None:
    with pytest.raises(ValueError, match=r"split\.num_labelled and split\.num_per_class are set together"):
        SplitConfig(num_labelled=5, num_per_class=5)
    with pytest.raises(ValueError, match=r"split\.fraction and split\.num_labelled are set together"):
        SplitConfig(fraction=0.5, num_labelled=5)


def test_a_number_limits_train_of_a_given_split_and_leaves_the_rest() -> None:
    parts = [dataset_of(rows_of([1] * 9, [1] * 9, free=5), subset=subset).images for subset in ("train", "val", "test")]
    every = [record for part in parts for record in part]
    images = tuple(
        r.model_copy(update={"id": n, "group": str(n), "file_name": f"{n}.png"}) for n, r in enumerate(every)
    )
    dataset = Dataset(categories=dataset_of([("a", [1])]).categories, images=images)
    whole = split_of(dataset, from_data=True)
    few = split_of(dataset, from_data=True, num_labelled=4, num_defect_free=3)
    assert (few.val, few.test) == (whole.val, whole.test)
    assert set(few.train) < set(whole.train)
    assert (len(few.train), len(few.pool)) == (4, 3)
    assert classes_in(dataset, few.train) == {"blowhole", "break"}
