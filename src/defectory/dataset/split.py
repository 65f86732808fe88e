"""The frozen split: drawn by group with near-duplicates kept together, or taken from the data set."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.descriptor import ImageDescriptor, describe_images
from defectory.dataset.duplicates import DuplicatePair, Duplicates, find_duplicates
from defectory.errors import ConfigError

MAX_TOLD = 20
"""Maximum number of pairs that a split lists; the rest are counted."""
MAX_NAMED = 3
LARGE_SHARE = 0.2
"""If near-duplicates join a group larger than this share of the images, a remark says so."""

Groups = dict[str, list[ImageRecord]]


@dataclass(frozen=True, kw_only=True)
class _Merged:
    """Groups after merging those that share near-duplicates: the root of each group, and the merges."""

    root_of: dict[str, str]
    num_merges: int
    told: tuple[str, ...]


def make_split(
    folder: Path,
    dataset: Dataset,
    config: SplitConfig,
    *,
    seed: int = 0,
    descriptors: Mapping[int, ImageDescriptor] | None = None,
) -> Split:
    """Split a data set into train, val, test and pool.

    Labelled groups are ordered once, with classes interleaved. Test takes its share from the end, so that it is the
    same for every fraction. A fraction is a prefix of the rest, so that 1% is contained in 5% and 5% in 10%, and val is
    drawn inside the fraction. Defect-free images of groups outside val and test form the pool, except copies of
    labelled images.

    Args:
        folder: data set folder.
        dataset: its value.
        config: shares and folds, or whether to use the data set's own subsets.
        seed: of the order of groups.
        descriptors: descriptor of each image id; None computes them.

    Raises:
        ConfigError: there are too few groups for the requested subsets, or the data set has no such subsets.
        ImageError: an image cannot be read.
    """
    if config.from_data:
        _require_subsets(dataset, config)
    if descriptors is None:
        descriptors = dict(describe_images(folder, dataset))
    duplicates = find_duplicates(descriptors, threshold=config.duplicate_similarity)
    remarks = _remarks(dataset, config, duplicates)
    return (_given if config.from_data else _drawn)(dataset, config, duplicates, remarks, seed=seed)


def _remarks(dataset: Dataset, config: SplitConfig, duplicates: Duplicates) -> list[str]:
    remarks: list[str] = []
    brought = Counter(record.subset for record in dataset.images if record.subset is not None)
    if brought and not config.from_data:
        told = ", ".join(f"{subset} {brought[subset]}" for subset in ("train", "val", "test") if brought[subset])
        remarks.append(f"the data set comes with its own split ({told} images); split.from_data = true keeps it")
    if duplicates.threshold > config.duplicate_similarity:
        remarks.append(
            f"all images of this set are similar (random pairs: {duplicates.typical_similarity:.2f}), "
            f"so images count as copies from a similarity of {duplicates.threshold:.3f}"
        )
    return remarks


def _drawn(dataset: Dataset, config: SplitConfig, duplicates: Duplicates, remarks: list[str], *, seed: int) -> Split:
    merged = _merge(dataset, duplicates.pairs)
    groups: Groups = {}
    for record in dataset.images:
        groups.setdefault(merged.root_of[record.group], []).append(record)
    largest = max((len(records) for records in groups.values()), default=0)
    if merged.num_merges and largest >= max(10, LARGE_SHARE * len(dataset.images)):
        remarks.append(
            f"near-duplicates and groups join {largest} of {len(dataset.images)} images; "
            "if they show different parts, raise split.duplicate_similarity"
        )
    labelled = {name: [r for r in records if not r.is_defect_free] for name, records in groups.items()}
    ordered = _interleave({name: records for name, records in labelled.items() if records}, seed)
    if len(ordered) < 3:
        kept = f" after {merged.num_merges} merges of near-duplicates" if merged.num_merges else ""
        raise ConfigError(
            "split",
            f"{len(ordered)} groups with defects{kept}, at least 3 needed",
            "label more images or give them groups of their own",
        )
    test_groups, rest = _test_groups(ordered, labelled, config)
    val_share = config.val_share / (1 - config.test_share)
    chosen = _prefix(rest, labelled, config.fraction, val_share)
    val_groups, train_groups = _val_groups(chosen, labelled, val_share)
    clean_test, clean_val = _clean_groups([name for name in groups if not labelled[name]], config, seed=seed)
    held_out, val_names = {*test_groups, *clean_test}, {*val_groups, *clean_val}
    assert not set(train_groups) & (held_out | val_names)
    pool, left_out = _pool(dataset, groups, held_out | val_names, duplicates.pairs, remarks)
    return Split(
        dataset_digest=dataset.digest(),
        seed=seed,
        fraction=config.fraction,
        fold=None if config.folds is None else config.fold,
        train=tuple(sorted(r.id for name in train_groups for r in labelled[name])),
        val=tuple(sorted(r.id for name in val_names for r in groups[name])),
        test=tuple(sorted(r.id for name in held_out for r in groups[name])),
        pool=tuple(pool),
        pool_source="images" if pool else "train_crops",
        duplicate_threshold=duplicates.threshold,
        num_merges=merged.num_merges,
        moved_duplicates=merged.told,
        left_out_of_pool=tuple(left_out),
        remarks=tuple(remarks),
    )


def _clean_groups(names: Sequence[str], config: SplitConfig, *, seed: int) -> tuple[list[str], list[str]]:
    """Return the groups without defects for test and for val."""
    ordered = sorted(names)
    ordered = [ordered[i] for i in np.random.default_rng([2, seed]).permutation(len(ordered))]
    num_val = round(len(ordered) * config.val_share)
    if config.folds is not None:
        size = len(ordered) / config.folds
        low, high = round(size * config.fold), round(size * (config.fold + 1))
        return ordered[low:high], (ordered[:low] + ordered[high:])[:num_val]
    num_test = round(len(ordered) * config.test_share)
    return ordered[:num_test], ordered[num_test : num_test + num_val]


def _pool(
    dataset: Dataset, groups: Groups, held_out: set[str], pairs: Sequence[DuplicatePair], remarks: list[str]
) -> tuple[list[int], list[int]]:
    """Return the ids of the defect-free images in the pool, and of those left out as copies of images with defects."""
    unsafe = _copies_of_labelled(dataset, pairs)
    pool: list[int] = []
    copies: list[int] = []
    for name, records in groups.items():
        clean = [record.id for record in records if record.is_defect_free]
        if name in held_out:
            continue
        copies += [image_id for image_id in clean if image_id in unsafe]
        pool += [image_id for image_id in clean if image_id not in unsafe]
    _tell_copies(dataset, copies, remarks)
    return sorted(pool), sorted(copies)


def _copies_of_labelled(dataset: Dataset, pairs: Sequence[DuplicatePair]) -> set[int]:
    """Return ids of defect-free images that are copies of an image with defects; one of the two labels is wrong."""
    found: set[int] = set()
    for pair in pairs:
        first, second = dataset.image(pair.first), dataset.image(pair.second)
        if first.is_defect_free != second.is_defect_free:
            found.add(first.id if first.is_defect_free else second.id)
    return found


def _tell_copies(dataset: Dataset, copies: Sequence[int], remarks: list[str]) -> None:
    if copies:
        remarks.append(
            f"{len(copies)} defect-free images are copies of images with defects and were left out of the pool "
            f"({_named(dataset, copies)})"
        )


def _named(dataset: Dataset, ids: Sequence[int]) -> str:
    names = ", ".join(dataset.image(image_id).file_name for image_id in ids[:MAX_NAMED])
    return names + (", ..." if len(ids) > MAX_NAMED else "")


def _require_subsets(dataset: Dataset, config: SplitConfig) -> None:
    brought = Counter(record.subset for record in dataset.images if record.subset is not None)
    missing = [subset for subset in ("train", "val", "test") if not brought[subset]]
    if missing:
        told = "has no split of its own" if not brought else f"has no {' and no '.join(missing)} subset"
        raise ConfigError(
            "split.from_data", f"the data set {told}", "set split.from_data = false to draw a split by group"
        )
    if config.folds is not None:
        raise ConfigError("split.from_data", "is set together with split.folds", "leave one of them out")


def _given(dataset: Dataset, config: SplitConfig, duplicates: Duplicates, remarks: list[str], *, seed: int) -> Split:
    """Keep the data set's own subsets; remove from train the copies of val and test, and from val those of test."""
    ids: dict[str | None, list[int]] = {}
    for record in dataset.images:
        # images without a subset, such as a folder of defect-free images, can only serve training
        subset = "train" if record.subset is None and record.is_defect_free else record.subset
        ids.setdefault(subset, []).append(record.id)
    if None in ids:
        remarks.append(
            f"{len(ids[None])} images with defects belong to no subset of the data set's split and are not used"
        )
    copies = _copies_between(ids, duplicates.pairs)
    for subset, other in (("train", "val"), ("train", "test"), ("val", "test")):
        crossing = copies[subset, other]
        if crossing:
            remarks.append(
                f"{len(crossing)} images of {subset} are copies of images of {other} and are left out of {subset} "
                f"({_named(dataset, crossing)})"
            )
    val = [image_id for image_id in ids["val"] if image_id not in copies["val", "test"]]
    dropped = {*copies["train", "val"], *copies["train", "test"]}
    train = [image_id for image_id in ids["train"] if image_id not in dropped]
    straddling = _straddling(dataset, {"train": train, "val": val, "test": ids["test"]})
    if straddling:
        remarks.append(
            f"{len(straddling)} groups are in several subsets of the data set's split "
            f"({', '.join(straddling[:MAX_NAMED])})"
        )
    labelled: Groups = {}
    for image_id in train:
        record = dataset.image(image_id)
        if not record.is_defect_free:
            labelled.setdefault(record.group, []).append(record)
    if not labelled or not any(dataset.image(image_id).instances for image_id in val):
        subset = "val" if labelled else "train"
        raise ConfigError(
            "split.from_data",
            f"no image with a defect is left in {subset}",
            "set split.from_data = false to draw a split by group",
        )
    chosen = _shortest(_interleave(labelled, seed), labelled, config.fraction)
    unsafe = _copies_of_labelled(dataset, duplicates.pairs)
    clean = [image_id for image_id in train if dataset.image(image_id).is_defect_free]
    left_out = [image_id for image_id in clean if image_id in unsafe]
    _tell_copies(dataset, left_out, remarks)
    pool = [image_id for image_id in clean if image_id not in unsafe]
    return Split(
        dataset_digest=dataset.digest(),
        seed=seed,
        fraction=config.fraction,
        source="data",
        train=tuple(sorted(record.id for name in chosen for record in labelled[name])),
        val=tuple(sorted(val)),
        test=tuple(sorted(ids["test"])),
        pool=tuple(sorted(pool)),
        pool_source="images" if pool else "train_crops",
        duplicate_threshold=duplicates.threshold,
        left_out_of_pool=tuple(sorted(left_out)),
        remarks=tuple(remarks),
    )


def _copies_between(
    ids: Mapping[str | None, Sequence[int]], pairs: Sequence[DuplicatePair]
) -> dict[tuple[str, str], list[int]]:
    """Return the ids of images that are copies of images of another subset.

    The pairs of subsets are train and val, train and test, val and test; the ids are of the former subset.
    """
    subset_of = {image_id: subset for subset, members in ids.items() for image_id in members}
    found: dict[tuple[str, str], set[int]] = {("train", "val"): set(), ("train", "test"): set(), ("val", "test"): set()}
    for pair in pairs:
        for one, other in ((pair.first, pair.second), (pair.second, pair.first)):
            key = (subset_of[one] or "", subset_of[other] or "")
            if key in found:
                found[key].add(one)
    return {key: sorted(members) for key, members in found.items()}


def _straddling(dataset: Dataset, subsets: Mapping[str, Sequence[int]]) -> list[str]:
    seen: dict[str, set[str]] = {}
    for subset, ids in subsets.items():
        for image_id in ids:
            seen.setdefault(dataset.image(image_id).group, set()).add(subset)
    return sorted(group for group, within in seen.items() if len(within) > 1)


def _interleave(labelled: Mapping[str, Sequence[ImageRecord]], seed: int) -> list[str]:
    """Order groups so that every prefix has the class shares of the whole data set as closely as possible."""
    rng = np.random.default_rng([1, seed])
    names = sorted(labelled)
    names = [names[i] for i in rng.permutation(len(names))]
    content = {name: Counter(i.category_id for r in labelled[name] for i in r.instances) for name in names}
    total = sum(content.values(), Counter[int]())
    queues = {c: deque(name for name in names if content[name][c]) for c in total}
    have: Counter[int] = Counter()
    used: set[str] = set()
    ordered: list[str] = []
    while len(ordered) < len(names):
        for queue in queues.values():
            while queue and queue[0] in used:
                queue.popleft()
        # the class furthest below its share comes next, the rarest first
        behind = min((c for c in total if queues[c]), key=lambda c: (have[c] / total[c], total[c]))
        best = queues[behind].popleft()
        used.add(best)
        ordered.append(best)
        have += content[best]
    return ordered


def _test_groups(
    ordered: list[str], labelled: Mapping[str, Sequence[ImageRecord]], config: SplitConfig
) -> tuple[list[str], list[str]]:
    if config.folds is not None:
        if config.fold >= config.folds or config.folds > len(ordered):
            raise ConfigError(
                "split.folds",
                f"fold {config.fold} of {config.folds} with {len(ordered)} groups",
                "use fewer folds or another fold",
            )
        test = ordered[config.fold :: config.folds]
    else:
        wanted = config.test_share * sum(len(labelled[name]) for name in ordered)
        test, count = [], 0
        for name in _spread(ordered, config.test_share):
            if count >= wanted:
                break
            test.append(name)
            count += len(labelled[name])
    taken = set(test)
    return test, [name for name in ordered if name not in taken]


def _spread(ordered: list[str], share: float) -> list[str]:
    """Return groups from evenly spaced positions of an interleaved order first, so that a subset has every class."""
    step = max(2, round(1 / share))
    return [ordered[i] for offset in range(step) for i in range(step - 1 - offset, len(ordered), step)]


def _prefix(
    rest: list[str], labelled: Mapping[str, Sequence[ImageRecord]], fraction: float, val_share: float
) -> list[str]:
    """Return the shortest prefix that contains the fraction of images and, after val is drawn, every class in train."""
    total = sum(len(labelled[name]) for name in rest)
    available = _classes(rest, labelled)
    chosen: list[str] = []
    count = 0
    for name in rest:
        if count >= fraction * total - 1e-9 and len(chosen) >= 2:
            train = _val_groups(chosen, labelled, val_share)[1]
            if available <= _classes(train, labelled):
                break
        chosen.append(name)
        count += len(labelled[name])
    return chosen


def _shortest(ordered: list[str], labelled: Mapping[str, Sequence[ImageRecord]], fraction: float) -> list[str]:
    """Return the shortest prefix that contains the fraction of images and every class there is."""
    total, available = sum(len(labelled[name]) for name in ordered), _classes(ordered, labelled)
    chosen: list[str] = []
    count, seen = 0, set[int]()
    for name in ordered:
        if count >= fraction * total - 1e-9 and chosen and available <= seen:
            break
        chosen.append(name)
        count += len(labelled[name])
        seen |= _classes([name], labelled)
    return chosen


def _classes(names: Sequence[str], labelled: Mapping[str, Sequence[ImageRecord]]) -> set[int]:
    return {i.category_id for name in names for r in labelled[name] for i in r.instances}


def _val_groups(
    chosen: list[str], labelled: Mapping[str, Sequence[ImageRecord]], share: float
) -> tuple[list[str], list[str]]:
    """Draw val inside the fraction, never the last training instance of a class; the same rule for every fraction."""
    step = max(2, round(1 / share))
    val = [name for index, name in enumerate(chosen) if index % step == step - 1]
    train = [name for index, name in enumerate(chosen) if index % step != step - 1]
    have = _classes(train, labelled)
    for name in list(val):
        missing = _classes([name], labelled) - have
        if missing and len(val) > 1:
            val.remove(name)
            train.append(name)
            have |= missing
    if not val:
        # take a group whose classes the other groups have too; if there is none, take the last one, and a class with a
        # single group may then be in val only
        spare = next(
            (
                n
                for n in reversed(train)
                if _classes([n], labelled) <= _classes([other for other in train if other != n], labelled)
            ),
            train[-1],
        )
        val, train = [spare], [name for name in train if name != spare]
    return val, train


def _merge(dataset: Dataset, pairs: Sequence[DuplicatePair]) -> _Merged:
    """Merge groups that share near-duplicates."""
    # not scipy's DisjointSet: a merged group keeps the first group's name, by which groups are ordered and drawn
    parent = {record.group: record.group for record in dataset.images}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    told: list[str] = []
    num_merges = 0
    for pair in pairs:
        first, second = dataset.image(pair.first), dataset.image(pair.second)
        if root(first.group) != root(second.group):
            num_merges += 1
            parent[root(second.group)] = root(first.group)
            if len(told) < MAX_TOLD:
                told.append(
                    f"{first.file_name} and {second.file_name}: near-duplicates ({pair.similarity:.2f}), "
                    f"groups {first.group} and {second.group} kept together"
                )
    if num_merges > MAX_TOLD:
        told.append(f"and {num_merges - MAX_TOLD} more")
    return _Merged(root_of={name: root(name) for name in parent}, num_merges=num_merges, told=tuple(told))
