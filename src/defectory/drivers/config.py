"""Configuration of drivers."""

from __future__ import annotations

from pydantic import Field, model_validator

from defectory.artifacts.config import Section


class DriverConfig(Section):
    """The constants of the seven steps (paper, section 3.2); values that the paper does not state are ours."""

    kind: str = "topology"
    """`topology` (the paper's), `edges`, `soft-edges`, `superpixels`, `silhouette`, `grey`, a kind registered by an
    installed package, or `package.module:function`. `image` is the image itself, not dimmed, for synthesis.mode
    inpaint.
    """
    drawings: str | None = None
    """Folder of drawings (CAD renders, sketches) with the names and sizes of the images. Geometry then comes from the
    drawings; every image of train, pool and validation needs one. Drawings show no defects, so nothing is filled.
    """
    grid_px: int = Field(default=64, ge=4)
    """Step 1: longer side of the low-resolution image."""
    threshold_block_px: int = Field(default=13, ge=3)
    """Step 3: side of the adaptive threshold's window, in grid pixels; odd."""
    threshold_constant: float = 6.0
    """Step 3: how far below the local mean (grey levels) a pixel counts as dark."""
    edge_low: float = Field(default=60.0, gt=0)
    """Edges: lower hysteresis threshold (sum of a Sobel kernel, grey levels)."""
    edge_high: float = Field(default=120.0, gt=0)
    """Edges: upper hysteresis threshold. Soft edges: gradient that is drawn at full brightness."""
    soft_sigma_px: float = Field(default=1.0, gt=0)
    """Soft edges: sigma of the blur before the gradient, in grid pixels."""
    superpixel_px: float = Field(default=6.0, ge=2)
    """Superpixels: side of a superpixel, in grid pixels."""
    background_level: int = Field(default=50, ge=1, le=255)
    """Step 5: maximum brightness of the geometry."""
    defect_blind: bool = True
    """Fill the labelled defect from its surroundings before extraction, so that it cannot leak into the geometry."""

    @property
    def fills(self) -> bool:
        """Return whether labelled defects are filled before extraction."""
        return self.defect_blind and self.drawings is None

    @model_validator(mode="after")
    def _drawings_are_no_images(self) -> DriverConfig:
        if self.drawings is not None and self.kind == "image":
            raise ValueError(
                "kind `image` uses the image itself, but drawings are set too: choose another kind, or leave "
                "drawings out"
            )
        return self
