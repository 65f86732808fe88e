"""Stage folds: trains segmenters that each leave out a part of train, and scores them on that part."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, masks_of
from defectory.artifacts.dataset import Dataset
from defectory.artifacts.difficulty import Difficulty, InstanceDifficulty, TileOverlap
from defectory.artifacts.tiles import Tile, TileSet
from defectory.config.project import ProjectConfig
from defectory.curation.doubt import Detection
from defectory.curation.fidelity import iou
from defectory.events import Progress, Work
from defectory.rle import decode
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.policies import AUTO, DEFAULT
from defectory.segmentation.sizing import Sizing
from defectory.stages.parts.segmenter_images import real_images, sizing_of

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationImage

NUM_FOLDS = 2
MIN_SCORE = 0.3
"""Weaker detections do not count. The value is fixed, since validation images take no part in the folds."""
Mask = NDArray[np.bool_]
Defects = Sequence[tuple[int, Mask]]


class Folds(Stage):
    """Trains a segmenter per fold of train, if a setting needs it; see `needs_folds`."""

    VERSION = 5
    name, folder = "folds", layout.FOLDS
    is_resumable = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read images, split and tiles."""
        return ("import", "split", "tiles")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on how segmenters are trained, and on the seed."""
        return {
            "files of segmentation.weights": sources.listing(config.segmentation.weights),
            "segmentation": {**config.segmentation.of_one_training(), "fold_steps": config.segmentation.fold_steps},
            "seed": config.seed,
            **({"pool": "left out"} if _leaves_out_pool(config) else {}),
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Train on all folds but one, and score every train instance with the segmenter that has not seen it."""
        from defectory.engine.devices import device_of

        # the images that drafts are drawn on
        pool = inputs.split.pool if _leaves_out_pool(config) else ()
        fold_of = folds_of(inputs.data.dataset, inputs.split.train, seed=config.seed)
        device = device_of(config.device, threads=config.threads)
        yield from train_folds(inputs, config, fold_of, out=out, device=device, stage=self.name, leave_out=pool)
        difficulty = judge_train(inputs, fold_of, out=out, device=device, stage=self.name)
        difficulty.save(out / layout.DIFFICULTY_FILE)
        names = {c.id: c.name for c in inputs.tiles.tileset.categories}
        shown = ", ".join(f"{names[c]} {best:.2f}" for c, best in difficulty.per_class().items())
        return f"IoU of what each fold left out: {shown}"


def judge_train(inputs: RunStore, fold_of: Mapping[int, int], *, out: Path, device: str, stage: str) -> Difficulty:
    """Score every train instance with the fold segmenter that has not seen it.

    Args:
        inputs: of the stage.
        fold_of: the fold of each image, by id.
        out: folder of the fold segmenters.
        device: to predict on.
        stage: name for messages.

    Raises:
        FirewallError: a train tile comes from an image that is not in train.
    """
    tileset, defective = inputs.tiles.tileset, _judged_tiles(inputs, stage)
    folders = [out / layout.fold_folder(fold) for fold in range(NUM_FOLDS)]
    segmenters = FoldSegmenters(folders, device, tile_scale=tile_scale_of(tileset))
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    overlaps: list[TileOverlap] = []
    for tile in defective:
        image, labels = inputs.tiles.image(tile), masks_of(tile.instances)
        seen = segmenters.defects(image, folds=[fold_of[tile.image_id]])
        category_ids = tuple(i.category_id for i in tile.instances)
        overlaps.append(TileOverlap(tile_id=tile.id, category_ids=category_ids, overlap=overlap(seen, labels)))
        for instance, best in zip(tile.instances, best_ious(seen, labels), strict=True):
            if not instance.is_crowd:
                found.setdefault((tile.image_id, instance.number), []).append((instance.category_id, best))
    return Difficulty(
        split_digest=inputs.split.digest(),
        num_folds=NUM_FOLDS,
        instances=tuple(
            InstanceDifficulty(
                image_id=image_id, number=number, category_id=of[0][0], iou=float(np.mean([best for _, best in of]))
            )
            for (image_id, number), of in sorted(found.items())
        ),
        tiles=tuple(overlaps),
    )


def _judged_tiles(inputs: RunStore, stage: str) -> list[Tile]:
    defective = [tile for tile in inputs.tiles.tileset.of("train") if tile.instances]
    inputs.split.require_training_ids((tile.image_id for tile in defective), stage=stage)
    return defective


def train_folds(
    inputs: RunStore,
    config: ProjectConfig,
    fold_of: Mapping[int, int],
    *,
    out: Path,
    device: str,
    stage: str,
    leave_out: Sequence[int] = (),
    drafts: Callable[[Collection[int], Sizing], list[SegmentationImage]] | None = None,
) -> Work[None]:
    """Train a segmenter per fold on the real images of the other folds, and on drafts if there are any.

    Args:
        inputs: of the stage.
        config: of the project.
        fold_of: the fold of each image, by id.
        out: gets a folder for each fold; whole segmenters in it are kept.
        device: where to train.
        stage: name for messages.
        leave_out: ids of images that no fold trains on.
        drafts: returns the drafts that take no pixel and no mask from images with the given ids.

    Raises:
        FirewallError: a train tile comes from an image that is not in train.
    """
    from defectory.engine.training.checkpoint import remove_checkpoint
    from defectory.engine.training.events import Step
    from defectory.segmentation.training import is_whole_segmenter, train_segmenter

    # refused here, before minutes of training
    _judged_tiles(inputs, stage)
    split, segmentation = inputs.split, config.segmentation
    settings = fold_settings(segmentation)
    # only train may choose a checkpoint, so the last one is kept
    settings = settings.model_copy(update={"validate_every": settings.num_steps})
    sizing = sizing_of(inputs, input_px=segmentation.input_px, scale=segmentation.scale)
    for fold in range(NUM_FOLDS):
        folder = out / layout.fold_folder(fold)
        # the log is written after the weights
        if is_whole_segmenter(folder) and (folder / layout.SEGMENTER_LOG).is_file():
            remove_checkpoint(folder / "checkpoint")
            continue
        left_out = {image_id for image_id, of in fold_of.items() if of == fold} | set(leave_out)
        real, free = real_images(inputs, sizing, seed=config.seed, stage=stage, leave_out=left_out)
        made = [] if drafts is None else drafts(left_out, sizing)
        for event in train_segmenter(
            arm="mixed" if made else "real",
            images={"real": real, "defect_free": free, **({"synthetic": made} if made else {})},
            validate=lambda _: 0.0,
            categories=inputs.data.dataset.categories,
            sizing=sizing,
            config=settings,
            seed=config.seed,
            out=folder,
            device=device,
            weights=None if segmentation.weights is None else inputs.sources.path(segmentation.weights),
            require=lambda ids, what: split.require_training_ids(ids, stage=f"{stage}, {what}"),
        ):
            if isinstance(event, Step):
                done, total = fold * settings.num_steps + event.step, NUM_FOLDS * settings.num_steps
                yield Progress(done=done, total=total, note=f"loss {event.loss:.3f}")


def fold_settings(segmentation: SegmentationConfig) -> SegmentationConfig:
    """Return how fold segmenters are trained; validation chooses neither steps nor an augmentation policy for them."""
    policy = DEFAULT if segmentation.augmentation == AUTO else segmentation.augmentation
    return segmentation.model_copy(
        update={"num_steps": segmentation.fold_steps or segmentation.num_steps, "augmentation": policy}
    )


def needs_folds(config: ProjectConfig) -> bool:
    """Return whether a run needs the fold segmenters."""
    curation = config.curation
    return config.synthesis.focus == "segmenter" or "agreement" in curation.checks or "segmenter" in curation.ignore


def _leaves_out_pool(config: ProjectConfig) -> bool:
    """Return whether no fold trains on the pool, so that the backgrounds of drafts are new to every fold."""
    return "segmenter" in config.curation.ignore


def folds_of(dataset: Dataset, train: Sequence[int], *, seed: int) -> dict[int, int]:
    """Assign images of train with defects to folds. Groups stay together; each class is spread evenly over folds."""
    ids = sorted(image_id for image_id in train if dataset.image(image_id).instances)
    groups: dict[str, list[int]] = {}
    for image_id in ids:
        groups.setdefault(dataset.image(image_id).group, []).append(image_id)
    names = sorted(groups)
    order = [names[int(i)] for i in np.random.default_rng([91, seed]).permutation(len(names))]
    # deal groups to the folds in turn, ordered by their rarest class
    counts: dict[int, int] = {}
    for image_id in ids:
        for instance in dataset.image(image_id).instances:
            counts[instance.category_id] = counts.get(instance.category_id, 0) + 1

    def rarest(name: str) -> int:
        classes = {i.category_id for image_id in groups[name] for i in dataset.image(image_id).instances}
        return min(classes, key=lambda c: counts[c])

    ordered = sorted(order, key=rarest)
    return {image_id: place % NUM_FOLDS for place, name in enumerate(ordered) for image_id in groups[name]}


class FoldSegmenters:
    """The fold segmenters, trained on train alone, as judges of how well a tile's labels are drawn.

    Args:
        folders: of the trained segmenters.
        device: to predict on.
        tile_scale: pixels of a tile per image pixel.
    """

    def __init__(self, folders: Sequence[Path], device: str, *, tile_scale: float) -> None:
        from defectory.segmentation.training import load_segmenter

        loaded: list[tuple[Any, tuple[Category, ...], Sizing]] = [load_segmenter(path, device) for path in folders]
        self._models = [model for model, _, _ in loaded]
        # tiles were already resized when they were cut
        self._scale = loaded[0][2].scale / tile_scale

    def defects(self, image: NDArray[np.uint8], *, folds: Sequence[int] = range(NUM_FOLDS)) -> list[Defects]:
        """Return the defects that each segmenter finds, as category id and mask bool [H,W].

        Args:
            image: a tile, RGB uint8 [H,W,3].
            folds: the folds whose segmenters predict.
        """
        from defectory.segmentation.predict import predict_images

        return [
            [(p.category_id, decode(p.rle)) for p in predictions]
            for fold in folds
            for predictions in predict_images(self._models[fold], [(0, image)], scale=self._scale, min_score=MIN_SCORE)
        ]

    def detections(self, image: NDArray[np.uint8], *, folds: Sequence[int]) -> list[list[Detection]]:
        """Return everything that each segmenter of these folds detects on a tile, weak detections too."""
        from defectory.segmentation.predict import predict_images

        return [
            [Detection(category_id=p.category_id, score=p.score, rle=p.rle) for p in predictions]
            for fold in folds
            for predictions in predict_images(self._models[fold], [(0, image)], scale=self._scale)
        ]

    def overlap(self, image: NDArray[np.uint8], labels: Defects) -> float:
        """Return the mean over all segmenters of `overlap` on a tile."""
        return overlap(self.defects(image), labels)


def tile_scale_of(tileset: TileSet) -> float:
    """Return the pixels of a tile per image pixel, in the middle if frames of unlike images differ."""
    return float(np.median([tile.scale for tile in tileset.tiles]))


def best_ious(seen: Sequence[Defects], labels: Defects) -> list[float]:
    """Return the best IoU of each labelled instance with a detection of its class."""
    return [
        max((iou(mask, found) for of in seen for c, found in of if c == category_id), default=0.0)
        for category_id, mask in labels
    ]


def overlap(seen: Sequence[Defects], labels: Defects) -> float:
    """Return the IoU of all detections with all labels, classes ignored, averaged over segmenters."""
    label = _union(labels, like=labels[0][1])
    return float(np.mean([iou(_union(of, like=label), label) for of in seen]))


def _union(defects: Defects, *, like: Mask) -> Mask:
    result = np.zeros_like(like)
    for _, mask in defects:
        result |= mask
    return result
