"""The registry of segmenter families. Imports no torch, so that configuration can check names."""

from __future__ import annotations

from typing import Any

from defectory.registry import Registry

SEGMENTERS: Registry[Any] = Registry(
    "segmenters",
    setting="segmentation.model",
    builtin={
        "light": "defectory.segmentation.models.light:FAMILY",
        "efficientnet_lite0": "defectory.segmentation.models.efficientnet:FAMILY",
        "mask2former": "defectory.segmentation.models.mask2former:FAMILY",
        "resnet50": "defectory.segmentation.models.resnet50:FAMILY",
        "resnet50_v2": "defectory.segmentation.models.resnet50:FAMILY_V2",
        "unet": "defectory.segmentation.models.unet:FAMILY",
    },
)
"""Each is a `defectory.segmentation.models.family.SegmenterFamily`."""
DEFAULT = "unet"
"""Finds pixels, so it also serves where labels are too thin for the masks of the others."""
TAKES_PRETRAINING = ("efficientnet_lite0", "unet")
"""Families whose `segmentation.weights` is the folder of a pretraining."""
