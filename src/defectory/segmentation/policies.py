"""Defines how training images of segmenters are varied, as data. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from defectory.registry import Registry

AUTO = "auto"
"""In place of a policy's name: validation chooses."""
DEFAULT = "flips"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Ranges from which each training image draws its variation.

    Attributes:
        flip: mirror at both axes, each with a chance of one half.
        contrast: contrast is multiplied by 1 plus or minus up to this.
        brightness: added to all pixels, up to this share of white.
        blur_px: standard deviation of a Gaussian blur, up to this many pixels; half of the images stay sharp.
        noise: standard deviation of added noise, up to this share of white; half of the images get none.
        zoom: images are zoomed in or out by up to this factor.
        quarter_turns: turn by 0, 90, 180 or 270 degrees.
        rotation_degrees: turn by up to this angle to either side.
    """

    flip: bool = True
    contrast: float = 0.0
    brightness: float = 0.0
    blur_px: float = 0.0
    noise: float = 0.0
    zoom: float = 1.0
    quarter_turns: bool = False
    rotation_degrees: float = 0.0


FLIPS = Policy(contrast=0.1, brightness=0.04)
EXPOSURE = Policy(contrast=0.3, brightness=0.12, blur_px=0.8, noise=0.02)
SCALE = Policy(contrast=0.3, brightness=0.12, blur_px=0.8, noise=0.02, zoom=1.35)
TURNS = Policy(
    contrast=0.3, brightness=0.12, blur_px=0.8, noise=0.02, zoom=1.35, quarter_turns=True, rotation_degrees=20
)

POLICIES: Registry[Policy] = Registry(
    "augmentation_policies",
    setting="segmentation.augmentation",
    builtin={
        "flips": "defectory.segmentation.policies:FLIPS",
        "exposure": "defectory.segmentation.policies:EXPOSURE",
        "scale": "defectory.segmentation.policies:SCALE",
        "turns": "defectory.segmentation.policies:TURNS",
    },
)
"""From mild to strong; each holds the variations of those before it."""
