"""Runs the training loop for the stages of pretraining.

Batches and noise are functions of (seed, step), so that resuming needs no generator state.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from defectory.engine.training.loop import Trained, Validation, train
from defectory.errors import StageError
from defectory.events import Work
from defectory.files import digest_json, write_json
from defectory.folders.claims import claim_folder
from defectory.pretraining.config import StageConfig


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
) -> Work[Trained]:
    """Train a model in place and leave its EMA weights in it.

    Args:
        model: parameters that require a gradient are trained.
        loss_of: returns the scalar loss of a step; uses only the given generator for random numbers.
        config: steps, batch, optimiser.
        stage: name; part of the noise seed.
        seed: of the whole pretraining.
        checkpoint: folder of the checkpoint; training resumes from one found there, and the last one is kept.
        check: returns the held-out loss after a step; it sees the EMA weights.
        check_every: steps between two checks; the last step is always checked.
        rng_device: device of the generators; None means the CPU, whose numbers do not depend on the hardware.
    """

    def loss_at(step: int) -> Tensor:
        return loss_of(step, torch.Generator(rng_device or "cpu").manual_seed(step_rng_seed(seed, stage, step)))

    settings = config.loop(check_every=check_every)
    return (
        yield from train(
            {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad},
            lambda step: step,
            loss_at,
            config=settings,
            checkpoint=checkpoint,
            recipe=digest_json({"stage": stage, "seed": seed, "settings": asdict(settings)}),
            validation=None if check is None else Validation(measure=check),
            stage=stage,
        )
    )


def claim(work: Path, recipe: dict[str, Any], *, kind: str = "pretrain-work") -> None:
    """Claim a work folder for one recipe, or check that it belongs to this recipe.

    Raises:
        OutputError: the folder holds files that Defectory did not write.
        StageError: the folder belongs to another recipe.
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
