"""Count the classes that subsets of a split lack, by fraction, over several seeds.

Usage: python bench/split_coverage.py FOLDER [--seeds 5]

FOLDER is a data set folder that `defectory import` made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.split import Split
from defectory.dataset.config import SplitConfig
from defectory.dataset.descriptor import describe_images
from defectory.dataset.duplicates import find_duplicates
from defectory.dataset.split.drawn import drawn

FRACTIONS = (0.1, 0.25, 0.5, 1.0)
SUBSETS = ("train", "val", "test")


def classes_of(dataset: Dataset, image_ids: tuple[int, ...]) -> set[int]:
    return {i.category_id for image_id in image_ids for i in dataset.image(image_id).instances if not i.is_crowd}


def row(dataset: Dataset, fraction: float, splits: list[Split]) -> str:
    empty = {
        subset: sum(len(dataset.categories) - len(classes_of(dataset, getattr(split, subset))) for split in splits)
        for subset in SUBSETS
    }
    images = [
        [sum(not dataset.image(i).is_defect_free for i in getattr(split, subset)) for split in splits]
        for subset in SUBSETS
    ]
    sizes = ", ".join(f"{min(counts)} to {max(counts)}" for counts in images)
    total = len(dataset.categories) * len(SUBSETS) * len(splits)
    return f"| {fraction:g} | {total} | {', '.join(str(empty[subset]) for subset in SUBSETS)} | {sizes} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    options = parser.parse_args()
    dataset = Dataset.load(options.folder / MANIFEST)
    descriptors = dict(describe_images(options.folder, dataset))
    duplicates = find_duplicates(descriptors, threshold=SplitConfig().duplicate_similarity)
    print("| fraction | combinations | empty: train, val, test | labelled images: train, val, test |")
    print("|---|---|---|---|")
    for fraction in FRACTIONS:
        config = SplitConfig(fraction=fraction)
        splits = [drawn(dataset, config, duplicates, [], seed=seed) for seed in range(options.seeds)]
        print(row(dataset, fraction, splits), flush=True)


if __name__ == "__main__":
    main()
