"""Runs the training loop of every network. Knows nothing of images, prompts or drivers.

Batches and noise are functions of (seed, step), provided by the caller. The checkpoint holds weights, averages, moments
and step. A resumed run therefore equals an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from defectory.engine.training.checkpoint import FILE_NAME, TrainingState, restore_checkpoint, save_checkpoint
from defectory.engine.training.config import LoopSettings, TrainingConfig
from defectory.engine.training.events import Checkpointed, Started, Step, Validated
from defectory.engine.training.optimizer import NamedOptimizer, usable_kind
from defectory.engine.training.prefetch import Prefetch
from defectory.engine.training.schedule import learning_rate_at
from defectory.engine.training.share import WHOLE, Share
from defectory.engine.training.team import ALONE, Team
from defectory.errors import StageError
from defectory.events import Notice, Work
from defectory.files import write_text

BatchT = TypeVar("BatchT")
MIN_RISES = 3
"""Fewest validations since the lowest loss for a remark on overfitting."""
RISE = 0.03
"""Least rise of the loss since then, as a share of it."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """A measurement at intervals, and which weights are kept for it.

    Attributes:
        measure: returns the value after a number of steps; it sees the averaged weights, if there are any.
        name: of the value, for messages.
        keeps_best: keep the weights of the best value instead of those of the last step: of the highest score, the
            latest of equal ones, or of the lowest loss, the first of equal ones.
        is_loss: lower values are better.
        best_after: values count for the best only after this number of steps.
    """

    measure: Callable[[int], float]
    name: str = "held-out loss"
    keeps_best: bool = False
    is_loss: bool = False
    best_after: int = 0


@dataclass(frozen=True, kw_only=True)
class Trained:
    """Results of a training besides the weights, which are left in place.

    Attributes:
        losses: of each step.
        validated: step and value of each validation.
        best: best value that counted, if the best weights are kept; None if no value counted.
    """

    losses: tuple[float, ...]
    validated: tuple[tuple[int, float], ...]
    best: float | None = None


def average_decay_at(step: int, ema_decay: float) -> float:
    """Return the decay of the moving average at a step (from 0): short at first, so that early weights are forgotten.

    diffusers' `EMAModel` uses the same rule but drops the first weights at once. On normal noise its average differs by
    0.04 after one step and not at all after 200, so it would change short trainings without a gain.
    """
    return min(ema_decay, (step + 1) / (step + 10))


def train(
    parameters: Mapping[str, nn.Parameter],
    batch_of: Callable[[int], BatchT],
    loss_of: Callable[[BatchT], Tensor],
    *,
    config: TrainingConfig | LoopSettings,
    checkpoint: Path,
    recipe: str,
    log: Path | None = None,
    held_out_loss: Callable[[], float] | None = None,
    validation: Validation | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    rate_shares: Mapping[str, float] | None = None,
    team: Team = ALONE,
    share: Share = WHOLE,
    stage: str = "",
) -> Work[Trained]:
    """Train parameters in place, and leave the averaged, the best or the last weights in them.

    Leaving the loop early (closing the generator) writes a checkpoint first; the next call resumes from it.

    Several processes may train together. They call this with the same arguments, but for their shares; `loss_of`
    returns the share's part of the loss, and `measure` of the validation the same value in all of them. A checkpoint
    does not depend on how many processes wrote it.

    Args:
        parameters: what is trained, by name; all on one device.
        batch_of: returns the micro-batch of an index, a pure function; a step takes
            `gradient_accumulation_steps` of them.
        loss_of: returns a batch's scalar loss.
        config: steps, schedule, optimiser.
        checkpoint: folder for the checkpoint; the caller removes it when the outcome is saved.
        recipe: digest of everything the outcome depends on; a checkpoint of another recipe is not used.
        log: file that gets the losses at the end, one JSON object per line.
        held_out_loss: returns the current loss on held-out data; shorthand for a `validation` that keeps the best
            weights only if `patience` is set.
        validation: what to measure at intervals.
        buffers: other tensors that change in place (batch norm's statistics), by name; they are not averaged.
        rate_shares: learning rates of parameters by name, as shares of the schedule's; 1 where none is given.
        team: the processes that train together; only the main one writes.
        share: micro-batches of each step that this process computes.
        stage: name in events and messages.

    Yields:
        Started, Step, Validated and Checkpointed, which are all Progress, and a Notice for an unused checkpoint, a
        training that stops early, and a loss that rises for long.

    Raises:
        StageError: a loss is not finite, the checkpoint cannot be written, or another process of the team has ended.
    """
    settings = config.loop() if isinstance(config, TrainingConfig) else config
    if held_out_loss is not None:
        validation = Validation(
            measure=lambda _step: held_out_loss(), keeps_best=settings.patience is not None, is_loss=True
        )
    kind, replaced = usable_kind(settings.optimizer)
    settings, recipe = replace(settings, optimizer=kind), f"{recipe} {kind}" if replaced else recipe
    state = _fresh_state(parameters, buffers or {}, settings, rate_shares or {})
    restored, remark = restore_checkpoint(checkpoint, state, recipe=recipe), ""
    # also waits, so that none reads a checkpoint that the main process replaces
    team.require_same(state.step)
    if not restored and (checkpoint / FILE_NAME).is_file():
        remark = f"{checkpoint / FILE_NAME} is damaged, or of other settings; training begins anew"
    remark = "; ".join(filter(None, (replaced, remark)))
    saved_at, num_steps = state.step, settings.num_steps
    with Prefetch(batch_of, every=share.every, enabled=state.device.type != "cpu") as batches:
        stepper = _Stepper(state, batches, loss_of, settings, team, share)
        try:
            yield Started(done=state.step, total=num_steps, remark=remark, stage=stage)
            if remark:
                yield Notice(text=remark, stage=stage)
            if validation is not None and _is_owed(state, settings):
                yield _validate(state, validation, total=num_steps, stage=stage)
            while state.step < num_steps and not _is_out_of_patience(state, validation, settings):
                yield stepper.step(stage=stage, validation=validation)
                if validation is not None and _is_owed(state, settings):
                    yield _validate(state, validation, total=num_steps, stage=stage)
                if _is_due(state.step, settings.checkpoint_every, num_steps):
                    stepper.read_losses()
                    if team.is_main:
                        save_checkpoint(checkpoint, state, recipe=recipe)
                    saved_at = state.step
                    yield Checkpointed(done=state.step, total=num_steps, note="checkpoint", stage=stage)
        except GeneratorExit:
            # the state is consistent at a yield, and may only be saved then
            if state.step > saved_at and team.is_main:
                stepper.read_losses()
                save_checkpoint(checkpoint, state, recipe=recipe)
            raise
    stepper.read_losses()
    remark = _ending_remark(state, validation, settings)
    _leave_kept_weights(state)
    if log is not None and team.is_main:
        write_text(log, _log_text(state))
    if remark:
        yield Notice(text=remark, stage=stage)
    return Trained(losses=tuple(loss for loss, _ in state.log), validated=tuple(state.validated), best=state.best_value)


def _fresh_state(
    parameters: Mapping[str, nn.Parameter],
    buffers: Mapping[str, Tensor],
    settings: LoopSettings,
    rate_shares: Mapping[str, float],
) -> TrainingState:
    weights = list(parameters.values())
    optimizer = NamedOptimizer(
        parameters,
        kind=settings.optimizer,
        learning_rate=settings.schedules[0].peak,
        weight_decay=settings.weight_decay,
        betas=settings.betas,
        fused=True if settings.fused and weights[0].device.type in ("cpu", "cuda") else None,
        rate_shares=rate_shares,
    )
    average = None if settings.ema_decay is None else [weight.detach().clone() for weight in weights]
    return TrainingState(parameters=parameters, average=average, optimizer=optimizer, buffers=buffers)


def _is_due(step: int, every: int, num_steps: int) -> bool:
    return step % every == 0 or step == num_steps


def _is_owed(state: TrainingState, settings: LoopSettings) -> bool:
    """Check whether the validation of the last step is still to be done; the training may have been left before it."""
    is_done = bool(state.validated) and state.validated[-1][0] == state.step
    return state.step > 0 and not is_done and _is_due(state.step, settings.validate_every, settings.num_steps)


def _best_index(state: TrainingState, validation: Validation) -> int:
    """Return the index of the best validation among those that count, the first of equal ones; -1 if none counts."""
    losses = [
        (value if validation.is_loss else -value, number)
        for number, (at, value) in enumerate(state.validated)
        if at > validation.best_after and not math.isnan(value)
    ]
    return min(losses)[1] if losses else -1


def _is_out_of_patience(state: TrainingState, validation: Validation | None, settings: LoopSettings) -> bool:
    """Check whether the last validations brought nothing better. A function of the state, so that a resume agrees."""
    if settings.patience is None or validation is None:
        return False
    best = _best_index(state, validation)
    return best >= 0 and len(state.validated) - 1 - best >= settings.patience


def _ending_remark(state: TrainingState, validation: Validation | None, settings: LoopSettings) -> str:
    """Say that training stopped early, or that its loss on held-out data has risen for half of the validations."""
    if validation is None or not state.validated:
        return ""
    best, last = _best_index(state, validation), len(state.validated) - 1
    if best < 0:
        return ""
    (at, lowest), (_, found) = state.validated[best], state.validated[last]
    if state.step < settings.num_steps:
        return (
            f"stopped after step {state.step} of {settings.num_steps}: the {validation.name} did not improve in "
            f"{last - best} validations; the weights of step {at} ({lowest:.4f}) are kept"
        )
    is_long = last - best >= max(MIN_RISES, (last + 1) / 2)
    if settings.patience is None and validation.is_loss and is_long and found > lowest * (1 + RISE):
        return (
            f"the {validation.name} was lowest at step {at} ({lowest:.4f}) and is {found:.4f} at the end, so the "
            "network overfits; train fewer steps, or set training.patience to keep the best weights"
        )
    return ""


def _log_text(state: TrainingState) -> str:
    """Format the losses as JSON lines, without times, so that equal runs have equal logs."""
    lines: list[dict[str, float]] = [
        {"step": i, "loss": loss, "learning_rate": rate} for i, (loss, rate) in enumerate(state.log, start=1)
    ]
    lines += [{"step": step, "held_out_loss": loss} for step, loss in state.validated]
    return "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["step"]))


class _Stepper(Generic[BatchT]):
    """Takes optimiser steps, and reads losses at once on a CPU or a few at a time from an accelerator."""

    def __init__(
        self,
        state: TrainingState,
        batches: Prefetch[BatchT],
        loss_of: Callable[[BatchT], Tensor],
        settings: LoopSettings,
        team: Team,
        share: Share,
    ) -> None:
        self._state, self._batches, self._loss_of, self._settings = state, batches, loss_of, settings
        self._team, self._share = team, share
        self._read_every = 1 if state.device.type == "cpu" else settings.read_loss_every
        self._unread: list[tuple[Tensor, float]] = []

    def step(self, *, stage: str, validation: Validation | None) -> Step:
        """Take one step.

        Raises:
            StageError: a loss is not finite, or another process of the team has ended.
        """
        began = time.perf_counter()
        state, settings, share = self._state, self._settings, self._share
        weights = list(state.parameters.values())
        rate = learning_rate_at(state.step, settings.schedules)
        state.optimizer.set_learning_rate(rate)
        total = torch.zeros((), device=state.device)
        for micro in range(share.first, settings.gradient_accumulation_steps, share.every):
            batch = self._batches.take(state.step * settings.gradient_accumulation_steps + micro)
            loss = self._loss_of(batch) / settings.gradient_accumulation_steps
            loss.backward()
            total += loss.detach()
        self._team.add_up_gradients(weights)
        total = self._team.add_up(total)
        nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        state.optimizer.step()
        if state.average is not None and settings.ema_decay is not None:
            update = get_ema_multi_avg_fn(average_decay_at(state.step, settings.ema_decay))
            update(state.average, [weight.detach() for weight in weights], 0)
        state.step += 1
        self._unread.append((total, rate))
        if not state.log or _is_due(state.step, self._read_every, settings.num_steps):
            self.read_losses()
        shown = state.log[-1][0] if state.log else math.nan
        return Step(
            done=state.step,
            total=settings.num_steps,
            loss=shown,
            learning_rate=rate,
            seconds=time.perf_counter() - began,
            note=", ".join([f"loss {shown:.4f}", *_validated_note(state, validation)]),
            stage=stage,
        )

    def read_losses(self) -> None:
        """Move unread losses to the log.

        Raises:
            StageError: one is not finite.
        """
        if not self._unread:
            return
        values: list[float] = torch.stack([loss for loss, _ in self._unread]).tolist()
        for value, (_, rate) in zip(values, self._unread, strict=True):
            if not math.isfinite(value):
                number = len(self._state.log) + 1
                raise StageError(
                    f"training step {number}: the loss is {value}; lower training.learning_rate, or set "
                    "mixed_precision to no"
                )
            self._state.log.append((value, rate))
        self._unread.clear()


def _validated_note(state: TrainingState, validation: Validation | None) -> list[str]:
    if validation is None or not state.validated:
        return []
    if validation.keeps_best:
        return [] if state.best_value is None else [f"best {validation.name} {state.best_value:.4f}"]
    return [f"{validation.name} {state.validated[-1][1]:.4f}"]


def _validate(state: TrainingState, validation: Validation, *, total: int, stage: str) -> Validated:
    """Measure the weights, record the value, and remember the weights if they are the best so far."""
    weights = list(state.parameters.values())
    with contextlib.nullcontext() if state.average is None else averaged(weights, state.average):
        value = validation.measure(state.step)
        state.validated.append((state.step, value))
        counts = validation.keeps_best and state.step > validation.best_after
        if counts and _is_best(value, state.best_value, is_loss=validation.is_loss):
            state.best_value = value
            state.best = {name: tensor.detach().cpu().clone() for name, tensor in state.weights().items()}
    note = f"{validation.name} {value:.4f}"
    return Validated(done=state.step, total=total, value=value, note=note, stage=stage)


def _is_best(value: float, best: float | None, *, is_loss: bool) -> bool:
    if is_loss:
        return value < (math.inf if best is None else best)
    return value >= (-math.inf if best is None else best)


@torch.no_grad()
def _leave_kept_weights(state: TrainingState) -> None:
    """Put the best weights in place if they were remembered, else the average if there is one."""
    if state.best is not None:
        for name, tensor in state.weights().items():
            tensor.copy_(state.best[name])
    elif state.average is not None:
        for weight, mean in zip(state.parameters.values(), state.average, strict=True):
            weight.copy_(mean)


@contextlib.contextmanager
@torch.no_grad()
def averaged(weights: Sequence[Tensor], average: Sequence[Tensor]) -> Generator[None]:
    """Put the averaged weights in place meanwhile; restore the trained ones afterwards, bit for bit."""
    kept = [weight.detach().clone() for weight in weights]
    for weight, mean in zip(weights, average, strict=True):
        weight.copy_(mean)
    try:
        yield
    finally:
        for weight, trained in zip(weights, kept, strict=True):
            weight.copy_(trained)
