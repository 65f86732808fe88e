"""The split that a data set supplies, kept, with copies across subsets left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.duplicates import DuplicatePair, Duplicates
from defectory.dataset.split.groups import MAX_NAMED, named
from defectory.dataset.split.labelled import choose
from defectory.dataset.split.pool import by_group, pool_of
from defectory.errors import ConfigError


def require_subsets(dataset: Dataset, config: SplitConfig) -> None:
    """Require that a data set supplies every subset.

    Raises:
        ConfigError: it does not, or folds are wanted as well.
    """
    brought = Counter(record.subset for record in dataset.images if record.subset is not None)
    missing = [subset for subset in ("train", "val", "test") if not brought[subset]]
    if missing:
        told = "has no split of its own" if not brought else f"has no {' and no '.join(missing)} subset"
        raise ConfigError(
            "split.from_data", f"the data set {told}", "set split.from_data = false to draw a split by group"
        )
    if config.folds is not None:
        raise ConfigError("split.from_data", "is set together with split.folds", "leave one of them out")


def given(dataset: Dataset, config: SplitConfig, duplicates: Duplicates, remarks: list[str], *, seed: int) -> Split:
    """Keep the data set's own subsets; remove from train the copies of val and test, and from val those of test.

    Remarks are added to those there are.

    Raises:
        ConfigError: no image with a defect is left in train or val, or fewer labelled images are wanted than there are
            classes.
    """
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
                f"({named(dataset, crossing)})"
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
    free, defective = ([i for i in train if dataset.image(i).is_defect_free is wanted] for wanted in (True, False))
    labelled = by_group(dataset, defective)
    if not labelled or not any(dataset.image(image_id).instances for image_id in val):
        subset = "val" if labelled else "train"
        raise ConfigError(
            "split.from_data",
            f"no image with a defect is left in {subset}",
            "set split.from_data = false to draw a split by group",
        )
    chosen = choose(labelled, config, seed=[3, seed])
    remarks += chosen.remarks
    in_train = chosen.image_ids
    pool, left_out = pool_of(dataset, by_group(dataset, free), duplicates.pairs, config, remarks, seed=seed)
    is_number = config.num_labelled is not None or config.num_per_class is not None
    return Split(
        dataset_digest=dataset.digest(),
        seed=seed,
        fraction=round(len(in_train) / len(defective), 4) if is_number else config.fraction,
        source="data",
        train=tuple(sorted(in_train)),
        val=tuple(sorted(val)),
        test=tuple(sorted(ids["test"])),
        pool=tuple(pool),
        pool_source="images" if pool else "train_crops",
        duplicate_threshold=duplicates.threshold,
        left_out_of_pool=tuple(left_out),
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
