"""Defines the facts of a base that people and settings depend on. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class BaseFacts(BaseModel):
    """Facts of a base: its family, the side of its native tiles in pixels, and what its denoiser predicts."""

    model_config = ConfigDict(frozen=True)

    family: str
    tile_px: int
    latent_factor: int
    """Image pixels per latent pixel and side."""
    size_multiple_px: int
    """Number that tile sides must be divisible by, pixels."""
    prediction_type: str
    text_width: int
