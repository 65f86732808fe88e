"""The networks of a run, as drafts are drawn with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from defectory.runs.store import ConceptFolder, ControlFolder


def sampling_models(concept: ConceptFolder, control: ControlFolder, device: str) -> Any:
    """Load the adapted base and the control network for sampling."""
    from defectory.engine.backbones.load import load_base, load_controlnet
    from defectory.engine.sampling.denoise import for_sampling

    network = load_controlnet(control.network, device)
    return for_sampling(replace(load_base(concept.base, device), controlnet=network))
