from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from defectory.artifacts.annotation import Category
from defectory.artifacts.split import Split
from defectory.errors import FirewallError
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import train_segmenter

SPLIT = Split(
    dataset_digest="d", seed=0, fraction=1.0, train=(1, 2), val=(3,), test=(4,), pool=(5,), pool_source="images"
)


def require(ids: Sequence[int], what: str) -> None:
    SPLIT.require_training_ids(ids, stage=what)


def train(out: Path, tiles: dict[str, list[SegmentationImage]]) -> None:
    categories = (Category(id=1, name="crack"), Category(id=2, name="pit"))
    sizing = Sizing(scale=1.0, input_px=64)
    config = SegmentationConfig(
        model="light", num_steps=2, batch_size=2, defect_free_share=0.5, validate_every=2, checkpoint_every=2
    )
    for _ in train_segmenter(
        arm="synthetic_then_real",
        validate=lambda _: 0.0,
        categories=categories,
        sizing=sizing,
        config=config,
        seed=0,
        out=out,
        require=require,
        images=tiles,
    ):
        pass


def from_images(tiles: list[SegmentationImage], *ids: int) -> list[SegmentationImage]:
    return [replace(tile, image_ids=ids) for tile in tiles]


def test_every_tile_must_come_from_train_or_pool(
    make_tiles: Callable[..., list[SegmentationImage]], tmp_path: Path
) -> None:
    whole = {
        "real": from_images(make_tiles("real", 2), 1),
        "synthetic": from_images(make_tiles("draft", 2), 5, 2),
        "defect_free": from_images(make_tiles("free", 2, with_defect=False), 5),
    }
    for name, tiles in whole.items():
        for ids, found in (((4,), r"image ids \[4\]"), ((1, 3), r"image ids \[3\]"), ((), "does not name its images")):
            with pytest.raises(FirewallError, match=rf"image {tiles[1].id}: {found}"):
                train(tmp_path / "out", whole | {name: [tiles[0], *from_images(tiles[1:], *ids)]})
    assert not (tmp_path / "out").exists()
    train(tmp_path / "out", whole)
    assert json.loads((tmp_path / "out" / "log.json").read_text())["image_ids"] == [1, 2, 5]
