"""Configuration of the mask bank and its perturbation."""

from __future__ import annotations

from typing import Literal

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
    thickness_share: float = Field(default=0.12, ge=0, lt=1)
    """Largest growth or shrinkage of a defect's width, as a share of it; scaling stretches long defects and leaves their width."""
    placement: Literal["learned", "anywhere"] = "learned"
    """`learned`: at holes and edges of the part as often, by class, as in train."""
    keep_place: bool = False
    """Leave a mask where it was on its source tile instead of placing it anew."""
    min_area_px: int = Field(default=9, ge=1)
