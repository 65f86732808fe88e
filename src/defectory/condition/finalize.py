"""Writes the finished pipeline for plain diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defectory.condition.load import load_network
from defectory.engine.backbones.backbone import Backbone
from defectory.files import digest_folder


def finalize_pipeline(backbone: Backbone, control: Path, out: Path) -> tuple[str, str]:
    """Write the finished pipeline for plain diffusers, and return the name of its class there and its digest.

    Args:
        backbone: that knows the concept.
        control: phase 2's stage folder.
        out: pipeline folder, replaced as a whole.

    Raises:
        PipelineError: diffusers has no pipeline for this network.
        WeightsError: a part cannot be used.
        StageError: `out` cannot be written.
    """
    network: Any = load_network(control, backbone)
    if hasattr(network, "save_beside"):
        pipeline = backbone.save_pipeline(out, controlnet=None)
        network.save_beside(out / network.folder)
        return pipeline, digest_folder(out)
    module = network.plain_module() if hasattr(network, "plain_module") else network.module
    pipeline = backbone.save_pipeline(out, controlnet=module)
    return pipeline, digest_folder(out)
