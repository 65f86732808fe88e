"""Counts labelled instances per class, and says how few are too few for a score."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.split import Split

FEW = 5
"""With fewer instances of a class in val or test, its scores are a matter of luck."""
Counts = Mapping[str, Mapping[str, int]]
"""Number of instances by subset and name of the class."""


def instances_per_class(dataset: Dataset, ids: Iterable[int]) -> dict[int, int]:
    """Count instances that are not crowds, for every class by its id."""
    counts = {category.id: 0 for category in dataset.categories}
    for image_id in ids:
        for instance in dataset.image(image_id).instances:
            if not instance.is_crowd:
                counts[instance.category_id] += 1
    return counts


def label_counts(dataset: Dataset, split: Split) -> Counts:
    """Count the instances of train, val and test, for every class."""
    subsets = {"train": split.train, "val": split.val, "test": split.test}
    return {
        subset: {dataset.category_name(i): count for i, count in instances_per_class(dataset, ids).items()}
        for subset, ids in subsets.items()
    }
