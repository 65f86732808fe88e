"""Scores that need a cell's networks or tiles beyond its own stages: another data set, and images made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.dataset import MANIFEST, Dataset, ImageRecord
from defectory.dataset.config import DataConfig
from defectory.dataset.importer import import_dataset
from defectory.errors import ConfigError
from defectory.evaluation.image_metrics import score_diversity
from defectory.evaluation.mask_metrics import score_with_table
from defectory.events import Progress, Work
from defectory.files import digest_json, write_json
from defectory.folders.marker import is_ours
from defectory.folders.swap import atomic_folder
from defectory.geometry import resize_image
from defectory.images.header import IMAGE_SUFFIXES
from defectory.images.load import load_rgb
from defectory.lock import TurnLock
from defectory.runs import layout
from defectory.runs.siblings import TURNS
from defectory.runs.stage import Run
from defectory.runs.stored import DataFolder
from defectory.stages.evaluate import MAX_DRIVERS, MAX_SAMPLES
from defectory.stages.parts.real_tiles import MIN_IMAGES, RealTiles
from defectory.stages.segment import predict

TRANSFER, OTHERS = "transfer", "others"
"""Folders of a cell's run."""
DATA_SETS = ".data-sets"
"""Folder of imported data sets, beside the runs of a study."""
Image = NDArray[np.uint8]


def score_transfer(run: Run, source: Path) -> Work[None]:
    """Predict another data set with every segmenter of a finished cell, and write their score tables.

    Raises:
        ConfigError: it has none of the cell's classes.
        InputError: it cannot be read.
    """
    from defectory.engine.devices import device_of
    from defectory.segmentation.training import load_segmenter, score_threshold_of

    store, config = run.store(), run.config
    data = _imported(run, source)
    records = _with_classes_of(data.dataset, store.data.dataset.categories, source)
    device = device_of(config.device, threads=config.threads)
    arms = list(store.scores["arms"])
    with atomic_folder(run.folder / TRANSFER, kind=TRANSFER, addressed=False) as folder:
        for done, arm in enumerate(arms):
            yield Progress(done=done, total=len(arms), note=f"the other data set, {arm}", stage=TRANSFER)
            segmenter = store.segmenter(arm, config.segmentation.seeds[0]).folder
            model, categories, sizing = load_segmenter(segmenter, device)
            results = predict(model, data, records, sizing.scale)
            threshold = score_threshold_of(segmenter)
            _, table = score_with_table(records, categories, results, score_threshold=threshold)
            table.save(folder / f"{layout.segmenter_name(arm, 0)}.npz")


def _imported(run: Run, source: Path) -> DataFolder:
    """Import the other data set once for all cells."""
    assert run.siblings is not None
    listing = run.sources.listing(str(source))
    folder = run.siblings / DATA_SETS / digest_json([str(source), listing if isinstance(listing, list) else None])[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    turns = run.siblings / TURNS
    turns.mkdir(parents=True, exist_ok=True)
    lock = TurnLock(turns / f"{folder.name}.lock")
    while not lock.take():
        lock.wait()
    try:
        if not is_ours(folder, kind="dataset"):
            import_dataset(DataConfig(path=str(source)), folder)
    finally:
        lock.release()
    return DataFolder(dataset=Dataset.load(folder / MANIFEST), folder=folder)


def _with_classes_of(dataset: Dataset, categories: Sequence[Category], source: Path) -> list[ImageRecord]:
    """Return the records with the class numbers of a cell; instances of classes that it does not know are left out."""
    number = {category.name.lower(): category.id for category in categories}
    ids = {c.id: number[c.name.lower()] for c in dataset.categories if c.name.lower() in number}
    if not ids:
        found = ", ".join(category.name for category in dataset.categories)
        wanted = ", ".join(category.name for category in categories)
        raise ConfigError(f"study.transfer_to {source}", f"has the classes {found}", f"name its classes {wanted}")
    return [
        record.model_copy(
            update={
                "instances": tuple(
                    instance.model_copy(update={"category_id": ids[instance.category_id]})
                    for instance in record.instances
                    if instance.category_id in ids
                )
            }
        )
        for record in dataset.images
        if record.is_defect_free or any(instance.category_id in ids for instance in record.instances)
    ]


def score_others(run: Run, folders: Mapping[str, Path]) -> Work[None]:
    """Compare folders of images made elsewhere with the real tiles of a finished cell, and write their scores.

    Images are resized to the tiles. Those of one folder within such a folder count as samples of one driver.

    Raises:
        ConfigError: a folder holds too few images, or the cell too few tiles with a defect.
        ImageError: an image cannot be read.
    """
    config = run.config.evaluation
    real = RealTiles(run.store(), config, seed=run.config.seed)
    tiles = f"{len(real.train)} real tiles of train and {len(real.test)} of test"
    if min(len(real.train), len(real.test)) < MIN_IMAGES:
        raise ConfigError(
            "study.others", f"{tiles} show defects", f"label more images: {MIN_IMAGES} of each are needed"
        )
    scores: dict[str, Any] = {}
    for done, (name, folder) in enumerate(folders.items()):
        yield Progress(done=done, total=len(folders), note=name, stage=OTHERS)
        drivers = _images_of(folder, (real.test[0].shape[0], real.test[0].shape[1]))
        images = [image for of in drivers for image in of][: config.max_kid_tiles]
        if len(images) < MIN_IMAGES:
            found = f"{len(images)} images beside {tiles}"
            raise ConfigError(f"study.others {folder}", found, f"at least {MIN_IMAGES} of each are needed")
        sets = real.score(images)
        diversity = score_diversity([of[:MAX_SAMPLES] for of in drivers if len(of) > 1][:MAX_DRIVERS])
        scores[name] = {
            "image_sets": sets.model_dump(mode="json"),
            "diversity": None if diversity is None else diversity.model_dump(mode="json"),
        }
    with atomic_folder(run.folder / OTHERS, kind=OTHERS, addressed=False) as out:
        write_json(out / layout.SCORES_FILE, scores)


def _images_of(folder: Path, size_hw: tuple[int, int]) -> list[list[Image]]:
    """Load the images of a folder, those of each folder within it together."""
    places = sorted({path.parent for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES})
    return [
        [resize_image(load_rgb(p), size_hw) for p in sorted(place.iterdir()) if p.suffix.lower() in IMAGE_SUFFIXES]
        for place in places
    ]
