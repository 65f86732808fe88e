"""Stable Diffusion XL: its folders are checked, and it encodes, predicts and decodes as in plain diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.sdxl.model import StableDiffusionXL
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.engine.backbones.workload import base_workload
from defectory.errors import WeightsError

Change = Callable[[Path], Any]


def edit(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def test_facts_of_sdxl_are_read_from_its_files(tiny_sdxl_folder: Path) -> None:
    facts = verify(tiny_sdxl_folder)
    assert (facts.family, facts.tile_px, facts.latent_factor, facts.size_multiple_px) == (
        "Stable Diffusion XL",
        32,
        4,
        8,
    )
    assert (facts.prediction_type, facts.text_width) == ("epsilon", 48)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "text_encoder_2"), "the part text_encoder_2/ is missing"),
        (lambda folder: shutil.rmtree(folder / "tokenizer_2"), "the part tokenizer_2/ is missing"),
        (edit("model_index.json", requires_aesthetics_score=True), "the refiner of Stable Diffusion XL"),
        (edit("model_index.json", text_encoder=[None, None]), "the refiner of Stable Diffusion XL"),
        (edit("unet/config.json", addition_embed_type=None), "takes nothing besides text"),
        (edit("unet/config.json", cross_attention_dim=64), "the text encoders are 16 and 32 wide"),
        (
            edit("text_encoder_2/config.json", projection_dim=32),
            "its UNet takes 72 values of text and sizes, and gets 80",
        ),
        (
            edit("model_index.json", _class_name="StableDiffusionPipeline", text_encoder_2=None),
            "does not name a library and a class for text_encoder_2",
        ),
        (edit("scheduler/scheduler_config.json", prediction_type="sample"), "predicts sample"),
        (edit("vae/config.json", latents_mean=[0.0] * 4), "its autoencoder shifts latents"),
        (edit("model_index.json", text_encoder_2=["transformers", "CLIPTextModel"]), "its text_encoder_2 is a CLIPT"),
        (edit("unet/config.json", in_channels=9), "is Stable Diffusion for inpainting"),
        (edit("model_index.json", _class_name="StableDiffusionXLInpaintPipeline"), "Stable Diffusion XL for inpaint"),
    ],
)
def test_what_is_wrong_with_a_base_of_sdxl_is_one_line(
    tiny_sdxl_folder: Path, tmp_path: Path, change: Change, said: str
) -> None:
    copy = Path(shutil.copytree(tiny_sdxl_folder, tmp_path / "copy"))
    change(copy)
    with pytest.raises(WeightsError, match=said) as caught:
        verify_layout(copy)
    assert "\n" not in str(caught.value)


def test_prompts_and_prediction_are_as_in_plain_diffusers(tiny_sdxl_folder: Path) -> None:
    from diffusers import StableDiffusionXLPipeline

    ours = load_base(tiny_sdxl_folder)
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_folder, local_files_only=True, add_watermarker=False)
    prompts = ["an image of a crack", "a sks"]
    with torch.no_grad():
        tokens, empty, pooled, empty_pooled = theirs.encode_prompt(prompts, device="cpu")
        context, nothing = ours.encode_prompts(prompts), ours.encode_prompts(["", "a sks"])
    torch.testing.assert_close(context.tokens, tokens)
    torch.testing.assert_close(context.pooled, pooled)
    assert nothing.pooled is not None
    assert torch.equal(nothing.tokens[0], empty[0])
    assert torch.equal(nothing.pooled[0], empty_pooled[0])
    torch.testing.assert_close(nothing.tokens[1], tokens[1])

    latents, timesteps = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(3)), torch.tensor([5, 900])
    sizes = theirs._get_add_time_ids((24, 40), (0, 0), (24, 40), torch.float32, text_encoder_projection_dim=24)
    with torch.no_grad():
        expected = theirs.unet(
            latents,
            timesteps,
            encoder_hidden_states=tokens,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes.repeat(2, 1)},
        ).sample
        torch.testing.assert_close(ours.predict(latents, timesteps, context), expected)


def test_vae_scales_latents_as_its_settings_say(tiny_sdxl_folder: Path) -> None:
    base = load_base(tiny_sdxl_folder)
    assert isinstance(base, StableDiffusionXL)
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        latents = base.encode_images(pixels)
        torch.testing.assert_close(latents, base.vae.encode(pixels).latent_dist.mean * 0.13025)  # type: ignore[union-attr]
        torch.testing.assert_close(base.decode_latents(latents), base.vae.decode(latents / 0.13025).sample)  # type: ignore[union-attr]


def test_work_of_both_text_encoders_is_counted(tiny_sdxl_folder: Path) -> None:
    base = load_base(tiny_sdxl_folder)
    found = base_workload(tiny_sdxl_folder, 32)
    encoders = (base.networks["text_encoder"], base.networks["text_encoder_2"])
    assert found.text_encoder.num_parameters == sum(p.numel() for one in encoders for p in one.parameters())
    assert found.denoiser.num_parameters == sum(p.numel() for p in base.denoiser.parameters())
