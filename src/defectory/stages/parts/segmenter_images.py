"""Loads the images that segmenters train on: real ones of train and pool, and those of a set that a run made."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from defectory.artifacts.tiles import spread
from defectory.errors import StageError
from defectory.images.load import load_rgb
from defectory.runs.store import RunStore
from defectory.segmentation.sizing import Sizing, choose_sizing
from defectory.stages.parts.synthetic_set import load_synthetic

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationImage

MAX_DEFECT_FREE = 400
"""Most defect-free windows that a segmenter trains on."""


def sizing_of(inputs: RunStore, *, input_px: int, scale: float | None) -> Sizing:
    """Choose how segmenters see the images of a run, from the labelled images of train."""
    data, split = inputs.data.dataset, inputs.split
    return choose_sizing([data.image(image_id) for image_id in split.train], input_px=input_px, scale=scale)


def real_images(
    inputs: RunStore, sizing: Sizing, *, seed: int, stage: str, leave_out: Collection[int] = ()
) -> tuple[list[SegmentationImage], list[SegmentationImage]]:
    """Return the real windows with defects, and those without, that segmenters train on.

    Args:
        inputs: of the stage.
        sizing: scale and size of the input.
        seed: of the positions of windows.
        stage: name for messages.
        leave_out: ids of images of train and pool that are not used.

    Raises:
        FirewallError: an image is not in train or pool, whatever list names it.
        StageError: train holds no defect.
    """
    from defectory.segmentation.windows import cut_windows

    data, split = inputs.data, inputs.split
    free_ids = () if split.pool_source == "train_crops" else split.pool
    pool = spread([image_id for image_id in free_ids if image_id not in leave_out], MAX_DEFECT_FREE)
    train = [image_id for image_id in split.train if image_id not in leave_out]
    split.require_training_ids([*train, *pool], stage=stage)
    num_free = -(-MAX_DEFECT_FREE // max(1, len(pool) or len(train)))
    real: list[SegmentationImage] = []
    free: list[SegmentationImage] = []
    for image_id in [*train, *pool]:
        record = data.dataset.image(image_id)
        found, without = cut_windows(
            data.image(record),
            [(i.category_id, i.rle) for i in record.instances if not i.is_crowd],
            name=f"{image_id:06d}",
            image_ids=(image_id,),
            sizing=sizing,
            seed=seed,
            num_free=num_free if image_id in pool or not pool else 0,
            crowds=[i.rle for i in record.instances if i.is_crowd],
        )
        real += found
        free += without
    if not real:
        raise StageError(f"{stage}: no image of train has a defect that a segmenter could see")
    return real, spread(free, MAX_DEFECT_FREE)


def made_images(folder: Path, inputs: RunStore, sizing: Sizing, *, seed: int) -> list[SegmentationImage]:
    """Return the windows with defects of a set that the run made, loaded from its files as a user would."""
    return list(_made(folder, inputs, sizing, seed))


def _made(folder: Path, inputs: RunStore, sizing: Sizing, seed: int) -> Iterator[SegmentationImage]:
    from defectory.segmentation.windows import Doubt, cut_windows

    value_range = inputs.data.dataset.value_range
    for of in load_synthetic(folder):
        # a tile was already resized when it was cut
        own = sizing.model_copy(update={"scale": sizing.scale / of.scale})
        found, _ = cut_windows(
            load_rgb(of.path, value_range if of.is_frame else None),
            [(i.category_id, i.rle) for i in of.instances],
            name=of.path.stem,
            image_ids=of.image_ids,
            sizing=own,
            seed=seed,
            doubt=Doubt(ignore=of.ignore, is_doubtful=of.is_doubtful),
        )
        yield from found
