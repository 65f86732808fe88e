"""Configuration of the mask bank and its perturbation."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section


class MaskConfig(Section):
    """How training masks are perturbed before they are placed."""

    rotate_degrees: float = Field(default=180.0, ge=0)
    scale_range: tuple[float, float] = (0.8, 1.25)
    shear: float = Field(default=0.1, ge=0)
    flip: bool = True
    elastic_px: float = Field(default=2.0, ge=0)
    """RMS displacement of the elastic perturbation, tile pixels."""
    thickness_px: float = Field(default=0.75, ge=0)
    """Largest growth or shrinkage of the outline, tile pixels."""
    keep_place: bool = False
    """Leave a mask where it was on its source tile instead of placing it anew."""
    min_area_px: int = Field(default=9, ge=1)
