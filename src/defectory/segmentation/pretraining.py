"""Trains the light segmenter's start: one class on procedural tiles, from an encoder of the same world."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import nn

from defectory.artifacts.annotation import Category
from defectory.artifacts.tiles import Tiling
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationTile
from defectory.segmentation.start import CLASS_NAME, save_start, split_tiles
from defectory.segmentation.training import SegmenterEvent, train_segmenter

START_CATEGORIES = (Category(id=1, name=CLASS_NAME),)


def train_start(
    tiles: Sequence[SegmentationTile],
    *,
    validate: Callable[[nn.Module], float],
    config: SegmentationConfig,
    tiling: Tiling,
    encoder: Path,
    seed: int,
    work: Path,
    out: Path,
    device: str = "cpu",
) -> Iterator[SegmenterEvent]:
    """Train a one-class segmenter and write its start folder (fp16 `model.safetensors` and `config.json`); nothing where there is one.

    Args:
        tiles: with one class, id 1; those without instances fill `defect_free_share` of every batch.
        validate: gives the segm mAP of the model on tiles it is not trained on.
        config: steps, batch, optimiser.
        tiling: of the tiles.
        encoder: folder of the encoder it begins with.
        seed: of weights, batches and augmentation.
        work: checkpoint and trained segmenter; a second call goes on from there.
        out: start folder.
        device: where to train.

    Raises:
        ConfigError: no tile has an instance.
        WeightsError: the encoder cannot be used.
    """
    if (out / "config.json").is_file():
        return
    if not (work / "segmenter.json").is_file():
        defective, free = split_tiles(tiles)
        yield from train_segmenter(
            arm="real", real=defective, synthetic=[], defect_free=free, validate=validate, kind="light", categories=START_CATEGORIES,
            tiling=tiling, config=config, seed=seed, out=work, device=device, encoder=encoder,
        )  # fmt: skip
    save_start(work, out)
