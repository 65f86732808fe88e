"""Random-weight, very tiny bases in the layouts of Stable Diffusion XL and 3."""

from __future__ import annotations

import copy
from collections.abc import Callable
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


def tiny_t5_tokenizer() -> Any:
    """A T5 tokenizer that spells letter by letter."""
    from transformers import T5TokenizerFast

    letters = [(letter, -2.0) for letter in "\u2581abcdefghijklmnopqrstuvwxyz"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0)]
    return T5TokenizerFast(vocab=[*special, *letters], extra_ids=0)


def make_tiny_sd3(folder: Path, tokenizer: Any, *, with_t5: bool) -> Path:
    """Write a base of Stable Diffusion 3 for tiles of 32 px; its autoencoder has factor 4 and hardly any noise."""
    import torch
    from diffusers import (
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    def text(width: int, act: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=16,
                projection_dim=width,
                hidden_act=act,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    words = tiny_t5_tokenizer() if with_t5 else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = SD3Transformer2DModel(
            sample_size=TINY_XL_PX // 4,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=24,
            pos_embed_max_size=8,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(8,) * 3,
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=TINY_XL_PX,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        # plain diffusers draws the driver's latents from the posterior, ours are its mean: let both be the same
        torch.nn.init.zeros_(vae.encoder.conv_out.weight[4:].detach())
        vae.encoder.conv_out.bias.detach()[4:] = -30.0
        first, second = text(8, "quick_gelu"), text(16, "gelu")
        t5 = None
        if words is not None:
            t5 = T5EncoderModel(T5Config(vocab_size=len(words), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2))
    tokenizer_2 = copy.deepcopy(tokenizer)
    tokenizer_2.pad_token = "!"
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=first,
        tokenizer=tokenizer,
        text_encoder_2=second,
        tokenizer_2=tokenizer_2,
        text_encoder_3=t5,
        tokenizer_3=words,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="session")
def tiny_sd3_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """A base of Stable Diffusion 3 without T5; do not write into it."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base_folder / "tokenizer")
    return make_tiny_sd3(tmp_path_factory.mktemp("tiny") / "sd3", tokenizer, with_t5=False)


@pytest.fixture(scope="session")
def tiny_sd3_t5_folder(tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path) -> Path:
    """The same with T5; do not write into it."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tiny_base_folder / "tokenizer")
    return make_tiny_sd3(tmp_path_factory.mktemp("tiny") / "sd3-t5", tokenizer, with_t5=True)


FAMILY_TRAINING = {"num_steps": 2, "batch_size": 2, "variants_per_image": 1, "warmup_steps": 0}
FAMILY_STAGES = (
    *("import", "split", "tiles", "learn-concept", "learn-condition"),
    *("plan", "calibrate", "synthesize", "curate", "finalize"),
)


@pytest.fixture(scope="session")
def family_stages() -> tuple[str, ...]:
    """Stages up to the finished pipeline."""
    return FAMILY_STAGES


@pytest.fixture(scope="session")
def family_settings() -> Callable[..., dict[str, Any]]:
    """Settings of the shortest run up to the finished pipeline on a base, with changed sections."""

    def settings(base: Path, *, synthesis: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        return {
            "name": "tiny",
            "out": "run",
            "base": str(base),
            "device": "cpu",
            "threads": 1,
            "data": {"path": "source/annotations.json"},
            "split": {"val_share": 0.2, "test_share": 0.2},
            "tiling": {"mode": "frame"},
            "masks": {"min_area_px": 2},
            "concept": {
                "num_class_images": 2,
                "prior_inference_steps": 2,
                "prior_share": 0.5,
                "training": FAMILY_TRAINING,
            },
            "condition": {"training": FAMILY_TRAINING},
            "synthesis": {"num_images": 3, "num_inference_steps": 2, "calibration_drafts": 2, **(synthesis or {})},
            # a random base draws nothing
            "curation": {"checks": [], "min_fidelity": 0.0, "max_stray_share": 1e6},
            **more,
        }

    return settings
