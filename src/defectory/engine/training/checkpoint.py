"""Saves and restores checkpoints: one safetensors file with all that a training needs, replaced atomically."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from defectory.engine.training.optimizer import NamedOptimizer
from defectory.files import atomic_path

FILE_NAME = "state.safetensors"


@dataclass(kw_only=True)
class TrainingState:
    """The state that changes from step to step.

    Attributes:
        parameters: the trained parameters by name.
        average: their exponential moving average, in the same order; None if no average is kept.
        optimizer: over the parameters, by the same names.
        buffers: other tensors that change in place, by name.
        step: optimiser steps done.
        log: loss and learning rate of each step done.
        validated: step and value of each validation done.
        best: parameters and buffers of the best validation so far, on the CPU, by their names in `weights`.
        best_value: of that validation.
    """

    parameters: Mapping[str, Tensor]
    average: list[Tensor] | None
    optimizer: NamedOptimizer
    buffers: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    step: int = 0
    log: list[tuple[float, float]] = field(default_factory=list)
    validated: list[tuple[int, float]] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    best_value: float | None = None

    @property
    def device(self) -> torch.device:
        """Return the device of the parameters."""
        return next(iter(self.parameters.values())).device

    def weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers, not copies, by `parameter.NAME` and `buffer.NAME`."""
        tensors = {f"parameter.{name}": tensor for name, tensor in self.parameters.items()}
        return tensors | {f"buffer.{name}": tensor for name, tensor in self.buffers.items()}


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, *, durable: bool | None = None
) -> None:
    """Write a safetensors file atomically, readable for all; `durable` as for `atomic_path`.

    Raises:
        StageError: no space or no permission; an earlier file is kept.
    """
    with atomic_path(path, durable=durable) as temporary:
        try:
            save_file(
                {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
                temporary,
                dict(metadata or {}),
            )
        except SafetensorError as error:
            raise OSError(str(error)) from error
        temporary.chmod(0o644)  # safetensors are written readable only for their owner


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 hex digest of tensors: names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        content: Any = value.reshape(-1).view(torch.uint8).numpy()
        digest.update(content)
    return digest.hexdigest()


def save_checkpoint(folder: Path, state: TrainingState, *, recipe: str) -> None:
    """Write the checkpoint of a recipe, and replace an earlier one.

    Raises:
        StageError: it cannot be written; an earlier checkpoint is kept.
    """
    tensors = {**state.optimizer.moments(), **state.weights()}
    if state.average is not None:
        tensors |= {f"average.{name}": mean for name, mean in zip(state.parameters, state.average, strict=True)}
    if state.best is not None:
        tensors |= {f"best.{name}": value for name, value in state.best.items()}
    metadata = {
        "recipe": recipe,
        "step": str(state.step),
        "log": json.dumps(state.log),
        "validated": json.dumps(state.validated),
        "best_value": json.dumps(state.best_value),
    }
    # durable, so that training resumes here even after a power cut
    write_tensors(folder / FILE_NAME, tensors, {**metadata, "sha256": digest_tensors(tensors)}, durable=True)


def restore_checkpoint(folder: Path, state: TrainingState, *, recipe: str) -> bool:
    """Restore a state from a whole checkpoint of this recipe; return whether there was one."""
    path = folder / FILE_NAME
    found = read_checked_tensors(path)
    if found is None:
        return False
    tensors, metadata = found
    if metadata.get("recipe") != recipe:
        return False
    try:
        step = int(metadata["step"])
        log = [(float(loss), float(rate)) for loss, rate in json.loads(metadata["log"])]
        validated = [(int(at), float(value)) for at, value in json.loads(metadata["validated"])]
        best_value = json.loads(metadata["best_value"])
    except (KeyError, ValueError, TypeError):
        return False
    # the digest matches, so we wrote this file for this recipe and it fits
    _fill(tensors, state, step)
    state.step, state.log, state.validated, state.best_value = step, log, validated, best_value
    return True


def read_checked_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Read tensors and metadata of a safetensors file with a digest (`sha256`); None if missing or damaged."""
    try:
        with safe_open(path, framework="pt") as stored:
            metadata = dict(stored.metadata() or {})
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    except (SafetensorError, OSError, ValueError, RuntimeError):
        return None
    return (tensors, metadata) if digest_tensors(tensors) == metadata.get("sha256") else None


@torch.no_grad()
def _fill(tensors: Mapping[str, Tensor], state: TrainingState, step: int) -> None:
    for name, weight in state.weights().items():
        weight.copy_(tensors[name])
    for name, mean in zip(state.parameters, state.average or (), strict=state.average is not None):
        mean.copy_(tensors[f"average.{name}"])
    best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
    state.best = best or None
    state.optimizer.restore(step, tensors)


def remove_checkpoint(folder: Path) -> None:
    """Remove a training's checkpoint, once its result is on disk."""
    with contextlib.suppress(OSError):
        (folder / FILE_NAME).unlink(missing_ok=True)
        folder.rmdir()
