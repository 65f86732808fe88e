"""Writes the finished pipeline for plain diffusers."""

from __future__ import annotations

from pathlib import Path

from defectory.condition.load import load_network
from defectory.engine.backbones.backbone import Backbone
from defectory.files import digest_folder


def finalize_pipeline(backbone: Backbone, control: Path, out: Path) -> str:
    """Write the finished pipeline for plain diffusers, and return its digest.

    Args:
        backbone: that knows the concept.
        control: phase 2's stage folder.
        out: pipeline folder, replaced as a whole.

    Raises:
        WeightsError: a part cannot be used, or diffusers has no pipeline for this network.
        StageError: `out` cannot be written.
    """
    backbone.save_pipeline(out, controlnet=load_network(control, backbone).module)
    return digest_folder(out)
