"""What a base is, for people and for the settings that depend on it. Knows nothing of torch."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class BaseFacts(BaseModel):
    """What a base is: its family, the side of its native tiles in pixels, and what its denoiser predicts."""

    model_config = ConfigDict(frozen=True)

    family: str
    tile_px: int
    latent_factor: int
    """Image pixels per latent pixel and side."""
    prediction_type: str
    text_width: int
