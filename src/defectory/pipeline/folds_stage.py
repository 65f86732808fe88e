"""The stage of folds: segmenters that each leave a part of train out, and how well they draw what they left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.difficulty import Difficulty, InstanceDifficulty, TileOverlap
from defectory.artifacts.tiles import Tile, Tiling
from defectory.curation.fidelity import iou
from defectory.errors import StageError
from defectory.imageio import load_rgb
from defectory.pipeline.stage import Progress, Project
from defectory.pipeline.training import device_of
from defectory.pipeline.values import dataset_of, masks_of, split_of, spread, tileset_of
from defectory.pipeline.verify import checked
from defectory.rle import decode

if TYPE_CHECKING:
    from defectory.segmentation.data import SegmentationTile

NUM_FOLDS = 2
MAX_DEFECT_FREE_TILES = 400
"""Defect-free tiles that every segmenter trains on."""
MIN_SCORE = 0.3
"""Weaker detections do not count; validation images, which could tell a better score, take no part."""
Mask = NDArray[np.bool_]
Defects = Sequence[tuple[int, Mask]]


def segmentation_tiles(project: Project, tiles: Sequence[Tile]) -> list[SegmentationTile]:
    """Load tiles as segmenters train on them, without crowds."""
    from defectory.segmentation.data import SegmentationTile

    return [
        SegmentationTile(
            id=t.id,
            image=load_rgb(project.path("tiles", t.file_name)),
            instances=tuple((i.category_id, i.rle) for i in t.instances if not i.is_crowd),
            image_ids=(t.image_id,),
        )
        for t in tiles
    ]


def training_tiles(project: Project, *, stage: str) -> tuple[list[Tile], list[Tile]]:
    """Return the defective train tiles and the defect-free tiles that segmenters train on.

    Raises:
        FirewallError: a tile comes from an image that is not in train or pool, whatever part it says it is of.
        StageError: the tiles were cut for another split.
    """
    tileset, split = tileset_of(project), split_of(project)
    if tileset.split_digest != split.digest():
        raise StageError(f"{stage}: the tiles were cut for another split; run the stage `tiles` again")
    defective = [t for t in tileset.of("train") if t.instances]
    pool = spread(tileset.of("pool"), MAX_DEFECT_FREE_TILES)
    split.require_training_ids((t.image_id for t in [*defective, *pool]), stage=stage)
    return defective, pool


def run_folds(project: Project) -> Iterator[Progress | str]:
    """Train a segmenter per fold of train and judge every train instance by the one that has not seen it."""
    from defectory.engine.training.events import Step
    from defectory.segmentation.training import is_whole_segmenter, train_segmenter

    tileset, split, config = tileset_of(project), split_of(project), project.config.segmentation
    defective, pool = training_tiles(project, stage="folds")
    fold_of = _folds(project, defective)
    device = device_of(project)
    # nothing but train may choose a checkpoint: the last one is kept
    num_steps = config.fold_steps or config.num_steps
    config = config.model_copy(update={"num_steps": num_steps, "validate_every": num_steps})
    free = segmentation_tiles(project, pool)
    for fold in range(NUM_FOLDS):
        out = project.path("folds", f"fold-{fold}")
        if is_whole_segmenter(out):
            continue
        seen = segmentation_tiles(project, [t for t in defective if fold_of[t.image_id] != fold])
        for event in train_segmenter(
            arm="real",
            tiles={"real": seen, "defect_free": free},
            validate=lambda _: 0.0,
            categories=tileset.categories,
            tiling=tileset.tiling,
            config=config,
            seed=project.config.seed,
            out=out,
            device=device,
            require=lambda ids, what: split.require_training_ids(ids, stage=f"folds, {what}"),
        ):
            if isinstance(event, Step):
                yield Progress(
                    stage="folds",
                    done=fold * num_steps + event.step,
                    total=NUM_FOLDS * num_steps,
                    note=f"loss {event.loss:.3f}",
                )
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    segmenters = FoldSegmenters(project)
    tiles: list[TileOverlap] = []
    for tile in defective:
        image, labels = load_rgb(project.path("tiles", tile.file_name)), masks_of(tile.instances)
        seen = segmenters.defects(image, folds=[fold_of[tile.image_id]])
        tiles.append(
            TileOverlap(
                tile_id=tile.id,
                category_ids=tuple(i.category_id for i in tile.instances),
                overlap=overlap(seen, labels),
            )
        )
        for instance, best in zip(tile.instances, best_ious(seen, labels), strict=True):
            if not instance.is_crowd:
                found.setdefault((tile.image_id, instance.number), []).append((instance.category_id, best))
    difficulty = Difficulty(
        split_digest=split.digest(),
        num_folds=NUM_FOLDS,
        instances=tuple(
            InstanceDifficulty(
                image_id=image_id, number=number, category_id=of[0][0], iou=float(np.mean([best for _, best in of]))
            )
            for (image_id, number), of in sorted(found.items())
        ),
        tiles=tuple(tiles),
    )
    difficulty.save(project.path("folds", "difficulty.json"))
    names = {c.id: c.name for c in tileset.categories}
    yield "IoU of what each fold left out: " + ", ".join(
        f"{names[c]} {best:.2f}" for c, best in difficulty.per_class().items()
    )


def _folds(project: Project, tiles: Sequence[Tile]) -> dict[int, int]:
    """Give the fold of each image; images of one part are in one fold, and folds have classes in like numbers."""
    dataset = dataset_of(project)
    ids = sorted({tile.image_id for tile in tiles})
    groups: dict[str, list[int]] = {}
    for image_id in ids:
        groups.setdefault(dataset.image(image_id).group, []).append(image_id)
    names = sorted(groups)
    order = [names[int(i)] for i in np.random.default_rng([91, project.config.seed]).permutation(len(names))]
    # by their rarest class, one after the other to either fold
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
    """The segmenters of all folds, which tell how well a tile's labels are drawn by eyes that saw only train."""

    def __init__(self, project: Project) -> None:
        from defectory.segmentation.training import load_segmenter

        loaded: list[tuple[Any, tuple[Category, ...], Tiling]] = [
            load_segmenter(project.path("folds", f"fold-{fold}"), device_of(project)) for fold in range(NUM_FOLDS)
        ]
        self._models = [model for model, _, _ in loaded]
        # tiles are at the segmenters' scale already
        self._tiling = loaded[0][2].model_copy(update={"mode": "tile", "scale": 1.0})

    def defects(self, image: NDArray[np.uint8], *, folds: Sequence[int] = range(NUM_FOLDS)) -> list[Defects]:
        """Give what each segmenter calls defects, as category id and mask bool [H,W].

        Args:
            image: a tile, RGB uint8 [H,W,3].
            folds: whose segmenters.
        """
        from defectory.segmentation.predict import predict_images

        return [
            [(p.category_id, decode(p.rle)) for p in predictions]
            for fold in folds
            for predictions in predict_images(self._models[fold], [(0, image)], self._tiling, min_score=MIN_SCORE)
        ]

    def overlap(self, image: NDArray[np.uint8], labels: Defects) -> float:
        """Give the mean over all segmenters of `overlap` on a tile."""
        return overlap(self.defects(image), labels)


def best_ious(seen: Sequence[Defects], labels: Defects) -> list[float]:
    """Give per labelled instance the best IoU of a detection of its class."""
    return [
        max((iou(mask, found) for of in seen for c, found in of if c == category_id), default=0.0)
        for category_id, mask in labels
    ]


def overlap(seen: Sequence[Defects], labels: Defects) -> float:
    """Give the IoU of all that is called a defect with all that is labelled, whatever class; the mean over
    segmenters.
    """
    label = _union(labels, like=labels[0][1])
    return float(np.mean([iou(_union(of, like=label), label) for of in seen]))


def _union(defects: Defects, *, like: Mask) -> Mask:
    result = np.zeros_like(like)
    for _, mask in defects:
        result |= mask
    return result


def difficulty_of(project: Project) -> Difficulty:
    """Read what the segmenters find hard."""
    return Difficulty.load(checked(project, "folds", "difficulty.json"))
