"""Stage split: freezes train, val, test and pool."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.dataset.descriptor import (
    DESCRIPTORS,
    ImageDescriptor,
    describe_images,
    load_descriptors,
    save_descriptors,
)
from defectory.dataset.split.make import make_split
from defectory.errors import InputError
from defectory.events import Progress, Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.runs.stored import DataFolder


class Split(Stage):
    """Freezes the split, and keeps near-duplicates together."""

    VERSION = 3
    name, folder = "split", layout.SPLIT
    is_preparation = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read the data set."""
        return ("import",)

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the split section and the seed."""
        return {"split": config.split.model_dump(mode="json"), "seed": config.seed}

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Describe every image, find near-duplicates, and draw the split by groups."""
        data = inputs.data
        descriptors = yield from _descriptors(data, inputs.cache)
        save_descriptors(out / DESCRIPTORS, descriptors, dataset_digest=data.dataset.digest())
        split = make_split(data.folder, data.dataset, config.split, seed=config.seed, descriptors=descriptors)
        split.save(out / layout.SPLIT_FILE)
        merges = f"; {split.num_merges} pairs of groups with near-duplicates kept together" if split.num_merges else ""
        return (
            f"train {len(split.train)}, val {len(split.val)}, test {len(split.test)}, pool {len(split.pool)} images"
            + merges
            + ("; pool from crops of train" if split.pool_source == "train_crops" else "")
            + "".join(f"; {remark}" for remark in split.remarks)
        )


def _descriptors(data: DataFolder, cache: Path) -> Work[Mapping[int, ImageDescriptor]]:
    """Describe every image, or read what a split of the same data set has described before."""
    digest = data.dataset.digest()
    file = cache / DESCRIPTORS.replace(".", f"-{digest[:16]}.", 1)
    with suppress(InputError):
        return load_descriptors(file, dataset_digest=digest)
    descriptors: dict[int, ImageDescriptor] = {}
    for image_id, descriptor in describe_images(data.folder, data.dataset):
        descriptors[image_id] = descriptor
        yield Progress(done=len(descriptors), total=len(data.dataset.images), note="looking for near-duplicates")
    cache.mkdir(parents=True, exist_ok=True)
    save_descriptors(file, descriptors, dataset_digest=digest)
    return descriptors
