"""A pretraining recipe that takes seconds."""

from __future__ import annotations

from typing import Any

import pytest

from defectory.pretraining.config import PretrainConfig


@pytest.fixture(scope="session")
def tiny_recipe() -> PretrainConfig:
    """32 px tiles, latents 8x8, a few steps per stage."""
    stage: dict[str, Any] = {"num_steps": 6, "batch_size": 4, "warmup_steps": 2, "checkpoint_every": 2}
    return PretrainConfig.model_validate(
        {
            "mixed_precision": "no",
            "tile_px": 32,
            "num_images": 20,
            "num_held_out": 4,
            "num_workers": 1,
            "latent_channels": 4,
            "vae_channels": (8, 8, 16),
            "unet_channels": (16, 16, 32),
            "text_width": 64,
            "text_layers": 1,
            "norm_groups": 4,
            "vae_crop_px": 16,
            "crop_px": 16,
            "check_every": 4,
            "vae": stage,
            "diffusion": {**stage, "optimizer": "muon"},
            "control": stage,
            "encoder": stage,
        }
    )
