"""The training loop of both phases. Knows nothing of images, prompts or drivers.

Batches and noise are functions of (seed, step), held by the caller; weights, averages, moments and step are
in the checkpoint. So a resumed run equals an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from defectory.engine.training.checkpoint import FILE_NAME, TrainingState, restore_checkpoint, save_checkpoint
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.events import Checkpointed, Started, Step, TrainingEvent, Validated
from defectory.engine.training.optimizer import NamedOptimizer
from defectory.errors import StageError
from defectory.files import write_text

BatchT = TypeVar("BatchT")


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Give the learning rate of a step (from 0): linear warm-up, then cosine to `final_lr_share` of the peak."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.num_steps - config.warmup_steps)
    share = config.final_lr_share + (1 - config.final_lr_share) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * share


def average_decay_at(step: int, config: TrainingConfig) -> float:
    """Give the decay of the moving average at a step (from 0): short at first, so that early weights are forgotten."""
    return min(config.ema_decay, (step + 1) / (step + 10))


def train(
    parameters: Mapping[str, nn.Parameter],
    batch_of: Callable[[int], BatchT],
    loss_of: Callable[[BatchT], Tensor],
    *,
    config: TrainingConfig,
    checkpoint: Path,
    recipe: str,
    log: Path,
    held_out_loss: Callable[[], float] | None = None,
) -> Iterator[TrainingEvent]:
    """Train parameters in place and leave their moving average in them.

    Leaving the loop early (closing the generator) writes a checkpoint first; the next call goes on from it.

    Args:
        parameters: what is trained, by name; all on one device.
        batch_of: gives the micro-batch of an index (step * accumulation + micro step), a pure function.
        loss_of: gives a batch's scalar loss.
        config: steps, batch, optimiser.
        checkpoint: folder for the checkpoint; the caller removes it when the outcome is saved.
        recipe: digest of everything the outcome depends on; a checkpoint of another recipe is not used.
        log: file that gets the losses at the end, one JSON object per line.
        held_out_loss: the loss of the present weights on held-out data.

    Yields:
        Started, Step, Validated and Checkpointed.

    Raises:
        StageError: the loss is not finite, or the checkpoint cannot be written.
    """
    weights: list[Tensor] = list(parameters.values())
    device = weights[0].device
    optimizer = NamedOptimizer(
        parameters,
        kind=config.optimizer,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        fused=device.type in ("cpu", "cuda"),
    )
    state = TrainingState(parameters=parameters, average=[w.detach().clone() for w in weights], optimizer=optimizer)
    restored, remark = restore_checkpoint(checkpoint, state, recipe=recipe), ""
    if not restored and (checkpoint / FILE_NAME).is_file():
        remark = f"{checkpoint / FILE_NAME} is damaged, or of other settings; training begins anew"
    saved_at = state.step
    with _Prefetch(batch_of, enabled=device.type != "cpu") as batches:
        try:
            yield Started(num_steps=config.num_steps, resumed_at=state.step, remark=remark)
            while state.step < config.num_steps:
                yield _step(state, weights, batches, loss_of, config)
                if held_out_loss is not None and (
                    state.step % config.validate_every == 0 or state.step == config.num_steps
                ):
                    with averaged(weights, state.average):
                        state.held_out.append((state.step, held_out_loss()))
                    yield Validated(step=state.step, held_out_loss=state.held_out[-1][1])
                if state.step % config.checkpoint_every == 0 or state.step == config.num_steps:
                    save_checkpoint(checkpoint, state, recipe=recipe)
                    saved_at = state.step
                    yield Checkpointed(step=state.step)
        except GeneratorExit:
            # at a yield the state is whole; only then may it be saved
            if state.step > saved_at:
                save_checkpoint(checkpoint, state, recipe=recipe)
            raise
    with torch.no_grad():
        torch._foreach_copy_(weights, state.average)  # pyright: ignore[reportPrivateUsage]
    write_text(log, _log_text(state))


def _log_text(state: TrainingState) -> str:
    """Give the losses as JSON lines; they hold no times, so that equal runs have equal logs."""
    lines: list[dict[str, float]] = [
        {"step": i, "loss": loss, "learning_rate": rate} for i, (loss, rate) in enumerate(state.log, start=1)
    ]
    lines += [{"step": step, "held_out_loss": loss} for step, loss in state.held_out]
    return "".join(json.dumps(line) + "\n" for line in sorted(lines, key=lambda line: line["step"]))


def _step(
    state: TrainingState,
    weights: list[Tensor],
    batches: _Prefetch[BatchT],
    loss_of: Callable[[BatchT], Tensor],
    config: TrainingConfig,
) -> Step:
    began = time.perf_counter()
    rate = learning_rate_at(state.step, config)
    state.optimizer.set_learning_rate(rate)
    total = torch.zeros((), device=weights[0].device)
    for micro in range(config.accumulation):
        loss = loss_of(batches.take(state.step * config.accumulation + micro)) / config.accumulation
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
    state.optimizer.step()
    torch._foreach_lerp_(state.average, [w.detach() for w in weights], 1 - average_decay_at(state.step, config))  # pyright: ignore[reportPrivateUsage]
    value = float(total)
    if not math.isfinite(value):
        raise StageError(
            f"training step {state.step + 1}: the loss is {value}; lower training.learning_rate or use precision fp32"
        )
    state.step += 1
    state.log.append((value, rate))
    return Step(
        step=state.step, num_steps=config.num_steps, loss=value, learning_rate=rate, seconds=time.perf_counter() - began
    )


@contextlib.contextmanager
@torch.no_grad()
def averaged(weights: list[Tensor], average: list[Tensor]) -> Generator[None]:
    """Put the averaged weights in place meanwhile; afterwards the trained ones are back, bit for bit."""
    kept = [weight.detach().clone() for weight in weights]
    torch._foreach_copy_(weights, average)  # pyright: ignore[reportPrivateUsage]
    try:
        yield
    finally:
        torch._foreach_copy_(weights, kept)  # pyright: ignore[reportPrivateUsage]


class _Prefetch(Generic[BatchT]):
    """Makes the next batch in a thread while an accelerator works on the present one."""

    def __init__(self, batch_of: Callable[[int], BatchT], *, enabled: bool) -> None:
        self._batch_of = batch_of
        self._pool = ThreadPoolExecutor(1) if enabled else None
        self._next: tuple[int, Future[BatchT]] | None = None

    def take(self, index: int) -> BatchT:
        if self._pool is None:
            return self._batch_of(index)
        batch = self._next[1].result() if self._next is not None and self._next[0] == index else self._batch_of(index)
        self._next = (index + 1, self._pool.submit(self._batch_of, index + 1))
        return batch

    def __enter__(self) -> _Prefetch[BatchT]:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
