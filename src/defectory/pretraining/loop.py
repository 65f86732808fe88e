"""The training loop of the pretraining stages: deterministic per step, resumable, one event per step.

Every batch and all noise are functions of (seed, step), so that resuming needs no generator state.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defectory.engine.training.checkpoint import digest_tensors, read_checked_tensors, write_tensors
from defectory.engine.training.optimizer import NamedOptimizer
from defectory.errors import StageError
from defectory.files import write_json
from defectory.folders import claim_folder
from defectory.pretraining.config import StageConfig

READ_EVERY = 10
"""Steps between two losses read from an accelerator, which has to finish its work for it."""


@dataclass(frozen=True, kw_only=True)
class PretrainEvent:
    """One step of one stage: `step` of `num_steps`, the last loss read (None where nothing is trained), the seconds
    since the stage began, and the held-out loss where it was measured.
    """

    stage: str
    step: int
    num_steps: int
    loss: float | None
    seconds: float
    held_out_loss: float | None = None


def learning_rate_at(step: int, config: StageConfig) -> float:
    """Return the learning rate of a step: linear warm-up, the peak, then in the last `decay_share` of the steps cosine to
    2% of it.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    first = max(config.warmup_steps, round(config.num_steps * (1 - config.decay_share)))
    progress = (step - first) / max(1, config.num_steps - first)
    return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))))


def step_rng_seed(seed: int, stage: str, step: int) -> int:
    """Return the seed of one step's batch and noise."""
    return (seed * 1_000_003 + sum(stage.encode()) * 7_919 + step * 104_729) % (2**31)


def fit(
    model: nn.Module,
    loss_of: Callable[[int, torch.Generator], Tensor],
    config: StageConfig,
    *,
    stage: str,
    seed: int,
    checkpoint: Path,
    check: Callable[[int], float] | None = None,
    check_every: int = 500,
    rng_device: torch.device | None = None,
) -> Iterator[PretrainEvent]:
    """Train a model in place and leave its EMA weights in it.

    Args:
        model: its parameters that require a gradient are trained.
        loss_of: gives the scalar loss of a step; draws only from the generator it is given.
        config: steps, batch, optimiser.
        stage: name, part of the noise seed.
        seed: of the whole pretraining.
        checkpoint: safetensors file; found whole, training resumes from it, and it is kept at the end.
        check: gives the held-out loss after a step; the model has its EMA weights meanwhile.
        check_every: steps between two of them; the last step is always checked.
        rng_device: where the generators are; None is the CPU, whose numbers are the same for any model.
    """
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    optimizer = NamedOptimizer(
        dict(zip(names, parameters, strict=True)),
        kind=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
    )
    device = parameters[0].device
    average = [p.detach().clone() for p in parameters]
    start, shown = 0, math.nan
    found = read_checked_tensors(checkpoint)
    if found is not None:
        start = _restore(found[0], names, parameters, average, optimizer)
    began = time.monotonic()
    for step in range(start, config.num_steps):
        optimizer.set_learning_rate(learning_rate_at(step, config))
        generator = torch.Generator(rng_device or "cpu").manual_seed(step_rng_seed(seed, stage, step))
        loss = loss_of(step, generator)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)  # pyright: ignore[reportPrivateUsage]
        done = step + 1
        if done % config.checkpoint_every == 0 or done == config.num_steps:
            _save(checkpoint, done, names, parameters, average, optimizer)
        held_out: float | None = None
        if check is not None and (done % check_every == 0 or done == config.num_steps):
            kept = [parameter.detach().clone() for parameter in parameters]
            _put(average, parameters)
            held_out = check(done)
            _put(kept, parameters)
        if device.type == "cpu" or step == start or done % READ_EVERY == 0 or done == config.num_steps:
            shown = float(loss.detach())
        seconds = time.monotonic() - began
        yield PretrainEvent(
            stage=stage, step=done, num_steps=config.num_steps, loss=shown, seconds=seconds, held_out_loss=held_out
        )
    _put(average, parameters)


def claim(work: Path, recipe: dict[str, Any], *, kind: str = "pretrain-work") -> None:
    """Make a work folder that of one recipe, or find it to be so.

    Raises:
        OutputError: it holds something and is not ours.
        StageError: it belongs to another recipe.
    """
    claim_folder(work, kind=kind)
    recipe_file = work / "recipe.json"
    if recipe_file.is_file():
        try:
            recorded = json.loads(recipe_file.read_bytes())
        except ValueError:
            recorded = None
        if recorded != recipe:
            raise StageError(f"{work}: holds checkpoints of another recipe; choose another work folder or remove it")
    write_json(recipe_file, recipe)


@torch.no_grad()
def _put(values: Sequence[Tensor], parameters: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


def _save(
    path: Path,
    step: int,
    names: tuple[str, ...],
    parameters: tuple[Tensor, ...],
    average: list[Tensor],
    optimizer: NamedOptimizer,
) -> None:
    tensors: dict[str, Tensor] = {"step": torch.tensor(step), **optimizer.moments()}
    for name, parameter, mean in zip(names, parameters, average, strict=True):
        tensors |= {f"p.{name}": parameter.detach(), f"ema.{name}": mean}
    write_tensors(path, tensors, {"sha256": digest_tensors(tensors)}, durable=True)


def _restore(
    tensors: dict[str, Tensor],
    names: tuple[str, ...],
    parameters: tuple[Tensor, ...],
    average: list[Tensor],
    optimizer: NamedOptimizer,
) -> int:
    step = int(tensors["step"])
    with torch.no_grad():
        for name, parameter, mean in zip(names, parameters, average, strict=True):
            parameter.copy_(tensors[f"p.{name}"])
            mean.copy_(tensors[f"ema.{name}"])
    optimizer.restore(step, tensors.__getitem__)
    return step
