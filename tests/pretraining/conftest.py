"""A pretraining recipe that takes seconds, and what it makes, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import geometry_map
from defectory.pretraining.config import PretrainConfig
from defectory.pretraining.run import pretrain


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


@pytest.fixture(scope="session")
def geometry_of() -> Callable[[Any, Any], Any]:
    """Coarse geometry on a grid of 8 px."""
    return lambda image, mask: geometry_map(image, config=DriverConfig(grid_px=8), blind=[mask])


@pytest.fixture(scope="session")
def start(geometry_of: Callable[[Any, Any], Any]) -> Callable[[PretrainConfig, Path], Any]:
    """Pretrain into `work/`, `base/` and `encoder/` of a folder."""
    return lambda recipe, out: pretrain(
        recipe, work=out / "work", base_out=out / "base", encoder_out=out / "encoder", geometry_of=geometry_of
    )


@pytest.fixture(scope="session")
def made(
    start: Callable[[PretrainConfig, Path], Any], tiny_recipe: PretrainConfig, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Any]]:
    """Folder of a finished pretraining and its events; do not write into it."""
    out = tmp_path_factory.mktemp("pretrained")
    return out, list(start(tiny_recipe, out))
