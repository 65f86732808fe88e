"""A family of backbones of somebody else's is recognised, checked and loaded; ours stay what they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.facts import BaseFacts
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.registry import BACKBONES, family_of
from defectory.engine.backbones.sd1.family import FAMILY
from defectory.engine.backbones.sd1.model import StableDiffusion, load_stable_diffusion
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.errors import WeightsError


class Flux:
    """Recognises its own pipeline; loads, for the test, the tiny base that lies in it."""

    def recognises(self, folder: Path, index: Mapping[str, Any]) -> bool:
        return index["_class_name"] == "FluxPipeline"

    def verify(self, folder: Path, *, weights: bool) -> BaseFacts:
        kind = "whole" if weights else "layout"
        return BaseFacts(
            family=f"Flux, {kind}",
            tile_px=64,
            latent_factor=8,
            size_multiple_px=16,
            prediction_type="flow",
            text_width=8,
        )

    def load(self, folder: Path, device: torch.device | str, dtype: torch.dtype) -> Backbone:
        return load_stable_diffusion(folder / "inside", device, dtype)


def test_a_family_from_outside_is_recognised_by_its_index(tiny_base_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    (tmp_path / "inside").symlink_to(tiny_base_folder)
    with pytest.raises(WeightsError, match="is FLUX, a flow-matching transformer"):
        verify(tmp_path)
    with BACKBONES.registered("flux", Flux()):
        assert family_of(tiny_base_folder) is FAMILY
        assert verify(tmp_path).family == "Flux, whole"
        assert verify_layout(tmp_path).family == "Flux, layout"
        assert load_base(tmp_path).tile_px == 32


def test_changed_weights_serve_for_one_prediction_alone(tiny_base_folder: Path) -> None:
    models = load_base(tiny_base_folder)
    assert isinstance(models, StableDiffusion)
    x, timesteps = torch.randn(2, 4, 6, 10), torch.tensor([5, 900])
    context = models.encode_prompts(["a crack", "a break"])
    with torch.no_grad():
        plain = models.predict(x, timesteps, context)
        shift = torch.arange(4.0)
        bias = models.unet.conv_out.bias + shift  # type: ignore[operator]
        changed = models.predict(x, timesteps, context, weights={"conv_out.bias": bias})
        torch.testing.assert_close(changed, plain + shift.view(1, 4, 1, 1), atol=1e-5, rtol=1e-5)
        assert torch.equal(models.predict(x, timesteps, context), plain)
