"""Checkpoints: one safetensors file, replaced by one rename, that holds all a phase needs to go on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defectory.engine.training.optimizer import NamedOptimizer
from defectory.errors import WeightsError
from defectory.run import atomic_path

FILE_NAME = "state.safetensors"


@dataclass(kw_only=True)
class TrainingState:
    """What changes from step to step.

    Attributes:
        parameters: the trained parameters by name.
        average: their exponential moving average, in the same order.
        optimizer: over the parameters, by the same names.
        step: optimiser steps done.
        log: loss and learning rate of each step done.
        held_out: step and held-out loss of each validation done.
    """

    parameters: Mapping[str, Tensor]
    average: list[Tensor]
    optimizer: NamedOptimizer
    step: int = 0
    log: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        StageError: it cannot be written, for want of space or permission; an earlier file is kept.
    """
    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(str(error)) from error


def save_checkpoint(folder: Path, state: TrainingState, *, recipe: str) -> None:
    """Write the checkpoint of a recipe, in place of an earlier one.

    Raises:
        StageError: it cannot be written; an earlier checkpoint is kept.
    """
    tensors: dict[str, Tensor] = state.optimizer.moments()
    for (name, parameter), mean in zip(state.parameters.items(), state.average, strict=True):
        tensors |= {f"parameter.{name}": parameter, f"average.{name}": mean}
    metadata = {"recipe": recipe, "step": str(state.step), "log": json.dumps(state.log), "held_out": json.dumps(state.held_out)}
    write_tensors(folder / FILE_NAME, tensors, metadata)


def restore_checkpoint(folder: Path, state: TrainingState, *, recipe: str) -> bool:
    """Fill a state from a checkpoint and tell whether there was one of this recipe; another recipe's is left alone.

    Raises:
        WeightsError: the checkpoint is damaged or is not a safetensors file.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("recipe") != recipe:
                return False
            _fill(stored, state, int(metadata["step"]))
        state.step = int(metadata["step"])
        state.log = [(loss, rate) for loss, rate in json.loads(metadata["log"])]
        state.held_out = [(step, loss) for step, loss in json.loads(metadata["held_out"])]
    except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise WeightsError(path, f"not a checkpoint of this phase ({reason})", "remove the folder to begin the phase anew") from None
    return True


@torch.no_grad()
def _fill(stored: safe_open, state: TrainingState, step: int) -> None:
    for (name, parameter), mean in zip(state.parameters.items(), state.average, strict=True):
        parameter.copy_(stored.get_tensor(f"parameter.{name}"))
        mean.copy_(stored.get_tensor(f"average.{name}"))
    state.optimizer.restore(step, stored.get_tensor)


def remove_checkpoint(folder: Path) -> None:
    """Remove a phase's checkpoint once its outcome is on disk."""
    shutil.rmtree(folder, ignore_errors=True)


def clear_leftovers(out: Path, *, names: Sequence[str]) -> None:
    """Remove what a killed process left half-written beside these outputs of a stage folder."""
    for name in names:
        for path in out.glob(f".{name}.*"):
            if ".tmp" in path.name or ".old." in path.name:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
