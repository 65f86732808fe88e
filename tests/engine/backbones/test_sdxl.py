"""Stable Diffusion XL: read, checked, taught in both phases, drawn with, and finished for plain diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.condition.config import ConditionConfig
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.learn import learn_condition
from defectory.condition.load import load_network
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.sdxl.model import StableDiffusionXL
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.engine.backbones.workload import base_workload
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.tensors import drivers_to_tensor
from defectory.engine.training.config import TrainingConfig
from defectory.errors import WeightsError
from defectory.events import finish
from defectory.files import digest_folder

TRAINING = TrainingConfig(num_steps=2, batch_size=2, variants_per_image=1, warmup_steps=0)
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
            "UNet is of Stable Diff",
        ),
        (edit("scheduler/scheduler_config.json", prediction_type="sample"), "predicts sample"),
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


def test_both_phases_sampling_and_the_finished_pipeline(
    tiny_sdxl_folder: Path, training_tiles: Callable[..., list[Any]], tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLControlNetPipeline

    tiles = training_tiles(4)
    concept = ConceptConfig(num_class_images=2, prior_inference_steps=2, prior_share=0.5, training=TRAINING)
    finish(learn_concept(tiles, base=tiny_sdxl_folder, config=concept, seed=0, out=tmp_path / "concept"))
    adapted = load_base(tmp_path / "concept" / "base")
    start = load_base(tiny_sdxl_folder)
    for part, network in start.networks.items():
        changed = [
            name
            for name, value in network.state_dict().items()
            if not torch.equal(value, adapted.networks[part].state_dict()[name])
        ]
        assert changed, part
    frozen = digest_folder(tmp_path / "concept" / "base")
    finish(
        learn_condition(
            tiles,
            concept=tmp_path / "concept",
            config=ConditionConfig(training=TRAINING),
            make_driver=lambda image, instances, valid_hw: image,
            seed=0,
            out=tmp_path / "control",
            driver_digest="d",
        )
    )
    assert digest_folder(tmp_path / "concept" / "base") == frozen
    drivers = [np.full((24, 40, 3), level, np.uint8) for level in (0, 200)]
    images = sample_images(
        for_sampling(adapted, load_network(tmp_path / "control", adapted)),
        Conditions(prompts=["an image of a sks"] * 2, drivers=drivers),
        seeds=[1, 1],
        sampler=Sampler(scheduler="base", num_inference_steps=2),
    )
    assert images.shape == (2, 24, 40, 3)
    network, context = load_network(tmp_path / "control", adapted), adapted.encode_prompts(["an image of a sks"] * 2)
    with torch.no_grad():
        steered = network.predict(
            adapted, torch.ones(2, 4, 6, 10), torch.tensor([500, 500]), context, drivers_to_tensor(drivers)
        )
    assert not torch.equal(steered[0], steered[1])

    name, digest = finalize_pipeline(adapted, tmp_path / "control", tmp_path / "pipeline")
    assert (name, digest) == ("StableDiffusionXLControlNetPipeline", digest_folder(tmp_path / "pipeline"))
    plain = StableDiffusionXLControlNetPipeline.from_pretrained(
        tmp_path / "pipeline", local_files_only=True, add_watermarker=False
    )
    plain.set_progress_bar_config(disable=True)
    drawn = plain(
        "an image of a sks",
        image=torch.zeros(1, 3, 24, 40),
        num_inference_steps=2,
        guidance_scale=1.0,
        output_type="np",
    ).images
    assert drawn.shape == (1, 24, 40, 3)
    assert verify(tmp_path / "pipeline").family == "Stable Diffusion XL"
