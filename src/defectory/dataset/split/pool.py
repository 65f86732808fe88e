"""Which defect-free images form the pool."""

from __future__ import annotations

from collections.abc import Sequence

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.dataset.config import SplitConfig
from defectory.dataset.duplicates import DuplicatePair
from defectory.dataset.split.groups import Groups, named
from defectory.dataset.split.labelled import choose_defect_free


def pool_of(
    dataset: Dataset,
    outside: Groups,
    pairs: Sequence[DuplicatePair],
    config: SplitConfig,
    remarks: list[str],
    *,
    seed: int,
) -> tuple[list[int], list[int]]:
    """Return the ids of the images in the pool, and of those left out as copies of images with defects.

    Args:
        dataset: the data set.
        outside: groups outside val and test.
        pairs: near-duplicates.
        config: how many images the pool may have.
        remarks: a line is added if images are left out, or too few are there.
        seed: of which images are taken if not all are.
    """
    unsafe = _copies_of_labelled(dataset, pairs)
    clean = [record for records in outside.values() for record in records if record.is_defect_free]
    copies = sorted(record.id for record in clean if record.id in unsafe)
    _tell_copies(dataset, copies, remarks)
    safe = {name: [r for r in records if r.is_defect_free and r.id not in unsafe] for name, records in outside.items()}
    return _limited(safe, config, remarks, seed=seed), copies


def _limited(groups: Groups, config: SplitConfig, remarks: list[str], *, seed: int) -> list[int]:
    """Return the sorted ids of the wanted number of defect-free images, of all if none is set."""
    ids = sorted(record.id for records in groups.values() for record in records)
    wanted = config.num_defect_free
    if wanted is None or wanted >= len(ids):
        if wanted is not None and wanted > len(ids):
            remarks.append(f"the pool has {len(ids)} defect-free images, not {wanted}, since there are no more")
        return ids
    return sorted(choose_defect_free(groups, wanted, [5, seed]))


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
            f"({named(dataset, copies)})"
        )


def by_group(dataset: Dataset, ids: Sequence[int]) -> dict[str, list[ImageRecord]]:
    """Return the records of ids by the data set's own groups."""
    groups: dict[str, list[ImageRecord]] = {}
    for image_id in ids:
        record = dataset.image(image_id)
        groups.setdefault(record.group, []).append(record)
    return groups
