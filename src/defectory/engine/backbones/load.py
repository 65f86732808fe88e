"""Loads a base of any family."""

from __future__ import annotations

from pathlib import Path

import torch

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.registry import family_of


def load_base(folder: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Backbone:
    """Check a base folder, and load it from disk.

    Args:
        folder: of a base of a registered family, or a finished pipeline.
        device: where the models go.
        dtype: of all weights, whatever the files hold.

    Raises:
        WeightsError: the folder is incomplete, holds pickles, or its weights do not fit its configuration.
    """
    return family_of(folder).load(folder, device, dtype)
