"""A split that is drawn by stratification of whole groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.duplicates import Duplicates
from defectory.dataset.split.groups import (
    DEFECT_FREE,
    INSTANCES_OF,
    LABELLED,
    Groups,
    Merged,
    amounts_of,
    images_per_class,
    labelled_of,
    merge,
)
from defectory.dataset.split.labelled import choose, choose_val
from defectory.dataset.split.pool import pool_of
from defectory.dataset.split.stratify import Subset, stratify
from defectory.errors import ConfigError

LARGE_SHARE = 0.2
"""If near-duplicates join a group larger than this share of the images, a remark says so."""
MOST = 0.5
"""A group with more than this share of a class's images keeps val and test from their share; a remark says so."""
NEED_IN_TRAIN, NEED_IN_TEST = 100.0, 10.0
"""How much worse it is that train, or test, lacks a class than that val does."""


def drawn(dataset: Dataset, config: SplitConfig, duplicates: Duplicates, remarks: list[str], *, seed: int) -> Split:
    """Draw train, val, test and pool; remarks are added to those there are.

    Raises:
        ConfigError: there are too few groups, or fewer labelled images are wanted than there are classes.
    """
    merged = merge(dataset, duplicates.pairs)
    groups: dict[str, list[ImageRecord]] = {}
    for record in dataset.images:
        groups.setdefault(merged.root_of[record.group], []).append(record)
    labelled = labelled_of(groups)
    _require_groups(labelled, merged, config)
    remarks += _joined(groups, merged, len(dataset.images))
    subset_of = _subsets(groups, config, seed)
    _require_two_beside_test(labelled, subset_of, config)
    remarks += _lacking(dataset, labelled, subset_of)
    every = {name: [n for n in labelled if subset_of[n] == name] for name in ("train", "val")}
    training = {name: labelled[name] for name in every["train"]}
    chosen = choose(training, config, seed=[3, seed])
    remarks += chosen.remarks
    train = chosen.image_ids
    share = len(train) / sum(len(records) for records in training.values())
    validating = {name: labelled[name] for name in every["val"]}
    val = choose_val(validating, share, config, seed=[4, seed])
    free_of_val = [r.id for name in groups if subset_of[name] == "val" for r in groups[name] if r.is_defect_free]
    outside = {name: records for name, records in groups.items() if subset_of[name] == "train"}
    pool, left_out = pool_of(dataset, outside, duplicates.pairs, config, remarks, seed=seed)
    is_number = config.num_labelled is not None or config.num_per_class is not None
    return Split(
        dataset_digest=dataset.digest(),
        seed=seed,
        fraction=round(share, 4) if is_number else config.fraction,
        fold=None if config.folds is None else config.fold,
        train=tuple(sorted(train)),
        val=tuple(sorted({*val, *free_of_val})),
        test=tuple(sorted(r.id for name, records in groups.items() if subset_of[name] == "test" for r in records)),
        pool=tuple(pool),
        pool_source="images" if pool else "train_crops",
        duplicate_threshold=duplicates.threshold,
        num_merges=merged.num_merges,
        moved_duplicates=merged.told,
        left_out_of_pool=tuple(left_out),
        remarks=tuple(remarks),
    )


def _require_groups(labelled: Groups, merged: Merged, config: SplitConfig) -> None:
    if len(labelled) < 3:
        kept = f" after {merged.num_merges} merges of near-duplicates" if merged.num_merges else ""
        raise ConfigError(
            "split",
            f"{len(labelled)} groups with defects{kept}, at least 3 needed",
            "label more images or give them groups of their own",
        )
    if config.folds is not None and (config.fold >= config.folds or config.folds > len(labelled)):
        raise ConfigError(
            "split.folds",
            f"fold {config.fold} of {config.folds} with {len(labelled)} groups",
            "use fewer folds or another fold",
        )


def _require_two_beside_test(labelled: Groups, subset_of: Mapping[str, str], config: SplitConfig) -> None:
    """Refuse a fold with nearly all groups: folds even out images, and one group may have as many as all others."""
    left = sum(subset_of[name] != "test" for name in labelled)
    if left < 2:
        raise ConfigError(
            "split.folds",
            f"fold {config.fold} of {config.folds} tests {len(labelled) - left} of {len(labelled)} groups with "
            f"defects, which leaves {left} for train and val, 2 needed",
            "use more folds, or give images groups of their own",
        )


def _subsets(groups: Groups, config: SplitConfig, seed: int) -> dict[str, str]:
    """Return the subset of each group: train, val or test."""
    amounts = {name: amounts_of(records) for name, records in groups.items()}
    # every subset must show some defect; beside that, a class counts more than defect-free images
    importance = {label: 1.0 for of in amounts.values() for label in of if 0 < label < INSTANCES_OF}
    importance |= {LABELLED: 1000.0, DEFECT_FREE: 0.5}

    def share_out(names: Sequence[str], subsets: Sequence[Subset], stream: int, seed: int) -> list[int]:
        of, sizes = [amounts[name] for name in names], [len(groups[name]) for name in names]
        return stratify(of, subsets, sizes=sizes, importance=importance, seed=[stream, seed])

    names = sorted(groups)
    test_seed = seed if config.test_seed is None else config.test_seed
    train = Subset(share=1 - config.test_share - config.val_share, need=NEED_IN_TRAIN)
    val, test = Subset(share=config.val_share), Subset(share=config.test_share, need=NEED_IN_TEST)
    if config.folds is None:
        found = share_out(names, (train, val, test), 1, test_seed)
        subset_of = {name: ("train", "val", "test")[place] for name, place in zip(names, found, strict=True)}
        if test_seed == seed:
            return subset_of
        subset_of = {name: subset for name, subset in subset_of.items() if subset == "test"}
        rest, share = [name for name in names if name not in subset_of], config.val_share / (1 - config.test_share)
        return subset_of | _train_and_val(rest, share_out(rest, _two(share), 2, seed))
    folds = [Subset(share=1 / config.folds)] * config.folds
    fold_of = share_out(names, folds, 1, test_seed)
    subset_of = {name: "test" for name, fold in zip(names, fold_of, strict=True) if fold == config.fold}
    rest = [name for name in names if name not in subset_of]
    share = config.val_share / (1 - config.test_share)
    return subset_of | _train_and_val(rest, share_out(rest, _two(share), 2, seed))


def _two(val_share: float) -> tuple[Subset, Subset]:
    return Subset(share=1 - val_share, need=NEED_IN_TRAIN), Subset(share=val_share)


def _train_and_val(names: Sequence[str], places: Sequence[int]) -> dict[str, str]:
    return {name: ("train", "val")[place] for name, place in zip(names, places, strict=True)}


def _joined(groups: Groups, merged: Merged, num_images: int) -> Iterator[str]:
    largest = max((len(records) for records in groups.values()), default=0)
    if merged.num_merges and largest >= max(10, LARGE_SHARE * num_images):
        yield (
            f"near-duplicates and groups join {largest} of {num_images} images; "
            "if they show different parts, raise split.duplicate_similarity"
        )


def _lacking(dataset: Dataset, labelled: Groups, subset_of: Mapping[str, str]) -> Iterator[str]:
    """Say which classes a subset has no instance of, or fewer than its share, because of groups."""
    counts = {name: images_per_class(records) for name, records in labelled.items()}
    for category in dataset.categories:
        sizes = {name: of[category.id] for name, of in counts.items() if category.id in of}
        if not sizes:
            continue
        have = {subset_of[name] for name in sizes}
        lacking = [subset for subset in ("train", "val", "test") if subset not in have]
        if lacking:
            yield f"{_listed(lacking)} no instance of `{category.name}`: {_why(len(sizes))}"
        largest, total = max(sizes, key=lambda name: sizes[name]), sum(sizes.values())
        if len(sizes) > 1 and sizes[largest] > MOST * total:
            yield (
                f"{sizes[largest]} of {total} images of `{category.name}` are one group, which is in "
                f"{subset_of[largest]}, so the subsets miss their shares of it"
            )


def _listed(subsets: Sequence[str]) -> str:
    return f"{subsets[0]} has" if len(subsets) == 1 else f"{' and '.join(subsets)} have"


def _why(num_groups: int) -> str:
    if num_groups <= 2:
        return f"all its images are {('one group', 'two groups')[num_groups - 1]}"
    return f"its {num_groups} groups hold other classes too, which are needed elsewhere"
