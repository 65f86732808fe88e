"""Configuration shared by both training phases."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from defectory.artifacts.config import Section

OptimizerKind = Literal["adamw", "muon"]


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
