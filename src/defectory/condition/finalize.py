"""Writes the finished pipeline for plain diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel

from defectory.condition.load import load_network
from defectory.engine.backbones.backbone import Backbone, Steering
from defectory.engine.backbones.save import save_model
from defectory.files import digest_folder

FURTHER = "controlnet_{}"
"""Folders of further control networks in a pipeline's, numbered from 1, as diffusers' `MultiControlNetModel` reads
them.
"""


def finalize_pipeline(
    backbone: Backbone, control: Path, out: Path, *, further: Sequence[Steering] = ()
) -> tuple[str, str]:
    """Write the finished pipeline for plain diffusers, and return the name of its class there and its digest.

    Args:
        backbone: that knows the concept.
        control: phase 2's stage folder.
        out: pipeline folder, replaced as a whole.
        further: networks that act beside the run's own. They are written where all are control networks, which
            diffusers joins.

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
    module = _plain_module(network)
    pipeline = backbone.save_pipeline(out, controlnet=module)
    plain: list[Any] = [_plain_module(one) for one in further]
    if all(isinstance(one, ControlNetModel) for one in (module, *plain)):
        for number, one in enumerate(plain, start=1):
            save_model(one.to("cpu", torch.float32), out / FURTHER.format(number))
    return pipeline, digest_folder(out)


def _plain_module(network: Any) -> Any:
    """Return a network as plain diffusers opens it."""
    return network.plain_module() if hasattr(network, "plain_module") else network.module
