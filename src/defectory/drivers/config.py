"""Configuration of drivers."""

from __future__ import annotations

from pydantic import Field

from defectory.artifacts.config import Section


class DriverConfig(Section):
    """The constants of the seven steps (paper, section 3.2; those it does not state are ours)."""

    kind: str = "topology"
    """`topology` (the paper's), `edges`, `soft-edges`, `superpixels`, `silhouette`, a kind that an installed package registers, or
    `package.module:function`. `image` is the image itself, undimmed, for synthesis.mode inpaint."""
    grid_px: int = Field(default=64, ge=4)
    """Step 1: longer side of the low resolution."""
    threshold_block_px: int = Field(default=13, ge=3)
    """Step 3: odd side of the adaptive threshold's window, in grid pixels."""
    threshold_constant: float = 6.0
    """Step 3: how far under the local mean (grey levels) counts as dark."""
    edge_low: float = Field(default=60.0, gt=0)
    """Edges: the hysteresis threshold at which a found edge ends (sum of a Sobel kernel, grey levels)."""
    edge_high: float = Field(default=120.0, gt=0)
    """Edges: the threshold at which one begins; soft edges: what is drawn at full brightness."""
    soft_sigma_px: float = Field(default=1.0, gt=0)
    """Soft edges: blur before the gradient, grid pixels."""
    superpixel_px: float = Field(default=6.0, ge=2)
    """Superpixels: side of one, grid pixels."""
    background_level: int = Field(default=50, ge=1, le=255)
    """Step 5: brightness of the geometry where it is brightest."""
    defect_blind: bool = True
    """Fill the labelled defect from its surroundings before extraction, so that it cannot leak."""
