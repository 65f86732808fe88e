from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from defectory.artifacts.annotation import Category
from defectory.errors import ConfigError
from defectory.events import finish
from defectory.rle import decode
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter
from defectory.segmentation.models.registry import SEGMENTERS
from defectory.segmentation.predict import predict_images
from defectory.segmentation.sizing import Sizing
from defectory.segmentation.training import load_segmenter, train_segmenter


class PixelClassifier(nn.Module):
    """A plug-in: names the class of every pixel, and takes all pixels of a class for one defect."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, num_classes + 1, 1)
        )

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        logits = self.body(torch.stack(images))
        if targets is not None:
            truth = torch.zeros(logits.shape[0], *logits.shape[2:], dtype=torch.long)
            for row, target in zip(truth, targets, strict=True):
                for label, mask in zip(target["labels"], target["masks"], strict=True):
                    row[mask.bool()] = label
            return {"pixels": cross_entropy(logits.float(), truth)}
        chances = logits.softmax(dim=1)[:, 1:]
        labels = torch.arange(1, chances.shape[1] + 1)
        return [{"scores": c.amax(dim=(1, 2)), "labels": labels, "masks": c[:, None]} for c in chances]


class PixelFamily:
    def build(self, build: Build) -> tuple[nn.Module, dict[str, Any]]:
        return PixelClassifier(build.num_classes), {}


def test_a_family_from_outside_trains_is_saved_and_predicts(
    make_tiles: Callable[..., list[SegmentationImage]], tmp_path: Path
) -> None:
    tiles = make_tiles("real", 4)
    classes = (Category(id=1, name="crack"), Category(id=2, name="pit"))
    with SEGMENTERS.registered("pixels", PixelFamily()):
        config = SegmentationConfig(
            model="pixels",
            num_steps=60,
            batch_size=4,
            learning_rate=0.05,
            validate_every=60,
            mixed_precision="no",
            ema_decay=0,
        )
        trained = finish(
            train_segmenter(
                arm="real",
                images={"real": tiles},
                validate=lambda _: 0.0,
                categories=classes,
                sizing=Sizing(scale=1.0, input_px=64),
                config=config,
                seed=0,
                out=tmp_path,
            )
        )
        assert trained.losses[-1] < 0.3 * trained.losses[0]
        model, categories, sizing = load_segmenter(tmp_path)
    assert categories == classes
    assert int(model.state_dict()["body.1.num_batches_tracked"]) == 60, "batch norm's statistics are saved"
    found = predict_images(model, [(i, tile.image) for i, tile in enumerate(tiles)], scale=sizing.scale, min_score=0.5)
    for tile, (best, *_) in zip(tiles, found, strict=True):
        mask, truth = decode(best.rle), decode(tile.instances[0][1])
        assert best.category_id == tile.instances[0][0]
        assert (mask & truth).sum() / (mask | truth).sum() > 0.8
    with pytest.raises(
        ConfigError, match=r"segmentation.model 'pixels': is not known; choose among light, efficientnet_lite0"
    ):
        load_segmenter(tmp_path)


def test_a_family_is_named_as_a_place_in_a_package_or_by_a_known_name() -> None:
    place = "defectory.segmentation.models.light:FAMILY"
    assert SegmentationConfig(model=place).model == place
    assert isinstance(build_segmenter(place, Build(num_classes=1, init="random"), seed=0)[0], nn.Module)
    with pytest.raises(
        ValidationError,
        match=r"'big' is not one of light, .*, resnet50, resnet50_v2, unet, nor `package\.module:attribute`",
    ):
        SegmentationConfig(model="big")
