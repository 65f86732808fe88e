"""Counts of the data that work depends on: from finished stages, else from the files of the sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from defectory.config.project import ProjectConfig
from defectory.errors import InputError, StageError
from defectory.images.header import IMAGE_SUFFIXES
from defectory.runs.graph import UP_TO_DATE, State
from defectory.runs.stage import Run
from defectory.runs.store import RunStore

NOT_PHOTOGRAPHS = frozenset(
    {"annotation", "annotations", "drawings", "ground_truth", "groundtruth", "gt", "label", "labels", "mask", "masks"}
    | {"regions", "segmentation", "segmentations"}
)
"""Lower-case names of folders that hold labels and the like as images."""
BYTES_PER_PIXEL = {".jpg": 0.28, ".jpeg": 0.28, ".bmp": 3.0}
OTHER_BYTES_PER_PIXEL = 1.5
DEFECTIVE_SHARE = 0.5
"""Share of the images that is taken to be defective as long as no label has been read."""


@dataclass(frozen=True, kw_only=True)
class DataFacts:
    """Counts of the data.

    Attributes:
        is_read: the data set has been imported; otherwise everything is guessed from the number of files.
        num_images: of the data set.
        image_bytes: of their files.
        megapixels: of all images.
        num_defective: train tiles with a defect.
        num_free: other tiles of train and pool.
        num_val_tiles: all tiles of val.
        num_val: val images.
        num_test: test images.
        num_masks: instances of train.
        num_classes: of the data set; 1 as long as no label has been read.
    """

    is_read: bool
    num_images: int
    image_bytes: int
    megapixels: float
    num_defective: int
    num_free: int
    num_val_tiles: int
    num_val: int
    num_test: int
    num_masks: int
    num_classes: int = 1

    @property
    def megapixels_per_image(self) -> float:
        """Return the size of a typical image."""
        return self.megapixels / max(1, self.num_images)

    @property
    def num_phase_tiles(self) -> int:
        """Return the tiles that both phases train on."""
        return self.num_defective + min(self.num_free, max(1, self.num_defective // 2))


def facts_of(run: Run, states: Mapping[str, State]) -> DataFacts:
    """Count the data of a run, from the results of its stages as far as these are up to date."""
    guessed = _from_files(run)

    def is_made(name: str) -> bool:
        return name in states and states[name].state == UP_TO_DATE

    try:
        if not is_made("import"):
            return guessed
        return _from_results(run.store(), run.config, guessed, has_tiles=is_made("split") and is_made("tiles"))
    except (InputError, StageError):  # the stage that reads it reports this
        return guessed


def _from_files(run: Run) -> DataFacts:
    data, sizes, num_pixels, num_free = run.config.data, dict[Path, int](), 0.0, 0
    for setting in dict.fromkeys((data.path, data.image_root, data.defect_free)):
        listing = run.sources.listing(setting, follow_links=data.follow_links)
        if setting is None or not isinstance(listing, list):
            continue
        source = run.sources.path(setting)
        root = source if source.is_dir() else source.parent
        for name, size, _ in listing:
            place, suffix = Path(name), Path(name).suffix.lower()
            folders = {folder.lower() for folder in place.parent.parts}
            if suffix in IMAGE_SUFFIXES and not folders & NOT_PHOTOGRAPHS and root / place not in sizes:
                sizes[root / place] = size
                num_pixels += size / BYTES_PER_PIXEL.get(suffix, OTHER_BYTES_PER_PIXEL)
                num_free += setting == data.defect_free
    num_defective = (len(sizes) - num_free) * (1.0 if num_free else DEFECTIVE_SHARE)
    return _split_up(
        run.config,
        DataFacts(
            is_read=False,
            num_images=len(sizes),
            image_bytes=sum(sizes.values()),
            megapixels=num_pixels / 1e6,
            num_defective=round(num_defective),
            num_free=len(sizes) - round(num_defective),
            num_val_tiles=0,
            num_val=0,
            num_test=0,
            num_masks=round(num_defective),
        ),
    )


def _split_up(config: ProjectConfig, whole: DataFacts) -> DataFacts:
    """Return the facts of a data set after its split, one tile for an image without a defect."""
    val, test = config.split.val_share, config.split.test_share
    if config.split.folds is not None:
        test = 1 / config.split.folds
    outside, per_mask = max(0.0, 1 - val - test), config.tiling.tiles_per_instance
    labelled = _labelled_share(config, whole.num_defective * outside, whole.num_classes)
    train, num_free = outside * labelled, round(whole.num_free * outside)
    if config.split.num_defect_free is not None:
        num_free = min(num_free, config.split.num_defect_free)
    return DataFacts(
        is_read=whole.is_read,
        num_images=whole.num_images,
        image_bytes=whole.image_bytes,
        megapixels=whole.megapixels,
        num_defective=round(whole.num_masks * train) * per_mask,
        num_free=min(config.tiling.max_pool_tiles, num_free),
        num_val_tiles=round(whole.num_masks * val * labelled) * per_mask + round(whole.num_free * val),
        num_val=round((whole.num_defective * labelled + whole.num_free) * val),
        num_test=round(whole.num_images * test),
        num_masks=round(whole.num_masks * train),
    )


def _labelled_share(config: ProjectConfig, num_labelled: float, num_classes: int) -> float:
    """Return the share of the labelled training images that is used."""
    wanted = config.split.num_labelled
    if config.split.num_per_class is not None:
        wanted = config.split.num_per_class * num_classes
    return config.split.fraction if wanted is None else min(1.0, wanted / max(1.0, num_labelled))


def _from_results(store: RunStore, config: ProjectConfig, guessed: DataFacts, *, has_tiles: bool) -> DataFacts:
    dataset = store.data.dataset
    defective = [record for record in dataset.images if record.instances]
    whole = DataFacts(
        is_read=True,
        num_images=len(dataset.images),
        image_bytes=guessed.image_bytes,
        megapixels=sum(record.size_hw[0] * record.size_hw[1] for record in dataset.images) / 1e6,
        num_defective=len(defective),
        num_free=len(dataset.images) - len(defective),
        num_val_tiles=0,
        num_val=0,
        num_test=0,
        num_masks=sum(len(record.instances) for record in defective),
        num_classes=len(dataset.categories),
    )
    if not has_tiles:
        return _split_up(config, whole)
    split, tileset = store.split, store.tiles.tileset
    train = [tile for tile in tileset.of("train") if tile.instances]
    return DataFacts(
        is_read=True,
        num_images=whole.num_images,
        image_bytes=whole.image_bytes,
        megapixels=whole.megapixels,
        num_defective=len(train),
        num_free=len(tileset.tiles) - len(train) - len(tileset.of("val")),
        num_val_tiles=len(tileset.of("val")),
        num_val=len(split.val),
        num_test=len(split.test),
        num_masks=sum(len(tile.instances) for tile in train),
    )
