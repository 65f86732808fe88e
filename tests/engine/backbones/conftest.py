"""A random-weight, very tiny base in the layout of Stable Diffusion XL."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

TINY_XL_PX = 32
"""Side of its tiles; its autoencoder has factor 4."""


def make_tiny_sdxl(folder: Path, tokenizer: Any) -> Path:
    """Write the base; its second text encoder is wider than the first, and its UNet reads both."""
    import torch
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def text(width: int, act: str, *, end: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=16,
            projection_dim=24,
            hidden_act=act,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DConditionModel(
            sample_size=TINY_XL_PX // 4,
            block_out_channels=(16, 32),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            use_linear_projection=True,
            cross_attention_dim=16 + 32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=24 + 6 * 8,
            norm_num_groups=8,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8,) * 3,
            layers_per_block=1,
            norm_num_groups=4,
            sample_size=TINY_XL_PX,
            scaling_factor=0.13025,
        )
        first = CLIPTextModel(text(16, "quick_gelu", end=tokenizer.eos_token_id))
        # the published files of the second encoder name 2 as the end of a text, which is not the tokenizer's
        second = CLIPTextModelWithProjection(text(32, "gelu", end=2))
    # the published second tokenizer pads with `!`, the first with the end of a text
    tokenizer_2 = copy.deepcopy(tokenizer)
    tokenizer_2.pad_token = "!"
    pipeline = StableDiffusionXLPipeline(
        vae=vae,
        unet=unet,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """A base of Stable Diffusion XL for tiles of 32 px; do not write into it."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base_folder / "tokenizer")
    return make_tiny_sdxl(tmp_path_factory.mktemp("tiny") / "sdxl", tokenizer)
