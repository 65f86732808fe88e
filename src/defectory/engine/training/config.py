"""Configuration of the training loop, and of both training phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section
from defectory.engine.training.schedule import Schedule

OptimizerKind = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """What the training loop needs to know, whichever configuration it comes from.

    Attributes:
        schedules: of the learning rate, one after the other; together they cover all steps.
        accumulation: micro-batches per step.
        optimizer: `adamw`, or `muon` for the matrices inside the networks and AdamW for the rest.
        betas: of AdamW.
        fused: use AdamW's fused step on a CPU and under CUDA; else torch chooses.
        weight_decay: decoupled (taken times the learning rate).
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the moving average of the weights; None keeps no average.
        checkpoint_every: steps between two checkpoints; the last step always writes one.
        validate_every: steps between two validations; the last step is always validated.
        read_loss_every: steps between two losses read from an accelerator, which has to finish its work for it.
    """

    schedules: tuple[Schedule, ...]
    accumulation: int = 1
    optimizer: OptimizerKind = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    fused: bool = True
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float | None = 0.99
    checkpoint_every: int = 200
    validate_every: int = 200
    read_loss_every: int = 1

    @property
    def num_steps(self) -> int:
        """Return the number of optimiser steps."""
        return sum(schedule.num_steps for schedule in self.schedules)


class TrainingConfig(Section):
    """One training phase."""

    num_steps: int = Field(default=400, ge=1)
    batch_size: int = Field(default=16, ge=1)
    accumulation: int = Field(default=1, ge=1)
    optimizer: OptimizerKind = "adamw"
    """`adamw`, or `muon` for the matrices inside the networks and AdamW for the rest; Muon wants about four times
    AdamW's learning rate.
    """
    learning_rate: float = Field(default=3e-4, gt=0)
    warmup_steps: int = Field(default=20, ge=0)
    final_lr_share: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end, cosine-decayed, as a share of `learning_rate`."""
    weight_decay: float = Field(default=1e-2, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    min_snr_gamma: float | None = 5.0
    """Min-SNR weighting (Hang et al. 2023); None turns it off."""
    min_snr_floor: float = Field(default=0.25, ge=0)
    """Least weight of a timestep under v-prediction; min-SNR alone gives pure noise no weight, where tones are learned.
    """
    defect_weight: float = Field(default=1.0, ge=1)
    """Loss weight of latent pixels under and next to a defect mask; 1 is the paper's plain loss."""
    defect_margin: int = Field(default=2, ge=0)
    """Latent pixels around a mask that count as next to it: weighed under masks alone, a network learns to draw defects
    too wide.
    """
    variants_per_image: int = Field(default=8, ge=1)
    """Cached augmented variants per tile (image, masks and driver transformed together)."""
    flip: bool = True
    """Mirror (and turn by quarters, where tiles are square) among the augmented variants."""
    prompt_dropout: float = Field(default=0.1, ge=0, le=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(default=200, ge=1)
    validate_every: int = Field(default=200, ge=1)

    def loop(self) -> LoopSettings:
        """Return what the training loop needs of these settings."""
        schedule = Schedule(
            num_steps=self.num_steps,
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            final_share=self.final_lr_share,
        )
        return LoopSettings(
            schedules=(schedule,),
            accumulation=self.accumulation,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
        )
