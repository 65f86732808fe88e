"""Configuration of the training loop, and of both training phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section
from defectory.engine.config import MixedPrecision
from defectory.engine.training.schedule import Schedule

OptimizerKind = Literal["adamw", "adamw8bit", "muon"]


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    """Settings of the training loop, whichever configuration they come from.

    Attributes:
        schedules: of the learning rate, one after the other; together they cover all steps.
        gradient_accumulation_steps: micro-batches per step.
        optimizer: `adamw`, `adamw8bit` with its moments in 8 bits, or `muon` for the matrices inside the networks and
            AdamW for the rest.
        betas: of AdamW.
        fused: use AdamW's fused step on a CPU and under CUDA; else torch chooses.
        weight_decay: decoupled (taken times the learning rate).
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: of the moving average of the weights; None keeps no average.
        checkpoint_every: steps between two checkpoints; the last step always writes one.
        validate_every: steps between two validations; the last step is always validated.
        patience: validations without a better value after which training stops and the best weights are kept; None
            trains all steps.
        read_loss_every: steps between two reads of the loss from an accelerator; each read waits for it to finish.
    """

    schedules: tuple[Schedule, ...]
    gradient_accumulation_steps: int = 1
    optimizer: OptimizerKind = "adamw"
    betas: tuple[float, float] = (0.9, 0.99)
    fused: bool = True
    weight_decay: float = 1e-2
    max_grad_norm: float = 1.0
    ema_decay: float | None = 0.99
    checkpoint_every: int = 200
    validate_every: int = 200
    patience: int | None = None
    read_loss_every: int = 1

    @property
    def num_steps(self) -> int:
        """Return the number of optimiser steps."""
        return sum(schedule.num_steps for schedule in self.schedules)


class TrainingConfig(Section):
    """Settings of one training phase."""

    num_steps: int = Field(default=400, ge=1)
    """Optimiser steps. More steps fit the data better and take longer."""
    batch_size: int = Field(default=16, ge=1)
    """Tiles per micro-batch. Lower it if memory runs out."""
    gradient_accumulation_steps: int = Field(default=1, ge=1)
    """Micro-batches per optimiser step. Raise it for larger batches at the same memory."""
    optimizer: OptimizerKind = "adamw"
    """`adamw`; `adamw8bit`, whose moments take a quarter of the memory (needs bitsandbytes, else `adamw` is used); or
    `muon` for the matrices inside the networks with AdamW for the rest. Muon needs about four times AdamW's learning
    rate.
    """
    learning_rate: float = Field(default=3e-4, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps in which the learning rate rises to its peak."""
    final_lr_share: float = Field(default=0.1, ge=0, le=1)
    """Learning rate at the end of the cosine decay, as a share of `learning_rate`."""
    weight_decay: float = Field(default=1e-2, ge=0)
    """Decoupled weight decay of the optimiser."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Norm to which gradients are clipped."""
    ema_decay: float | None = Field(default=0.99, ge=0, lt=1)
    """Decay of the moving average of the weights, which is what the phase saves. None keeps no average and saves the
    last weights, which takes less memory.
    """
    min_snr_gamma: float | None = 5.0
    """Gamma of min-SNR loss weighting (Hang et al. 2023); None turns it off. With a base of flow matching any number
    weighs timesteps as logit-normal sampling does (Esser et al. 2024).
    """
    min_snr_floor: float = Field(default=0.25, ge=0)
    """Lowest loss weight of a timestep under v-prediction. Min-SNR alone ignores pure noise, where tones are learned.
    """
    defect_weight: float = Field(default=1.0, ge=1)
    """Loss weight of latent pixels under and next to a defect mask; 1 is the paper's plain loss. Raise it if defects do
    not appear.
    """
    defect_margin: int = Field(default=2, ge=0)
    """Margin around a mask, in latent pixels, that gets `defect_weight` too. With 0 a network draws defects too wide.
    """
    variants_per_image: int = Field(default=8, ge=1)
    """Cached augmented variants per tile; image, masks and driver are transformed together."""
    proportion_empty_prompts: float = Field(default=0.1, ge=0, le=1)
    """Share of prompts replaced by the empty prompt, as classifier-free guidance needs it."""
    mixed_precision: MixedPrecision = "auto"
    """Precision of the training step: `bf16`, `no` for fp32 throughout, or `auto`: `bf16` where the processor has
    instructions for it, which many CPUs have not.
    """
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between two checkpoints."""
    validate_every: int = Field(default=200, ge=1)
    """Steps between two held-out losses."""
    patience: int | None = Field(default=None, ge=1)
    """Held-out losses without improvement after which training stops; the weights of the lowest one are kept. None
    trains all steps and keeps the last weights.
    """

    def loop(self) -> LoopSettings:
        """Convert these settings for the training loop."""
        schedule = Schedule(
            num_steps=self.num_steps,
            peak=self.learning_rate,
            warmup_steps=self.warmup_steps,
            final_share=self.final_lr_share,
        )
        return LoopSettings(
            schedules=(schedule,),
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay,
            checkpoint_every=self.checkpoint_every,
            validate_every=self.validate_every,
            patience=self.patience,
        )
