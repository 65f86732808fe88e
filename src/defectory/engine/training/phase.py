"""Runs a training phase: batches of tiles, denoising loss, held-out batches and progress.

A phase defines which parameters train, what a batch holds, how the network predicts and how errors make up the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.precision import hold_frozen_in_bf16, uses_bf16
from defectory.engine.training.attention import save_memory, use_plain_attention
from defectory.engine.training.cache import TileVariants
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import BatchPlan, TrainingTile, check_tiles
from defectory.engine.training.events import Started, Step, Validated
from defectory.engine.training.held_out import held_out_indices
from defectory.engine.training.loop import train
from defectory.engine.training.loss import Batch, Counterparts, Denoised, denoise, denoising_errors, errors_of
from defectory.engine.training.noise import NoiseSchedule
from defectory.engine.training.share import WHOLE, Share, share_of
from defectory.engine.training.team import ALONE, Team
from defectory.events import Notice, Progress, Work

BatchT = TypeVar("BatchT")
PromptOf = Callable[[TileVariants, int], str]
"""Maps a tile and a variant to the prompt."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Everything that distinguishes one phase from another.

    Attributes:
        parameters: trainable parameters by name.
        batch_of: maps an index to a batch, a pure function.
        predict: maps a batch, noisy latents [B,C,h,w] and timesteps [B] to the prediction [B,C,h,w].
        total: maps the errors of a batch's members, float [B], to the loss; a weighted sum, so that it can be added up
            from parts.
        schedule: of the base.
        held_out: batches of the held-out loss; empty without held-out tiles.
        training: steps, batch, optimiser, loss weights.
        rate_shares: learning rates of parameters by name, as shares of the learning rate; 1 where none is given.
        further: maps a batch that has counterparts, and its predictions, to a loss that is added, a mean over its
            members; None adds none.
    """

    parameters: Mapping[str, nn.Parameter]
    batch_of: Callable[[int], Batch]
    predict: Callable[[Batch, Tensor, Tensor], Tensor]
    total: Callable[[Tensor], Tensor]
    schedule: NoiseSchedule
    held_out: Sequence[Batch]
    training: TrainingConfig
    rate_shares: Mapping[str, float] = field(default_factory=dict[str, float])
    further: Callable[[Batch, Denoised], Tensor] | None = None


def run_phase(phase: Phase, *, out: Path, recipe: str, team: Team = ALONE) -> Work[None]:
    """Train a phase's parameters in place, leave their moving average in them, and write `log.jsonl`.

    Leaving early writes a checkpoint first, from which the next call resumes.

    Args:
        phase: what to train.
        out: stage folder; its `checkpoint` stays until the caller has saved the result.
        recipe: digest of everything that the result depends on; a checkpoint of another recipe is not used.
        team: the processes that train together; each computes its share of every batch.

    Raises:
        StageError: the loss is not finite, `out` cannot be written, or another process of the team has ended.
    """
    training = phase.training
    share = share_of(team.rank, training.gradient_accumulation_steps, training.batch_size, team.num_processes)

    def loss_of(batch: Batch) -> Tensor:
        part = batch if share.every_member == 1 else batch.part(share.members)
        denoised = denoise(part, partial(phase.predict, part), phase.schedule, training)
        errors = errors_of(denoised, part, phase.schedule, training)
        if share.every_member > 1:
            # members of other processes count as 0 here, so that the losses of all processes add up to the batch's
            every = errors.new_zeros(len(batch.timesteps))
            every[share.members] = errors
            errors = every
        loss = phase.total(errors)
        if phase.further is None or batch.without is None:
            return loss
        return loss + phase.further(part, denoised) * (len(part.timesteps) / len(batch.timesteps))

    @torch.no_grad()
    def held_out_loss() -> float:
        errors = [
            denoising_errors(batch, partial(phase.predict, batch), phase.schedule, training, weighted=False)
            for batch in phase.held_out[team.rank :: team.num_processes]
        ]
        if team.num_processes == 1:
            return float(torch.cat(errors).mean())
        found = torch.cat([*errors, torch.zeros(0, device=phase.schedule.alpha_bar.device)])
        total, count = team.add_up(torch.stack([found.sum(), found.new_tensor(float(len(found)))])).tolist()
        return total / count

    yield from run_training(
        phase.parameters,
        phase.batch_of,
        loss_of,
        training=phase.training,
        out=out,
        recipe=recipe,
        held_out_loss=held_out_loss if phase.held_out else None,
        rate_shares=phase.rate_shares,
        team=team,
        share=share,
    )


def run_training(
    parameters: Mapping[str, nn.Parameter],
    batch_of: Callable[[int], BatchT],
    loss_of: Callable[[BatchT], Tensor],
    *,
    training: TrainingConfig,
    out: Path,
    recipe: str,
    held_out_loss: Callable[[], float] | None,
    rate_shares: Mapping[str, float] | None = None,
    team: Team = ALONE,
    share: Share = WHOLE,
) -> Work[None]:
    """Train parameters in place with any loss, leave their moving average in them, and write `log.jsonl`.

    Leaving early writes a checkpoint first, from which the next call resumes.

    Args:
        parameters: what is trained, by name.
        batch_of: maps an index to a batch, a pure function.
        loss_of: returns a batch's scalar loss.
        training: steps, batch, optimiser.
        out: stage folder; its `checkpoint` stays until the caller has saved the result.
        recipe: digest of everything that the result depends on; a checkpoint of another recipe is not used.
        held_out_loss: returns the loss on held-out tiles; None without such tiles.
        rate_shares: learning rates of parameters by name, as shares of the learning rate; 1 where none is given.
        team: the processes that train together.
        share: of each step, that this process computes.

    Raises:
        StageError: the loss is not finite, `out` cannot be written, or another process of the team has ended.
    """
    if training.patience is not None and held_out_loss is None:
        yield Notice(text="training.patience has no effect, since there are no held-out tiles")
    events: Any = train(
        parameters,
        batch_of,
        loss_of,
        config=training,
        checkpoint=out / "checkpoint",
        recipe=recipe,
        log=out / "log.jsonl",
        held_out_loss=held_out_loss,
        rate_shares=rate_shares,
        team=team,
        share=share,
    )
    with closing(events):
        yield from _progress(events)


def _progress(events: Any) -> Work[None]:
    """Convert the loop's events to progress, with the last loss and the last held-out loss as the note."""
    loss, held_out, done, total = "", "", 0, 0
    for event in events:
        if isinstance(event, Notice):
            yield event
            continue
        if isinstance(event, Started):
            if event.resumed_at:
                yield Progress(done=event.resumed_at, total=event.num_steps, note="resumed from a checkpoint")
            continue
        if isinstance(event, Step):
            done, total, loss = event.step, event.num_steps, f"loss {event.loss:.4f}"
        elif isinstance(event, Validated):
            held_out = f", held-out loss {event.held_out_loss:.4f}"
        else:
            continue
        yield Progress(done=done, total=total, note=loss + held_out)


def check_phase_tiles(
    tiles: Sequence[TrainingTile], held_out: Sequence[TrainingTile], backbone: Backbone
) -> list[TrainingTile]:
    """Check that all tiles have one supported size, and return the held-out tiles that are used.

    Raises:
        InputError: there is no tile, or tiles do not fit.
    """
    chosen = [held_out[index] for index in held_out_indices(len(held_out))]
    check_tiles([*tiles, *chosen], multiple_px=backbone.size_multiple_px)
    return chosen


def make_ready(*networks: nn.Module, training: TrainingConfig, latents: Tensor) -> None:
    """Prepare networks for training, in place: with less memory if that is set, else with fast attention.

    Args:
        networks: all networks that gradients pass through; used only under the phase's precision from now on.
        training: of the phase.
        latents: float [...,h,w] of one tile.
    """
    device = next(networks[0].parameters()).device
    if uses_bf16(training.mixed_precision, device):
        hold_frozen_in_bf16(*networks)
    if training.gradient_checkpointing:
        save_memory(*networks)
        return
    use_plain_attention(*networks, num_tokens=latents.shape[-2] * latents.shape[-1], device=device)


@dataclass(frozen=True, kw_only=True)
class Members:
    """Tiles of a batch: latents float32 [B,C,h,w], prompts, defects bool [B,1,h,w], drivers uint8 [B,H,W,3] or None,
    and the same tiles without defects if they were asked for.
    """

    latents: Tensor
    prompts: list[str]
    defect: Tensor
    drivers: Tensor | None
    without: Counterparts | None = None


@dataclass(frozen=True, kw_only=True)
class MemberSource:
    """Source of the tiles of batches: a plan, the tiles' variants, their prompts with and without defects, and the
    share of empty prompts.
    """

    plan: BatchPlan
    variants: Sequence[TileVariants]
    prompt_of: PromptOf
    proportion_empty_prompts: float
    bare_prompt_of: PromptOf | None = None

    def members(self, index: int, generator: torch.Generator, *, with_counterparts: bool = False) -> Members:
        """Collect the tiles of a batch and drop prompts at random.

        Args:
            index: of the batch.
            generator: decides which prompts are dropped, before any other random number of the batch.
            with_counterparts: add the tiles without their defects; needs variants with empty drivers.
        """
        members = [(self.variants[tile], variant) for tile, variant in self.plan.batch(index)]
        dropped = torch.rand(len(members), generator=generator) < self.proportion_empty_prompts
        driven = bool(members[0][0].drivers)

        def prompts(prompt_of: PromptOf) -> list[str]:
            return [
                "" if drop else prompt_of(tile, variant)
                for drop, (tile, variant) in zip(dropped.tolist(), members, strict=True)
            ]

        without = None
        if with_counterparts:
            assert self.bare_prompt_of is not None, "counterparts need prompts"
            without = Counterparts(
                prompts=prompts(self.bare_prompt_of),
                drivers=torch.stack([tile.empty_driver(variant) for tile, variant in members]),
            )
        return Members(
            latents=torch.stack([tile.latents[variant] for tile, variant in members]).float(),
            prompts=prompts(self.prompt_of),
            defect=torch.stack([tile.defect[variant] for tile, variant in members]),
            drivers=torch.stack([tile.driver(variant) for tile, variant in members]) if driven else None,
            without=without,
        )
