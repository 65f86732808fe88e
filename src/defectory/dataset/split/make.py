"""Makes the frozen split: draws it, or takes it from the data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from defectory.artifacts.dataset import Dataset
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.descriptor import ImageDescriptor, describe_images
from defectory.dataset.duplicates import Duplicates, find_duplicates
from defectory.dataset.split.drawn import drawn
from defectory.dataset.split.given import given, require_subsets


def make_split(
    folder: Path,
    dataset: Dataset,
    config: SplitConfig,
    *,
    seed: int = 0,
    descriptors: Mapping[int, ImageDescriptor] | None = None,
) -> Split:
    """Split a data set into train, val, test and pool.

    Groups, merged where they share near-duplicates, are shared out whole by stratification, so that classes with at
    least three groups are in train, val and test. This depends on the seed alone. A fraction or number of labelled
    images takes the beginning of an order of train's groups, and as large a share of val's: 1% is contained in 5% and
    5% in 10%, and test is always the same. Defect-free images of groups outside val and test form the pool, except
    copies of labelled images.

    Args:
        folder: data set folder.
        dataset: its value.
        config: shares and folds, how much is labelled, or whether to use the data set's own subsets.
        seed: of the order of groups.
        descriptors: descriptor of each image id; None computes them.

    Raises:
        ConfigError: there are too few groups for the requested subsets, fewer labelled images are wanted than there
            are classes, or the data set has no such subsets.
        ImageError: an image cannot be read.
    """
    if config.from_data:
        require_subsets(dataset, config)
    if descriptors is None:
        descriptors = dict(describe_images(folder, dataset))
    duplicates = find_duplicates(descriptors, threshold=config.duplicate_similarity)
    remarks = _remarks(dataset, config, duplicates)
    return (given if config.from_data else drawn)(dataset, config, duplicates, remarks, seed=seed)


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
