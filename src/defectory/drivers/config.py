"""Configuration of the topological driver."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section


class DriverConfig(Section):
    """The constants of the seven steps (paper, section 3.2; those it does not state are ours)."""

    grid_px: int = Field(default=64, ge=4)
    """Step 1: longer side of the low resolution."""
    threshold_block_px: int = Field(default=13, ge=3)
    """Step 3: odd side of the adaptive threshold's window, in grid pixels."""
    threshold_constant: float = 6.0
    """Step 3: how far under the local mean (grey levels) counts as dark."""
    background_level: int = Field(default=50, ge=1, le=255)
    """Step 5: brightness of the geometry."""
    defect_blind: bool = True
    """Fill the labelled defect from its surroundings before extraction, so that it cannot leak."""
