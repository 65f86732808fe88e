"""The frozen split: by group, near-duplicates together, val and fractions inside what is labelled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.errors import ConfigError
from defectory.imageio import load_rgb

MIN_STD = 6.0
"""Flatter images (grey levels) have a meaningless perceptual hash and are not compared."""


def make_split(folder: Path, dataset: Dataset, config: SplitConfig) -> Split:
    """Split a data set into train, val, test and pool.

    Labelled groups are ordered once, classes interleaved; test takes its share from the end, so that it is the same
    for every fraction; a fraction is a prefix of the rest, so that 1% lies within 5% within 10%, and val is drawn
    inside the fraction. Defect-free images of groups outside val and test form the pool.

    Args:
        folder: data set folder.
        dataset: its value.
        config: shares, seed, folds.

    Raises:
        ConfigError: too few groups for the parts asked for.
    """
    root_of, moved = _merge_duplicates(folder, dataset, config.duplicate_distance)
    groups: dict[str, list[ImageRecord]] = {}
    for record in dataset.images:
        groups.setdefault(root_of[record.group], []).append(record)
    labelled = {name: [r for r in records if not r.is_defect_free] for name, records in groups.items()}
    ordered = _interleave({name: records for name, records in labelled.items() if records}, config.seed)
    if len(ordered) < 3:
        raise ConfigError(
            "split", f"{len(ordered)} groups with defects, at least 3 needed", "label more images or give them groups of their own"
        )
    test_groups, rest = _test_groups(ordered, labelled, config)
    val_share = config.val_share / (1 - config.test_share)
    chosen = _prefix(rest, labelled, config.fraction, val_share)
    val_groups, train_groups = _val_groups(chosen, labelled, val_share)
    rng = np.random.default_rng([2, config.seed])
    clean_only = [name for name in sorted(groups) if not labelled[name]]
    clean_only = [clean_only[i] for i in rng.permutation(len(clean_only))]
    num_test, num_val = round(len(clean_only) * config.test_share), round(len(clean_only) * config.val_share)
    if config.folds is not None:
        size = len(clean_only) / config.folds
        low, high = round(size * config.fold), round(size * (config.fold + 1))
        clean_test, clean_rest = clean_only[low:high], clean_only[:low] + clean_only[high:]
    else:
        clean_test, clean_rest = clean_only[:num_test], clean_only[num_test:]
    held_out = set(test_groups) | set(clean_test)
    val_names = set(val_groups) | set(clean_rest[:num_val])
    unused = set(rest) - set(chosen)
    pool: list[int] = []
    left_out: list[int] = []
    for name, records in groups.items():
        clean = [r.id for r in records if r.is_defect_free]
        if name in held_out or name in val_names:
            left_out += clean
        else:
            pool += clean
    test = [r.id for name in held_out for r in groups[name]]
    val = [r.id for name in val_names for r in groups[name]]
    train = [r.id for name in train_groups for r in labelled[name]]
    assert not unused & (held_out | val_names)
    return Split(
        dataset_digest=dataset.digest(),
        seed=config.seed,
        fraction=config.fraction,
        fold=config.fold if config.folds else None,
        train=tuple(sorted(train)),
        val=tuple(sorted(val)),
        test=tuple(sorted(test)),
        pool=tuple(sorted(pool)),
        pool_source="images" if pool else "train_crops",
        moved_duplicates=tuple(moved),
        left_out_of_pool=tuple(sorted(left_out)),
    )


def _interleave(labelled: dict[str, list[ImageRecord]], seed: int) -> list[str]:
    """Order groups so that every prefix holds all classes in the data's own shares as nearly as can be."""
    rng = np.random.default_rng([1, seed])
    names = sorted(labelled)
    names = [names[i] for i in rng.permutation(len(names))]
    content = {name: Counter(i.category_id for r in labelled[name] for i in r.instances) for name in names}
    total = sum(content.values(), Counter[int]())
    have: Counter[int] = Counter()
    ordered: list[str] = []
    while names:
        # the class furthest behind its share comes next, the rarest first
        behind = min((c for c in total if any(content[n][c] for n in names)), key=lambda c: (have[c] / total[c], total[c]))
        best = next(name for name in names if content[name][behind])
        names.remove(best)
        ordered.append(best)
        have += content[best]
    return ordered


def _test_groups(ordered: list[str], labelled: dict[str, list[ImageRecord]], config: SplitConfig) -> tuple[list[str], list[str]]:
    if config.folds is not None:
        if config.fold >= config.folds or config.folds > len(ordered):
            raise ConfigError(
                "split.folds", f"fold {config.fold} of {config.folds} with {len(ordered)} groups", "use fewer folds or another fold"
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
    return test, [name for name in ordered if name not in set(test)]


def _spread(ordered: list[str], share: float) -> list[str]:
    """Give groups from evenly spread places of an interleaved order first, so that a part holds every class."""
    step = max(2, round(1 / share))
    return [ordered[i] for offset in range(step) for i in range(step - 1 - offset, len(ordered), step)]


def _prefix(rest: list[str], labelled: dict[str, list[ImageRecord]], fraction: float, val_share: float) -> list[str]:
    """Give the shortest prefix that holds the fraction of images and, once val is drawn from it, every class there is in train."""
    total = sum(len(labelled[name]) for name in rest)
    available = {i.category_id for name in rest for r in labelled[name] for i in r.instances}
    chosen: list[str] = []
    count = 0
    for name in rest:
        if count >= fraction * total - 1e-9 and len(chosen) >= 2:
            train = _val_groups(chosen, labelled, val_share)[1]
            if available <= {i.category_id for n in train for r in labelled[n] for i in r.instances}:
                break
        chosen.append(name)
        count += len(labelled[name])
    return chosen


def _val_groups(chosen: list[str], labelled: dict[str, list[ImageRecord]], share: float) -> tuple[list[str], list[str]]:
    """Draw val inside the fraction, never the last training instance of a class; one nested rule for every fraction."""
    step = max(2, round(1 / share))
    val = [name for index, name in enumerate(chosen) if index % step == step - 1]
    train = [name for name in chosen if name not in set(val)]
    have = {i.category_id for name in train for r in labelled[name] for i in r.instances}
    for name in list(val):
        missing = {i.category_id for r in labelled[name] for i in r.instances} - have
        if missing and len(val) > 1:
            val.remove(name)
            train.append(name)
            have |= missing
    if not val:
        # the last group doubles no other: a class may then be left to val alone only where there is a single group of it
        spare = next(
            (n for n in reversed(train) if {i.category_id for r in labelled[n] for i in r.instances} <= _others(train, n, labelled)),
            train[-1],
        )
        val, train = [spare], [name for name in train if name != spare]
    return val, train


def _others(train: list[str], left: str, labelled: dict[str, list[ImageRecord]]) -> set[int]:
    return {i.category_id for name in train if name != left for r in labelled[name] for i in r.instances}


def _merge_duplicates(folder: Path, dataset: Dataset, distance: int) -> tuple[dict[str, str], list[str]]:
    """Give each group's root after merging groups that share near-duplicates, and what was merged."""
    parent = {record.group: record.group for record in dataset.images}

    def root(name: str) -> str:
        while parent[name] != name:
            name = parent[name]
        return name

    hashes, indices = _hashes(folder, dataset.images)
    moved: list[str] = []
    for first in range(len(hashes)):
        near = np.flatnonzero((hashes[first + 1 :] != hashes[first]).sum(axis=1) <= distance) + first + 1
        for second in near.tolist():
            a, b = dataset.images[indices[first]], dataset.images[indices[second]]
            if root(a.group) != root(b.group):
                moved.append(f"{a.file_name} and {b.file_name}: near-duplicates, groups {a.group} and {b.group} kept together")
                parent[root(b.group)] = root(a.group)
    return {name: root(name) for name in parent}, moved


def _hashes(folder: Path, records: Sequence[ImageRecord]) -> tuple[NDArray[np.bool_], list[int]]:
    """Give a 256-bit perceptual hash per image that is not flat; the distance counts bits of 256, a stricter test than of 64."""
    rows: list[NDArray[np.bool_]] = []
    indices: list[int] = []
    for index, record in enumerate(records):
        image = load_rgb(image_path(folder, record))
        if image.std() < MIN_STD:
            continue
        rows.append(np.asarray(imagehash.phash(Image.fromarray(image), hash_size=16).hash).reshape(-1))
        indices.append(index)
    return (np.stack(rows) if rows else np.zeros((0, 256), bool)), indices
