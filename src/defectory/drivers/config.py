"""Configuration of drivers."""

from __future__ import annotations

from pydantic import Field, model_validator

from defectory.artifacts.config import Section


class DriverConfig(Section):
    """The constants of the seven steps (paper, section 3.2; those it does not state are ours)."""

    kind: str = "topology"
    """`topology` (the paper's), `edges`, `soft-edges`, `superpixels`, `silhouette`, `grey`, a kind that an installed
    package registers, or `package.module:function`. `image` is the image itself, undimmed, for synthesis.mode inpaint.
    """
    drawings: str | None = None
    """Folder of drawings (CAD renders, sketches), named as the images and of their size: geometry comes from them
    instead of from the images, which train, pool and validation all need one of. They show no defect, and are not
    filled.
    """
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

    @property
    def fills(self) -> bool:
        """Tell whether labelled defects are filled before extraction."""
        return self.defect_blind and self.drawings is None

    @model_validator(mode="after")
    def _drawings_are_no_images(self) -> DriverConfig:
        if self.drawings is not None and self.kind == "image":
            raise ValueError(
                "kind `image` is the image itself, and drawings are named too: choose another kind, or leave "
                "drawings out"
            )
        return self
