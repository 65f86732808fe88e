"""Trains a segmenter in one arm: same number of optimiser steps and same defect-free tiles in every arm."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from defectory.artifacts.annotation import Category
from defectory.artifacts.tiles import Tiling
from defectory.engine.training.checkpoint import digest_tensors, read_checked_tensors, write_tensors
from defectory.errors import ConfigError, FirewallError, WeightsError
from defectory.files import digest_file, write_json
from defectory.folders import remove_leftovers
from defectory.imageio import ValueRange
from defectory.segmentation.config import Arm, SegmentationConfig
from defectory.segmentation.data import SegmentationTile, draw_batch
from defectory.segmentation.models import build_segmenter

WARMUP_STEPS = 20


@dataclass(frozen=True, kw_only=True)
class SegmenterEvent:
    """State after a step: `loss` of the step, and `val_map` where val was scored."""

    step: int
    num_steps: int
    loss: float
    seconds: float
    val_map: float | None = None


def train_segmenter(
    *,
    arm: Arm,
    real: Sequence[SegmentationTile],
    synthetic: Sequence[SegmentationTile],
    defect_free: Sequence[SegmentationTile],
    validate: Callable[[nn.Module], float],
    kind: str,
    categories: Sequence[Category],
    tiling: Tiling,
    config: SegmentationConfig,
    seed: int,
    out: Path,
    device: str = "cpu",
    encoder: Path | None = None,
    value_range: ValueRange | None = None,
    require: Callable[[Sequence[int], str], None] | None = None,
) -> Iterator[SegmenterEvent]:
    """Train and keep the checkpoint that scores best on real val.

    Args:
        arm: which tiles: real; synthetic; synthetic, then real for the last `real_share_of_steps`.
        real: defective train tiles.
        synthetic: accepted drafts.
        defect_free: real defect-free tiles, `defect_free_share` of every batch in every arm.
        validate: gives the val segm mAP of the model; called at fixed steps.
        kind: `light` or `resnet50`.
        categories: classes.
        tiling: stored with the weights, prediction needs it.
        config: steps, batch, optimiser.
        seed: of weights, batches and augmentation.
        out: gets `model.safetensors`, `segmenter.json` and `log.json`; a checkpoint meanwhile.
        device: where to train.
        encoder: folder of the encoder that `config.init = "encoder"` begins with; None means the shipped one.
        value_range: of the data set, stored with the weights: images of more than 8 bit are predicted as they were
            trained on.
        require: raises for image ids that may not be trained on, given a tile's ids and what to call it; the images
            trained on go into the log. None where tiles are of no data set.

    Raises:
        ConfigError: the arm has no tiles.
        FirewallError: a tile says not which images it comes from, or `require` refuses one of them.
    """
    image_ids = _required_ids([*real, *synthetic, *defect_free], require)
    for name, tiles, needed in (("real", real, arm != "synthetic"), ("synthetic", synthetic, arm != "real")):
        if needed and not tiles:
            raise ConfigError(
                f"arm {arm}",
                f"no {name} tiles",
                "check curation's acceptance" if name == "synthetic" else "add annotated images",
            )
    model = build_segmenter(kind, len(categories), seed=seed, init=config.init, encoder_folder=encoder).to(device)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = _State()
    out.mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    checkpoint = out / "checkpoint.safetensors"
    _restore(checkpoint, model, parameters, optimizer, state)
    began, start = time.monotonic(), state.step
    for step in range(start, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, arm, config)
        batch = draw_batch(
            _tiles_of(arm, step, real, synthetic, config),
            defect_free,
            batch_size=config.batch_size,
            defect_free_share=config.defect_free_share,
            seed=seed,
            step=step,
        )
        model.train()
        with (
            torch.random.fork_rng(devices=[]),
            torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.precision == "bf16"),
        ):
            # torchvision's samplers draw from the global generator
            torch.manual_seed(seed * 1_000_003 + step)
            losses = model(
                [image.to(device) for image, _ in batch], [{k: v.to(device) for k, v in t.items()} for _, t in batch]
            )
        loss: Tensor = torch.stack([value.float() for value in losses.values()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(list(parameters.values()), 5.0)
        optimizer.step()
        state.step = step + 1
        state.losses.append(round(float(loss.detach()), 6))
        val_map: float | None = None
        if state.step % config.validate_every == 0 or state.step == config.num_steps:
            val_map = validate(model)
            state.val.append((state.step, val_map))
            # an arm that ends on real tiles is judged by what they made of it, else it could equal the synthetic arm
            if val_map >= state.best_map and (arm != "synthetic_then_real" or state.step > first_real_step(config)):
                state.best_map = val_map
                state.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        if state.step % config.checkpoint_every == 0 and state.step < config.num_steps:
            _save(checkpoint, model, parameters, optimizer, state)
        yield SegmenterEvent(
            step=state.step,
            num_steps=config.num_steps,
            loss=state.losses[-1],
            seconds=time.monotonic() - began,
            val_map=val_map,
        )
    best = state.best or {name: value.detach().cpu() for name, value in model.state_dict().items()}
    write_tensors(out / "model.safetensors", best)
    write_json(
        out / "segmenter.json",
        {
            "kind": kind,
            "categories": [c.model_dump() for c in categories],
            "tiling": tiling.model_dump(),
            "value_range": None if value_range is None else value_range.model_dump(),
            "sha256": digest_file(out / "model.safetensors"),
        },
    )
    log = {
        "arm": arm,
        "seed": seed,
        "losses": state.losses,
        "val_map": state.val,
        "best_val_map": state.best_map,
        "image_ids": image_ids,
    }
    write_json(out / "log.json", log)
    checkpoint.unlink(missing_ok=True)


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
    """Tell whether a folder holds a trained segmenter with the weights that its description names."""
    try:
        return (
            digest_file(folder / "model.safetensors") == json.loads((folder / "segmenter.json").read_bytes())["sha256"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def record_score_threshold(folder: Path, threshold: float) -> None:
    """Store with a trained segmenter the score from which on its detections count."""
    about = folder / "segmenter.json"
    write_json(about, {**json.loads(about.read_text()), "score_threshold": threshold})


def score_threshold_of(folder: Path) -> float:
    """Return the score from which on a segmenter's detections count; 0.5 where none was stored."""
    return float(json.loads((folder / "segmenter.json").read_text()).get("score_threshold", 0.5))


def value_range_of(folder: Path) -> ValueRange | None:
    """Return the value range of the data set that a segmenter was trained on; None for 8 bit, and where none was
    stored.
    """
    stored = json.loads((folder / "segmenter.json").read_text()).get("value_range")
    return None if stored is None else ValueRange.model_validate(stored)


def _required_ids(tiles: Sequence[SegmentationTile], require: Callable[[Sequence[int], str], None] | None) -> list[int]:
    """Return the ids of the images that tiles come from, in order, once each has been asked for."""
    if require is None:
        return []
    for tile in tiles:
        if not tile.image_ids:
            raise FirewallError(
                f"tile {tile.id}: says not which images it comes from; only images of train and pool may be trained on"
            )
        require(tile.image_ids, f"tile {tile.id}")
    return sorted({image_id for tile in tiles for image_id in tile.image_ids})


class _State:
    def __init__(self) -> None:
        self.step = 0
        self.losses: list[float] = []
        self.val: list[tuple[int, float]] = []
        self.best_map = -1.0
        self.best: dict[str, Tensor] | None = None


def _tiles_of(
    arm: Arm,
    step: int,
    real: Sequence[SegmentationTile],
    synthetic: Sequence[SegmentationTile],
    config: SegmentationConfig,
) -> Sequence[SegmentationTile]:
    if arm == "real":
        return real
    return synthetic if arm == "synthetic" or step < first_real_step(config) else real


def first_real_step(config: SegmentationConfig) -> int:
    """Return the step, counted from 0, from which `synthetic_then_real` sees real tiles."""
    return round(config.num_steps * (1 - config.real_share_of_steps))


def learning_rate_at(step: int, arm: Arm, config: SegmentationConfig) -> float:
    """Return the learning rate of a step (from 0): linear warm-up, then cosine to 5% of the peak.

    `synthetic_then_real` is two trainings one after the other: its real part has a schedule of its own.
    """
    begin, end = 0, config.num_steps
    if arm == "synthetic_then_real":
        turn = first_real_step(config)
        begin, end = (0, turn) if step < turn else (turn, config.num_steps)
    done, length = step - begin, end - begin
    if done < WARMUP_STEPS:
        return config.learning_rate * (done + 1) / WARMUP_STEPS
    return config.learning_rate * (
        0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (done - WARMUP_STEPS) / max(1, length - WARMUP_STEPS)))
    )


def _save(
    path: Path, model: nn.Module, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: _State
) -> None:
    tensors = {f"model.{name}": value.detach() for name, value in model.state_dict().items()}
    for name, parameter in parameters.items():
        tensors |= {
            f"m.{name}": optimizer.state[parameter]["exp_avg"],
            f"v.{name}": optimizer.state[parameter]["exp_avg_sq"],
        }
    tensors |= {f"best.{name}": value for name, value in (state.best or {}).items()}
    about = {"step": state.step, "losses": state.losses, "val": state.val, "best_map": state.best_map}
    # tensors that share memory cannot be stored
    stored = {key: value.contiguous().clone() for key, value in tensors.items()}
    write_tensors(path, stored, {"state": json.dumps(about), "sha256": digest_tensors(stored)}, durable=True)


def _restore(
    path: Path, model: nn.Module, parameters: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer, state: _State
) -> None:
    """Fill model, optimizer and state from a checkpoint; a missing or damaged one leaves them as they are."""
    found = read_checked_tensors(path)
    if found is None:
        return
    tensors, about = found[0], json.loads(found[1]["state"])
    model.load_state_dict(
        {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    )
    state.step, state.losses, state.best_map = about["step"], about["losses"], about["best_map"]
    state.val = [(int(step), float(value)) for step, value in about["val"]]
    state.best = {
        name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")
    } or None
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(state.step)),
            "exp_avg": tensors[f"m.{name}"].to(parameter.device),
            "exp_avg_sq": tensors[f"v.{name}"].to(parameter.device),
        }
