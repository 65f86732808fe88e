"""Trains a segmenter in one arm, with the same number of optimiser steps in every arm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from defectory.artifacts.annotation import Category
from defectory.artifacts.primary_metric import LEAST_SCORE, METRIC_NAMES, PrimaryMetric
from defectory.engine.precision import autocast
from defectory.engine.training.checkpoint import remove_checkpoint, write_tensors
from defectory.engine.training.config import LoopSettings
from defectory.engine.training.events import Validated
from defectory.engine.training.loop import Trained, Validation, train
from defectory.engine.training.schedule import Schedule
from defectory.errors import FirewallError, WeightsError
from defectory.events import Notice, Progress, Work, relayed
from defectory.files import atomic_path, digest_file, digest_folder, digest_json, write_json
from defectory.folders.swap import remove_leftovers
from defectory.images.valuerange import ValueRange
from defectory.segmentation.arms import ARMS, Arm, first_steps
from defectory.segmentation.batches import Batch, Batches, Images
from defectory.segmentation.config import SegmentationConfig
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.models.family import Build, build_segmenter, require_heeding
from defectory.segmentation.sizing import BoxStatistics, Sizing, box_statistics

WARMUP_STEPS = 20
FINAL_LR_SHARE = 0.05
MAX_GRAD_NORM = 5.0
FILES = ("model.safetensors", "segmenter.json")
"""What a trained segmenter consists of."""
WEIGHT_KEYS = ("file", "files", "folder")
"""Under which of these a family keeps the names of the weights that it started from."""
NO_SCORE = -1.0
"""Best val score in the log if no validation counted."""


def train_segmenter(
    *,
    arm: str,
    images: Images,
    validate: Callable[[nn.Module], float],
    categories: Sequence[Category],
    sizing: Sizing,
    config: SegmentationConfig,
    seed: int,
    out: Path,
    metric: PrimaryMetric = "segm_map",
    device: str = "cpu",
    encoder: Path | None = None,
    weights: Path | None = None,
    boxes: BoxStatistics | None = None,
    value_range: ValueRange | None = None,
    require: Callable[[Sequence[int], str], None] | None = None,
    frozen: tuple[str, ...] = (),
    stage: str = "",
) -> Work[Trained]:
    """Train a segmenter, and keep the weights with the best score on real val in the arm's last phase.

    Args:
        arm: name in `ARMS`.
        images: by source, at the scale of `sizing`.
        validate: returns the model's score on val; called at fixed steps.
        categories: classes.
        sizing: stored with the weights, since prediction needs the scale.
        config: family, steps, batch, optimiser.
        seed: of weights, batches and augmentation.
        out: gets `model.safetensors`, `segmenter.json` and `log.json`; a checkpoint meanwhile.
        metric: that `validate` returns.
        device: where to train.
        encoder: folder of the encoder that `config.init = "encoder"` starts from; None means the shipped one.
        weights: initial weights on disk, for families that take some.
        boxes: sizes of the boxes to be found; None measures those of the real images.
        value_range: of the data set, stored with the weights, so that images are read alike in training and prediction.
        require: called with an image's image ids and its name; raises for ids that must not be trained on. The ids go
            into the log. None for images that belong to no data set.
        frozen: parameters whose names begin with one of these stay as they are.
        stage: name in events and messages.

    Raises:
        ConfigError: the arm or the family is unknown, a source of the arm has no images, or an image has doubtful
            pixels that the family cannot ignore.
        FirewallError: an image does not name its images, or `require` refuses one of them.
        StageError: a loss is not finite, or `out` cannot be written.
        WeightsError: initial weights cannot be used.
    """
    image_ids = _checked(images, config.model, require)
    chosen = ARMS.get(arm)
    begins = first_steps(chosen, name=arm, settings=config, num_steps=config.num_steps)
    batches = Batches(chosen, arm, begins, images, config, seed)
    boxes = boxes or boxes_of(images)
    build = Build(
        num_classes=len(categories),
        boxes=boxes,
        init=config.init,
        encoder=encoder,
        weights=weights,
        # mirrored images are unlike all others if training shows none
        mirrored=config.mirrored and batches.mirrors,
    )
    model, built = build_segmenter(config.model, build, seed=seed)
    model = _frozen_from(model.to(device), frozen)
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    training = train(
        {name: value for name, value in model.named_parameters() if value.requires_grad},
        batches.at,
        _loss_of(model, config, seed, device),
        config=loop_settings(begins if chosen.restarts else (0, begins[-1]), config),
        checkpoint=out / "checkpoint",
        recipe=_recipe(chosen, images, config, encoder, built, metric, num_classes=len(categories), seed=seed),
        validation=_validation(lambda _step: validate(model), metric, best_after=begins[-2]),
        buffers=dict(model.named_buffers()),
        stage=stage,
    )
    trained = yield from _telling_collapse(training, metric, stage)
    about = {
        "kind": config.model,
        "categories": [c.model_dump() for c in categories],
        "sizing": sizing.model_dump(),
        "built": built,
        "value_range": None if value_range is None else value_range.model_dump(),
    }
    _save(out, model, about)
    write_json(
        out / "log.json", _log(trained, batches, images, metric) | {"arm": arm, "seed": seed, "image_ids": image_ids}
    )
    remove_checkpoint(out / "checkpoint")
    return trained


def _checked(images: Images, model: str, require: Callable[[Sequence[int], str], None] | None) -> Sequence[int]:
    """Check that images may be trained on, and that the family heeds their doubt; return the ids of their images."""
    every = [image for group in images.values() for image in group]
    if any(image.has_doubt for image in every):
        require_heeding(model)
    return _required_ids(every, require)


def _frozen_from(model: nn.Module, frozen: tuple[str, ...]) -> nn.Module:
    """Keep the parameters whose names begin with one of these as they are."""
    for name, value in model.named_parameters():
        if name.startswith(frozen):
            value.requires_grad_(False)
    return model


def _validation(measure: Callable[[int], float], metric: PrimaryMetric, *, best_after: int) -> Validation:
    return Validation(measure=measure, name=f"val {METRIC_NAMES[metric]}", keeps_best=True, best_after=best_after)


def _log(trained: Trained, batches: Batches, images: Images, metric: PrimaryMetric) -> dict[str, object]:
    return {
        "losses": [round(loss, 6) for loss in trained.losses],
        "metric": metric,
        "val_scores": trained.validated,
        "best_val_score": NO_SCORE if trained.best is None else trained.best,
        "exposures": batches.exposures,
        "num_images": {source: len(group) for source, group in images.items()},
    }


def _telling_collapse(work: Work[Trained], metric: PrimaryMetric, stage: str) -> Work[Trained]:
    """Pass on a training's events, and tell once if half of its steps have taught it nothing."""
    is_judged = False

    def told(event: Progress | Notice) -> Iterable[Progress | Notice]:
        nonlocal is_judged
        yield event
        if isinstance(event, Validated) and not is_judged and 2 * event.done >= event.total > event.done:
            is_judged = True
            if event.value < LEAST_SCORE[metric]:
                text = (
                    f"finds next to nothing on validation after {event.done} of {event.total} steps "
                    f"({METRIC_NAMES[metric]} {event.value:.3f}); more steps (segmentation.num_steps), a larger "
                    "segmentation.scale or more labels may help"
                )
                yield Notice(text=text, stage=stage)

    return relayed(work, told)


def boxes_of(images: Images) -> BoxStatistics | None:
    """Measure the boxes of the real images, or of all images if there are no real ones."""
    sources = [images["real"]] if images.get("real") else list(images.values())
    masks = [mask for group in sources for image in group for mask, _ in image.crops()]
    return box_statistics([(float(mask.shape[0]), float(mask.shape[1])) for mask in masks])


def _loss_of(
    model: nn.Module, config: SegmentationConfig, seed: int, device: str
) -> Callable[[tuple[int, Batch]], Tensor]:
    def loss_of(numbered: tuple[int, Batch]) -> Tensor:
        step, batch = numbered
        model.train()
        images = [image.to(device) for image, _ in batch]
        targets = [{key: value.to(device) for key, value in target.items()} for _, target in batch]
        with torch.random.fork_rng(devices=[]), autocast(config.mixed_precision, device):
            # torchvision's samplers use the global generator
            torch.manual_seed(seed * 1_000_003 + step)
            losses: dict[str, Tensor] = model(images, targets)
        return torch.stack([value.float() for value in losses.values()]).sum()

    return loss_of


def loop_settings(begins: tuple[int, ...], config: SegmentationConfig) -> LoopSettings:
    """Return the loop's settings, with a schedule for each span between the given steps."""
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
        ema_decay=config.ema_decay or None,
        checkpoint_every=config.checkpoint_every,
        validate_every=config.validate_every,
    )


def _recipe(
    arm: Arm,
    images: Images,
    config: SegmentationConfig,
    encoder: Path | None,
    built: Mapping[str, Any],
    metric: PrimaryMetric,
    *,
    num_classes: int,
    seed: int,
) -> str:
    """Compute the digest of everything that the weights depend on."""
    return digest_json(
        {
            "arm": arm.content(),
            "images": {source: [image.digest() for image in group] for source, group in images.items()},
            "config": config.of_one_training(),
            "encoder": None if encoder is None else digest_folder(encoder),
            "built": built,
            "metric": metric,
            "num_classes": num_classes,
            "seed": seed,
        }
    )


def _save(out: Path, model: nn.Module, about: Mapping[str, Any]) -> None:
    weights = out / "model.safetensors"
    # tensors that share memory cannot be stored
    write_tensors(weights, {name: value.detach().cpu().clone() for name, value in model.state_dict().items()})
    write_json(out / "segmenter.json", {**about, "sha256": digest_file(weights)})


def load_segmenter(folder: Path, device: str = "cpu") -> tuple[nn.Module, tuple[Category, ...], Sizing]:
    """Load a trained segmenter with its classes and sizing.

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
    model, _ = build_segmenter(content["kind"], Build(num_classes=len(categories), built=content["built"]), seed=0)
    model.load_state_dict(load_file(weights))
    return model.to(device).eval(), categories, Sizing.model_validate(content["sizing"])


def copy_segmenter(folder: Path, out: Path) -> None:
    """Copy what `load_segmenter` needs of a trained segmenter.

    Raises:
        OutputError: `out` cannot be written.
    """
    for name in FILES:
        with atomic_path(out / name) as path:
            shutil.copyfile(folder / name, path)


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


def digest_of_weights(folder: Path) -> str:
    """Return the SHA-256 hex digest of a segmenter's weights."""
    return str(json.loads((folder / "segmenter.json").read_text())["sha256"])


def initial_weights_of(folder: Path) -> tuple[str, ...]:
    """Return names of the weights from elsewhere that training started from; none if they are the family's own."""
    built = json.loads((folder / "segmenter.json").read_text())["built"]
    parts = [part for part in (built.get("encoder"), built.get("weights")) if isinstance(part, dict)]
    named = [[part[key]] if key != "files" else list(part[key]) for part in parts for key in WEIGHT_KEYS if key in part]
    return tuple(str(name) for names in named for name in names)


def family_of(folder: Path) -> str:
    """Return the family of a trained segmenter."""
    return str(json.loads((folder / "segmenter.json").read_text())["kind"])


def value_range_of(folder: Path) -> ValueRange | None:
    """Return the value range of a segmenter's training data; None for 8 bit or if none was stored."""
    stored = json.loads((folder / "segmenter.json").read_text()).get("value_range")
    return None if stored is None else ValueRange.model_validate(stored)


def _required_ids(
    images: Sequence[SegmentationImage], require: Callable[[Sequence[int], str], None] | None
) -> list[int]:
    """Return the sorted ids of the images, after `require` has accepted each image."""
    if require is None:
        return []
    for image in images:
        if not image.image_ids:
            raise FirewallError(
                f"image {image.id}: does not name its images; only images of train and pool may be trained on"
            )
        require(image.image_ids, f"image {image.id}")
    return sorted({image_id for image in images for image_id in image.image_ids})
