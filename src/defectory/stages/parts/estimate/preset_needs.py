"""Reckons the GPU memory of the presets, from the sizes of Stable Diffusion 1.5; its weights need not be here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from defectory.config.presets import GPU_PRESETS, PRESETS
from defectory.config.project import ProjectConfig
from defectory.engine.backbones.workload import BaseWorkload, workload_of_shapes
from defectory.stages.parts.estimate.facts import DataFacts
from defectory.stages.parts.estimate.situation import Situation
from defectory.stages.parts.estimate.work import STAGES_WITH_BASE, work_of_name

CUDA_BYTES = 0.7e9
"""What torch and CUDA take of a GPU besides tensors: context, kernels and workspaces."""
UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768}
VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}
TEXT: dict[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
}
"""What differs from the defaults of diffusers and transformers in Stable Diffusion 1.5."""
NO_DATA = DataFacts(
    is_read=False,
    num_images=100,
    image_bytes=0,
    megapixels=100.0,
    num_defective=50,
    num_free=50,
    num_val_tiles=8,
    num_val=8,
    num_test=20,
    num_masks=50,
)
"""Memory does not depend on the number of images."""


@dataclass(frozen=True, kw_only=True)
class PresetNeed:
    """What a preset takes of a GPU.

    Attributes:
        preset: its name.
        card_gib: memory of the GPU that it is for, GiB.
        needed_bytes: most that a stage takes, reckoned.
        stage: that takes it.
    """

    preset: str
    card_gib: int
    needed_bytes: float
    stage: str


def preset_needs() -> list[PresetNeed]:
    """Return what each GPU preset takes, from small to large. Takes some seconds the first time."""
    base, needs = stable_diffusion_15(), list[PresetNeed]()
    for name, card_gib in GPU_PRESETS.items():
        config = ProjectConfig.model_validate({"data": {"path": "."}, **PRESETS[name]})
        of = Situation(config=config, data=NO_DATA, base=base, copied_bytes=0, tile_px=512, on_cpu=False)
        works = {stage: work_of_name(stage, of) for stage in STAGES_WITH_BASE}
        taken = {stage: work.device_bytes for stage, work in works.items() if work is not None}
        most = max(taken, key=lambda stage: taken[stage])
        needs.append(PresetNeed(preset=name, card_gib=card_gib, needed_bytes=taken[most] + CUDA_BYTES, stage=most))
    return needs


@cache
def stable_diffusion_15(tile_px: int = 512) -> BaseWorkload:
    """Count what one tile costs in Stable Diffusion 1.5, from networks without weights."""
    import torch
    from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**UNET)
        control: Any = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
        vae: Any = AutoencoderKL(**VAE)
        text: Any = CLIPTextModel(CLIPTextConfig(**TEXT))
    return workload_of_shapes(
        {part: _shapes(network) for part, network in (("unet", unet), ("vae", vae), ("text_encoder", text))},
        control=_shapes(control),
        unet=dict(unet.config),
        vae=dict(vae.config),
        num_tokens=TEXT["max_position_embeddings"],
        tile_px=tile_px,
    )


def _shapes(network: Any) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in network.state_dict().items()}
