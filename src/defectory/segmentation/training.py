"""Trains a segmenter in one arm, with the same number of optimiser steps in every arm."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from defectory.artifacts.annotation import Category
from defectory.artifacts.tiles import Tiling
from defectory.engine.training.checkpoint import remove_checkpoint, write_tensors
from defectory.engine.training.config import LoopSettings
from defectory.engine.training.loop import Trained, Validation, train
from defectory.engine.training.schedule import Schedule
from defectory.errors import FirewallError, WeightsError
from defectory.events import Work
from defectory.files import digest_file, digest_folder, digest_json, write_json
from defectory.folders.swap import remove_leftovers
from defectory.images.valuerange import ValueRange
from defectory.segmentation.arms import ARMS, Arm, batch_counts, first_steps
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationTile, draw_batch
from defectory.segmentation.models.family import build_segmenter

WARMUP_STEPS = 20
FINAL_LR_SHARE = 0.05
MAX_GRAD_NORM = 5.0
NO_SCORE = -1.0
"""Best val score in the log if no validation counted."""

Tiles = Mapping[str, Sequence[SegmentationTile]]
"""Tiles by source: `real`, `synthetic` (accepted drafts), `defect_free`, and any other source of an arm."""
Batch = list[tuple[Tensor, dict[str, Tensor]]]


def train_segmenter(
    *,
    arm: str,
    tiles: Tiles,
    validate: Callable[[nn.Module], float],
    categories: Sequence[Category],
    tiling: Tiling,
    config: SegmentationConfig,
    seed: int,
    out: Path,
    device: str = "cpu",
    encoder: Path | None = None,
    value_range: ValueRange | None = None,
    require: Callable[[Sequence[int], str], None] | None = None,
    stage: str = "",
) -> Work[Trained]:
    """Train a segmenter, and keep the weights with the best score on real val in the arm's last phase.

    Args:
        arm: name in `ARMS`.
        tiles: by source.
        validate: returns the val segm mAP of the model; called at fixed steps.
        categories: classes.
        tiling: stored with the weights, since prediction needs it.
        config: family, steps, batch, optimiser.
        seed: of weights, batches and augmentation.
        out: gets `model.safetensors`, `segmenter.json` and `log.json`; a checkpoint meanwhile.
        device: where to train.
        encoder: folder of the encoder that `config.init = "encoder"` starts from; None means the shipped one.
        value_range: of the data set, stored with the weights, so that images of more than 8 bit are read alike in
            training and prediction.
        require: called with a tile's image ids and its name; raises for ids that must not be trained on. The ids go
            into the log. None for tiles that belong to no data set.
        stage: name in events and messages.

    Raises:
        ConfigError: the arm or the family is unknown, or a source of the arm has no tiles.
        FirewallError: a tile does not name its images, or `require` refuses one of them.
        StageError: a loss is not finite, or `out` cannot be written.
    """
    image_ids = _required_ids([tile for group in tiles.values() for tile in group], require)
    chosen = ARMS.get(arm)
    begins = first_steps(chosen, name=arm, settings=config, num_steps=config.num_steps)
    batch_of = _batches(chosen, arm, begins, tiles, config, seed)
    model = build_segmenter(config.model, len(categories), seed=seed, init=config.init, encoder_folder=encoder)
    model = model.to(device)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    trained = yield from train(
        {name: value for name, value in model.named_parameters() if value.requires_grad},
        batch_of,
        _loss_of(model, config, seed, device),
        config=loop_settings(begins, config),
        checkpoint=out / "checkpoint",
        recipe=_recipe(chosen, tiles, config, encoder, num_classes=len(categories), seed=seed),
        validation=Validation(
            measure=lambda _step: validate(model), name="val mAP", keeps_best=True, best_after=begins[-2]
        ),
        buffers=dict(model.named_buffers()),
        stage=stage,
    )
    _save(out, model, config.model, categories, tiling, value_range)
    log = {
        "arm": arm,
        "seed": seed,
        "losses": [round(loss, 6) for loss in trained.losses],
        "val_map": trained.validated,
        "best_val_map": NO_SCORE if trained.best is None else trained.best,
        "image_ids": image_ids,
    }
    write_json(out / "log.json", log)
    remove_checkpoint(out / "checkpoint")
    return trained


def _batches(
    arm: Arm, name: str, begins: tuple[int, ...], tiles: Tiles, config: SegmentationConfig, seed: int
) -> Callable[[int], tuple[int, Batch]]:
    """Return a function that draws a step's batch, following the arm's phases."""
    num_tiles = {source: len(group) for source, group in tiles.items()}
    counts = [
        batch_counts(phase, name=name, settings=config, batch_size=config.batch_size, num_tiles=num_tiles)
        for phase in arm.phases
    ]

    def batch_of(step: int) -> tuple[int, Batch]:
        phase = next(i for i, end in enumerate(begins[1:]) if step < end)
        return step, draw_batch(tiles, counts[phase], seed=seed, step=step)

    return batch_of


def _loss_of(
    model: nn.Module, config: SegmentationConfig, seed: int, device: str
) -> Callable[[tuple[int, Batch]], Tensor]:
    def loss_of(numbered: tuple[int, Batch]) -> Tensor:
        step, batch = numbered
        model.train()
        images = [image.to(device) for image, _ in batch]
        targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.mixed_precision == "bf16"),
        ):
            # torchvision's samplers use the global generator
            torch.manual_seed(seed * 1_000_003 + step)
            losses: dict[str, Tensor] = model(images, targets)
        return torch.stack([value.float() for value in losses.values()]).sum()

    return loss_of


def loop_settings(begins: tuple[int, ...], config: SegmentationConfig) -> LoopSettings:
    """Return the loop's settings; each phase has its own schedule."""
    schedules = tuple(
        Schedule(
            num_steps=end - begin, peak=config.learning_rate, warmup_steps=WARMUP_STEPS, final_share=FINAL_LR_SHARE
        )
        for begin, end in pairwise(begins)
    )
    return LoopSettings(
        schedules=schedules,
        # torch's defaults, which all published scores used; the fused step rounds differently
        betas=(0.9, 0.999),
        fused=False,
        weight_decay=config.weight_decay,
        max_grad_norm=MAX_GRAD_NORM,
        ema_decay=None,
        checkpoint_every=config.checkpoint_every,
        validate_every=config.validate_every,
    )


def _recipe(
    arm: Arm, tiles: Tiles, config: SegmentationConfig, encoder: Path | None, *, num_classes: int, seed: int
) -> str:
    """Compute the digest of everything that the weights depend on."""
    return digest_json(
        {
            "phases": arm.content(),
            "tiles": {source: [tile.digest() for tile in tiles.get(source, ())] for source in arm.sources},
            "config": config.of_one_training(),
            "encoder": None if encoder is None else digest_folder(encoder),
            "num_classes": num_classes,
            "seed": seed,
        }
    )


def _save(
    out: Path,
    model: nn.Module,
    kind: str,
    categories: Sequence[Category],
    tiling: Tiling,
    value_range: ValueRange | None,
) -> None:
    weights = out / "model.safetensors"
    # tensors that share memory cannot be stored
    write_tensors(weights, {name: value.detach().cpu().clone() for name, value in model.state_dict().items()})
    about = {
        "kind": kind,
        "categories": [c.model_dump() for c in categories],
        "tiling": tiling.model_dump(),
        "value_range": None if value_range is None else value_range.model_dump(),
        "sha256": digest_file(weights),
    }
    write_json(out / "segmenter.json", about)


def load_segmenter(folder: Path, device: str = "cpu") -> tuple[nn.Module, tuple[Category, ...], Tiling]:
    """Load a trained segmenter with its classes and tiling.

    Raises:
        WeightsError: a part is missing, damaged or a pickle.
    """
    weights, about = folder / "model.safetensors", folder / "segmenter.json"
    if not weights.is_file() or not about.is_file():
        pickles = (
            sorted(path.name for path in folder.glob("*") if path.suffix in (".pt", ".pth", ".bin", ".ckpt", ".pkl"))
            if folder.is_dir()
            else []
        )
        if pickles:
            raise WeightsError(
                folder / pickles[0],
                "a pickle, which can run code when opened; refused",
                "give a folder made by `defectory segment`",
            )
        raise WeightsError(
            folder, "no segmenter here (model.safetensors and segmenter.json)", "run `defectory segment` first"
        )
    content: dict[str, Any] = json.loads(about.read_text())
    if digest_file(weights) != content["sha256"]:
        raise WeightsError(weights, "digest differs from segmenter.json", "copy the segmenter again")
    categories = tuple(Category.model_validate(c) for c in content["categories"])
    model = build_segmenter(content["kind"], len(categories), seed=0, init="random")
    model.load_state_dict(load_file(weights))
    return model.to(device).eval(), categories, Tiling.model_validate(content["tiling"])


def is_whole_segmenter(folder: Path) -> bool:
    """Check whether a folder holds a trained segmenter with the weights that its description names."""
    try:
        return (
            digest_file(folder / "model.safetensors") == json.loads((folder / "segmenter.json").read_bytes())["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def record_score_threshold(folder: Path, threshold: float) -> None:
    """Store the score threshold with a trained segmenter."""
    about = folder / "segmenter.json"
    write_json(about, {**json.loads(about.read_text()), "score_threshold": threshold})


def score_threshold_of(folder: Path) -> float:
    """Return a segmenter's score threshold; 0.5 if none was stored."""
    return float(json.loads((folder / "segmenter.json").read_text()).get("score_threshold", 0.5))


def value_range_of(folder: Path) -> ValueRange | None:
    """Return the value range of a segmenter's training data; None for 8 bit or if none was stored."""
    stored = json.loads((folder / "segmenter.json").read_text()).get("value_range")
    return None if stored is None else ValueRange.model_validate(stored)


def _required_ids(tiles: Sequence[SegmentationTile], require: Callable[[Sequence[int], str], None] | None) -> list[int]:
    """Return the sorted ids of the tiles' images, after `require` has accepted each tile."""
    if require is None:
        return []
    for tile in tiles:
        if not tile.image_ids:
            raise FirewallError(
                f"tile {tile.id}: does not name its images; only images of train and pool may be trained on"
            )
        require(tile.image_ids, f"tile {tile.id}")
    return sorted({image_id for tile in tiles for image_id in tile.image_ids})
