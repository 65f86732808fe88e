"""Groups of images that stay together, merged where they share near-duplicates, and what each holds of every class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.dataset.duplicates import DuplicatePair

MAX_TOLD = 20
"""Maximum number of merges that a split lists; the rest are counted."""
MAX_NAMED = 3
DEFECT_FREE, LABELLED, ALL = -1, -2, -3
"""Labels beside the ids of classes: defect-free images, images with defects, all images."""
INSTANCES_OF = 1_000_000
"""Label of a class's instances: this and the id of the class, which alone is the label of its images."""

Groups = Mapping[str, Sequence[ImageRecord]]


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Groups after merging those that share near-duplicates: the root of each group, and the merges."""

    root_of: dict[str, str]
    num_merges: int
    told: tuple[str, ...]


def merge(dataset: Dataset, pairs: Sequence[DuplicatePair]) -> Merged:
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
    return Merged(root_of={name: root(name) for name in parent}, num_merges=num_merges, told=tuple(told))


def labelled_of(groups: Groups) -> dict[str, list[ImageRecord]]:
    """Return the images with defects of every group that has some."""
    found = {name: [record for record in records if not record.is_defect_free] for name, records in groups.items()}
    return {name: records for name, records in found.items() if records}


def classes_of(record: ImageRecord) -> set[int]:
    """Return the classes that an image shows; crowds, which nothing is trained or scored on, do not count."""
    return {instance.category_id for instance in record.instances if not instance.is_crowd}


def images_per_class(records: Sequence[ImageRecord]) -> dict[int, int]:
    """Count the images that show each class."""
    counts: dict[int, int] = {}
    for record in records:
        for category_id in classes_of(record):
            counts[category_id] = counts.get(category_id, 0) + 1
    return counts


def amounts_of(records: Sequence[ImageRecord]) -> dict[int, float]:
    """Return what a group has of each label: images and instances of each class, and images by kind."""
    counts = Counter({ALL: len(records)})
    for record in records:
        counts.update(classes_of(record))
        counts.update(INSTANCES_OF + i.category_id for i in record.instances if not i.is_crowd)
        counts[DEFECT_FREE] += record.is_defect_free
        counts[LABELLED] += bool(classes_of(record))
    return {label: float(count) for label, count in counts.items() if count}


def named(dataset: Dataset, ids: Sequence[int]) -> str:
    """Return the first few file names of a list of images."""
    names = ", ".join(dataset.image(image_id).file_name for image_id in ids[:MAX_NAMED])
    return names + (", ..." if len(ids) > MAX_NAMED else "")
