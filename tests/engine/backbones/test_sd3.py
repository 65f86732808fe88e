"""Stable Diffusion 3: its folders are checked, and it encodes, predicts and decodes as in plain diffusers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.condition.networks import CONDITION_NETWORKS
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.new_tokens import start_tokens
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.engine.sampling.schedulers import make_scheduler, set_timesteps
from defectory.errors import ConfigError, DefectoryError, WeightsError

Change = Callable[[Path], Any]
PROMPTS = ["an image of a crack", "a sks"]


def edit(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


def test_facts_are_read_from_its_files(tiny_sd3_folder: Path, tiny_sd3_t5_folder: Path) -> None:
    facts = verify(tiny_sd3_folder)
    assert (facts.family, facts.prediction_type, facts.is_experimental) == ("Stable Diffusion 3", "flow", True)
    assert (facts.tile_px, facts.latent_factor, facts.size_multiple_px, facts.most_px) == (32, 4, 8, 64)
    assert verify(tiny_sd3_t5_folder) == facts


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: shutil.rmtree(folder / "text_encoder_3"), "the part text_encoder_3/ is missing"),
        (lambda folder: (folder / "tokenizer_3" / "tokenizer.json").unlink(), "has none of tokenizer.json"),
        (edit("text_encoder_3/config.json", d_model=64), "its T5 is 64 wide"),
        (edit("text_encoder_2/config.json", projection_dim=8), "takes a pooled text of 24, and gets 16"),
        (edit("text_encoder_2/config.json", hidden_size=32), "its CLIP encoders are 40 wide"),
        (edit("transformer/config.json", in_channels=9), "takes 9 channels, latents have 4"),
        (edit("transformer/config.json", num_layers=1), "has one layer"),
        (edit("transformer/config.json", num_attention_heads=4), "is 32 wide and makes texts 16 wide"),
        (edit("vae/config.json", shift_factor=None), "names no shift_factor"),
        (edit("scheduler/scheduler_config.json", use_dynamic_shifting=True), "use_dynamic_shifting is not supported"),
        (edit("model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]), "is a FluxTransformer2DModel"),
        (edit("model_index.json", _class_name="StableDiffusion3InpaintPipeline"), "for another task"),
    ],
)
def test_what_is_wrong_with_a_base_is_one_line(
    tiny_sd3_t5_folder: Path, tmp_path: Path, change: Change, said: str
) -> None:
    copy = Path(shutil.copytree(tiny_sd3_t5_folder, tmp_path / "copy"))
    change(copy)
    with pytest.raises(WeightsError, match=said) as caught:
        verify_layout(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("with_t5", [False, True])
def test_prompts_and_prediction_are_as_in_plain_diffusers(
    with_t5: bool, tiny_sd3_folder: Path, tiny_sd3_t5_folder: Path
) -> None:
    from diffusers import StableDiffusion3Pipeline

    folder = tiny_sd3_t5_folder if with_t5 else tiny_sd3_folder
    ours: Any = load_base(folder)
    # plain diffusers asks for it where a base has no T5
    without = {} if with_t5 else {"text_encoder_3": None, "tokenizer_3": None}
    theirs: Any = StableDiffusion3Pipeline.from_pretrained(folder, local_files_only=True, **without)
    assert (ours.text_encoder_3 is not None) == with_t5
    with torch.no_grad():
        tokens, empty, pooled, _ = theirs.encode_prompt(PROMPTS, None, None, device="cpu")
        context = ours.encode_prompts(PROMPTS)
        torch.testing.assert_close(context.tokens, tokens)
        torch.testing.assert_close(context.pooled, pooled)
        torch.testing.assert_close(ours.encode_prompts([""]).tokens, empty[:1])
        assert bool(tokens[:, 16:].any()) == with_t5
        latents, times = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(3)), torch.tensor([5.5, 900])
        expected = theirs.transformer(
            latents, timestep=times, encoder_hidden_states=tokens, pooled_projections=pooled
        ).sample
        torch.testing.assert_close(ours.predict(latents, times, context), expected)
        bias = ours.transformer.proj_out.bias + 1
        changed = ours.predict(latents, times, context, weights={"proj_out.bias": bias})
        torch.testing.assert_close(changed, expected + 1, atol=1e-5, rtol=1e-5)
        pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(3)) * 2 - 1
        encoded = ours.encode_images(pixels)
        torch.testing.assert_close(encoded, (ours.vae.encode(pixels).latent_dist.mean - 0.0609) * 1.5305)
        torch.testing.assert_close(ours.decode_latents(encoded), ours.vae.decode(encoded / 1.5305 + 0.0609).sample)


def test_a_control_network_starts_as_a_copy_that_changes_nothing(tiny_sd3_folder: Path, tmp_path: Path) -> None:
    ours: Any = load_base(tiny_sd3_folder)
    before = dict(ours.transformer.config)
    network = CONDITION_NETWORKS.get("controlnet").start(ours, init="copy", seed=1)
    assert dict(ours.transformer.config) == before
    block, copied = ours.transformer.transformer_blocks[0], network.module.transformer_blocks[0]
    assert len(network.module.transformer_blocks) == 1
    assert all(torch.equal(copied.state_dict()[name], value) for name, value in block.state_dict().items())
    latents, times = torch.randn(1, 4, 6, 10), torch.tensor([300.0])
    context, drivers = ours.encode_prompts(PROMPTS[:1]), torch.rand(1, 3, 24, 40)
    with torch.no_grad():
        plain = ours.predict(latents, times, context)
        assert torch.equal(network.predict(ours, latents, times, context, drivers), plain)
        for parameter in network.module.controlnet_blocks.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        steered = network.predict(ours, latents, times, context, drivers)
        assert not torch.allclose(steered, plain, atol=1e-3)
        network.save(tmp_path / "controlnet")
        loaded = type(network).load(tmp_path / "controlnet", ours)
        again = loaded.predict(ours, latents, times, context, drivers)
        torch.testing.assert_close(again, steered, atol=1e-5, rtol=1e-5)
    edit("controlnet/config.json", force_zeros_for_pooled_projection=True)(tmp_path)
    with pytest.raises(WeightsError, match="force_zeros_for_pooled_projection is True, False was expected"):
        type(network).load(tmp_path / "controlnet", ours)


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (lambda base: CONDITION_NETWORKS.get("adapter").start(base, init="auto", seed=0), "adapter, but this base has"),
        (lambda base: CONDITION_NETWORKS.get("hypernetwork").start(base, init="auto", seed=0), "this base has no UNet"),
        (
            lambda base: CONDITION_NETWORKS.get("controlnet").start(base, init="auto", seed=0, capacity=0.5),
            "condition.capacity: 0.5, but this base has no UNet to narrow",
        ),
        (
            lambda base: CONDITION_NETWORKS.get("controlnet").start(base, init="embedded", seed=0),
            "no control network lies beside this base",
        ),
        (
            lambda base: start_tokens(base, "<v>", num_vectors=1, initializer="sks"),
            "trains a new word, which pipelines",
        ),
        (lambda base: make_scheduler(base, "ddpm"), "ddpm has no form for flow matching"),
    ],
)
def test_what_the_family_does_not_have_is_one_line(
    start: Callable[[Any], Any], said: str, tiny_sd3_folder: Path
) -> None:
    with pytest.raises((ConfigError, WeightsError), match=said) as caught:
        start(load_base(tiny_sd3_folder))
    assert isinstance(caught.value, DefectoryError)
    assert "\n" not in str(caught.value)


def test_schedulers_end_on_the_image_along_a_straight_path(tiny_sd3_folder: Path) -> None:
    base = load_base(tiny_sd3_folder)
    clean, noise = torch.randn(2, 4, 6, 10), torch.randn(2, 4, 6, 10)
    for name in ("base", "euler", "ddim", "dpm-solver"):
        scheduler = make_scheduler(base, name)
        set_timesteps(scheduler, 6, "cpu")
        x = noise * scheduler.init_noise_sigma
        for timestep in scheduler.timesteps:
            x = scheduler.step(noise - clean, timestep, scheduler.scale_model_input(x, timestep)).prev_sample
        torch.testing.assert_close(x, clean, atol=0.02, rtol=0, msg=name)
