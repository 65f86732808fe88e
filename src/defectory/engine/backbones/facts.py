"""Defines the facts of a base that people and settings depend on. Imports no torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

FLOW = "flow"
"""What a denoiser of flow matching predicts: the direction from image to noise."""


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
    most_px: int | None = None
    """Largest side of a tile in pixels; None if there is no limit."""
    is_experimental: bool = False
    """The family is tested with tiny networks alone, and its time and memory are not reckoned."""
    has_unet: bool = True
    """Whether its denoiser is a UNet of diffusers, which adapters, hypernetworks and narrow control networks need."""
    takes_new_tokens: bool = True
    """Whether its pipelines in diffusers read tokens that Textual Inversion adds."""
