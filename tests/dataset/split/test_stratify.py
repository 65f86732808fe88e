from __future__ import annotations

from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from defectory.dataset.split.stratify import Subset, stratify

THREE = (Subset(share=0.6, need=100), Subset(share=0.2), Subset(share=0.2, need=10))
"""Train, val and test."""
Groups = list[dict[int, float]]


def placed(groups: Groups, *, seed: int = 0) -> list[int]:
    labels = {label for of in groups for label in of}
    sizes = [int(max(of.values())) for of in groups]
    return stratify(groups, THREE, sizes=sizes, importance=dict.fromkeys(labels, 1.0), seed=[seed])


def missing(groups: Groups, subset_of: list[int] | tuple[int, ...]) -> float:
    labels = {label for of in groups for label in of}
    have = {(label, s) for of, s in zip(groups, subset_of, strict=True) for label in of}
    return sum(subset.need for label in labels for s, subset in enumerate(THREE) if (label, s) not in have)


@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=25), seed=st.integers(0, 3)
)
def test_a_label_with_three_groups_is_everywhere_whatever_their_sizes(sizes: list[tuple[int, int]], seed: int) -> None:
    groups: Groups = [{label: float(size)} for label, size in sizes]
    found = placed(groups, seed=seed)
    for label in {label for label, _ in sizes}:
        subsets = {s for of, s in zip(groups, found, strict=True) if label in of}
        count = sum(label in of for of in groups)
        assert subsets == ({0, 1, 2} if count >= 3 else {0, 2} if count == 2 else {0})


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.frozensets(st.integers(1, 3), min_size=1), min_size=1, max_size=6), seed=st.integers(0, 3))
def test_with_several_labels_in_a_group_no_move_of_one_makes_less_missing(
    labels: list[frozenset[int]], seed: int
) -> None:
    groups: Groups = [dict.fromkeys(sorted(of), 1.0) for of in labels]
    found = placed(groups, seed=seed)
    for place, subset in product(range(len(groups)), range(3)):
        assert missing(groups, [*found[:place], subset, *found[place + 1 :]]) >= missing(groups, found)


def test_the_large_group_of_a_label_goes_to_train_and_small_ones_elsewhere() -> None:
    groups: Groups = [{1: 1.0}, {1: 2.0}, {1: 30.0}, *({2: 1.0} for _ in range(20))]
    for seed in range(5):
        found = placed(groups, seed=seed)
        assert found[2] == 0
        assert set(found[:2]) == {1, 2}


def test_even_groups_are_shared_out_exactly_and_the_seed_says_which() -> None:
    groups: Groups = [{1 + i % 3: 1.0} for i in range(60)]
    found = placed(groups)
    for label in (1, 2, 3):
        of = [s for amounts, s in zip(groups, found, strict=True) if label in amounts]
        assert [of.count(s) for s in range(3)] == [12, 4, 4]
    assert placed(groups) == found
    assert placed(groups, seed=1) != found


def test_images_that_are_alike_in_all_else_are_told_apart_by_their_instances() -> None:
    # label 1 is an image, label 101 its instances: one image of four has nearly all of them
    groups: Groups = [{1: 1.0, 101: 10.0 if i % 4 == 0 else 1.0} for i in range(100)]
    for seed in range(5):
        found = placed(groups, seed=seed)
        assert [found.count(s) for s in range(3)] == [60, 20, 20]
        in_val, in_test = (sum(of[101] for of, s in zip(groups, found, strict=True) if s == k) for k in (1, 2))
        assert abs(in_val - in_test) <= 10
