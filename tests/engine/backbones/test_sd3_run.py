"""Stable Diffusion 3 through the code of the other families: a run up to the finished pipeline, LoRA and a resume."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.condition.config import ConditionConfig
from defectory.condition.learn import learn_condition
from defectory.condition.load import load_network
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.verify import verify
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.known import Known
from defectory.engine.sampling.models import for_sampling
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images, sample_noise
from defectory.engine.training.config import TrainingConfig
from defectory.errors import ConfigError
from defectory.events import Notice, finish
from defectory.procedural.borescope import write_dataset
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.stages.parts.estimate.estimate import NOT_RECKONED, estimate

PROMPT = "an image of a sks with a crack"
SIZE_HW = (24, 40)
TRAINING = {"num_steps": 2, "batch_size": 2, "variants_per_image": 1, "warmup_steps": 0}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd3")
    write_dataset(folder / "source", seed=0, num_labelled=10, num_defect_free=4, size_hw=(40, 64))
    return folder


@pytest.fixture(scope="module")
def notices() -> list[str]:
    return []


@pytest.fixture(scope="module")
def project(
    source: Path,
    notices: list[str],
    tiny_sd3_folder: Path,
    open_tiny: Callable[..., Run],
    family_settings: Callable[..., dict[str, Any]],
    family_stages: tuple[str, ...],
) -> Run:
    """A run up to its finished pipeline; do not write into it."""
    run = open_tiny(source, family_settings(tiny_sd3_folder))
    notices.extend(event.text for event in run_all(run, only=family_stages) if isinstance(event, Notice))
    return run


def test_a_run_trains_all_networks_curates_drafts_and_says_experimental_once(
    project: Run, notices: list[str], tiny_sd3_folder: Path
) -> None:
    adapted, start = load_base(project.folder / layout.CONCEPT / "base"), load_base(tiny_sd3_folder)
    for part, network in start.networks.items():
        moved = adapted.networks[part].state_dict()
        assert any(not torch.equal(weight, moved[name]) for name, weight in network.state_dict().items()), part
    assert len(project.store().decisions.decisions) == 3
    assert sum("Stable Diffusion 3 are experimental" in text for text in notices) == 1


@pytest.mark.long
def test_the_finished_pipeline_draws_the_same_picture_in_plain_diffusers(project: Run) -> None:
    from diffusers import StableDiffusion3ControlNetPipeline

    folder = project.folder / layout.PIPELINE
    plain: Any = StableDiffusion3ControlNetPipeline.from_pretrained(
        folder, local_files_only=True, text_encoder_3=None, tokenizer_3=None
    )
    plain.set_progress_bar_config(disable=True)
    backbone = load_base(project.folder / layout.CONCEPT / "base")
    network = load_network(project.folder / layout.CONTROL, backbone)
    # after two steps the network adds next to nothing; let both add more
    for blocks in (plain.controlnet.controlnet_blocks, network.module.controlnet_blocks):
        for number, parameter in enumerate(blocks.parameters()):
            values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.data = 0.3 * values
    driver = np.random.default_rng(0).integers(0, 256, (*SIZE_HW, 3), dtype=np.uint8)
    models = for_sampling(backbone, network)

    def drawn(text: float, control: float) -> np.ndarray:
        return sample_images(
            models,
            Conditions(prompts=[PROMPT], drivers=[driver]),
            seeds=[5],
            sampler=Sampler(scheduler="base", num_inference_steps=3),
            guidance=Guidance(text=text, control=control),
        )[0]

    for text, control in ((1.0, 0.7), (3.0, 1.0)):
        expected = plain(
            PROMPT,
            control_image=torch.from_numpy(driver).permute(2, 0, 1)[None].float() / 127.5 - 1,
            controlnet_conditioning_scale=control,
            guidance_scale=text,
            num_inference_steps=3,
            latents=sample_noise([5], (4, 6, 10)),
            output_type="np",
        ).images[0]
        found = drawn(text, control)
        assert found.shape == (*SIZE_HW, 3)
        assert np.abs(found.astype(float) - 255 * expected).max() <= 1.5
    assert np.abs(drawn(1.0, 0.7).astype(int) - drawn(1.0, 0.0)).max() > 2
    assert verify(folder).family == "Stable Diffusion 3"


def test_known_pictures_stay_outside_their_regions(tiny_sd3_folder: Path) -> None:
    backbone = load_base(tiny_sd3_folder)
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    region = np.zeros((32, 32), dtype=bool)
    region[:, :16] = True
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1
        kept = backbone.encode_images(pixels)
    found: list[torch.Tensor] = []
    decode = type(backbone).decode_latents

    def seen(self: Any, latents: torch.Tensor) -> torch.Tensor:
        found.append(latents)
        return decode(self, latents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(backbone), "decode_latents", seen)
        for scheduler in ("base", "dpm-solver"):
            sample_images(
                for_sampling(backbone),
                Conditions(prompts=[PROMPT]),
                seeds=[2],
                sampler=Sampler(scheduler=scheduler, num_inference_steps=3),
                known=Known(images=[image], regions=[region]),
            )
    for latents in found:
        torch.testing.assert_close(latents[:1, :, :, 4:], kept[:, :, :, 4:], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(latents[:1, :, :, :4], kept[:, :, :, :4], atol=0.1)


def test_what_the_family_does_not_support_is_refused_before_the_first_stage(
    source: Path,
    tiny_sd3_folder: Path,
    open_tiny: Callable[..., Run],
    family_settings: Callable[..., dict[str, Any]],
    family_stages: tuple[str, ...],
    tmp_path: Path,
) -> None:
    data = {"path": str(source / "source" / "annotations.json")}
    for more, said in (
        ({"concept": {"method": "textual_inversion"}}, "concept.method: textual_inversion, which bases of Stable"),
        ({"condition": {"network": "hypernetwork"}}, "condition.network: hypernetwork, which bases"),
        ({"condition": {"capacity": 0.5}}, "condition.capacity: 0.5, which bases"),
        ({"distillation": {"enabled": True}}, "distillation.enabled: true, which bases"),
        ({"synthesis": {"scheduler": "ddpm"}}, "synthesis.scheduler: ddpm, which bases"),
        ({"tiling": {"mode": "tile", "tile_px": 72}}, "tiling.tile_px: 72, but this base draws 64 at most"),
    ):
        run = open_tiny(tmp_path, {**family_settings(tiny_sd3_folder), "data": data, **more})
        with pytest.raises(ConfigError, match=said):
            next(iter(run_all(run, only=family_stages)))


def test_time_and_memory_are_not_reckoned(
    source: Path,
    tiny_sd3_folder: Path,
    open_tiny: Callable[..., Run],
    family_settings: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    data = {"path": str(source / "source" / "annotations.json")}
    run = open_tiny(tmp_path, family_settings(tiny_sd3_folder, data=data))
    stages = stages_of(run.config)
    found = estimate(run, stages, stages, {}, device="cpu", speed=None)
    assert {"learn-concept", "learn-condition", "synthesize"} <= set(found.unknown[NOT_RECKONED])


def phases(base: Path, tiles: list[Any], out: Path, cache: Path) -> list[tuple[Path, Callable[[], Any]]]:
    training = TrainingConfig(**TRAINING, checkpoint_every=1, mixed_precision="no")
    lora = ConceptConfig(
        method="lora", lora_learning_rate=0.05, num_class_images=2, prior_inference_steps=2, training=training
    )
    first, second = out / "concept", out / "control"

    def make_driver(image: np.ndarray, *_: Any) -> np.ndarray:
        return image

    return [
        (first, lambda: learn_concept(tiles, base=base, config=lora, seed=1, out=first, cache=cache)),
        (
            second,
            lambda: learn_condition(
                tiles,
                concept=first,
                config=ConditionConfig(training=training),
                make_driver=make_driver,
                seed=1,
                out=second,
                cache=cache,
                driver_digest="image",
                load_backbone=lambda folder, device: load_concept(folder, device, find_base=lambda: base),
            ),
        ),
    ]


def test_phases_that_were_left_end_with_the_same_bits_and_load_in_plain_diffusers(
    tiny_sd3_folder: Path, training_tiles: Callable[..., list[Any]], tmp_path: Path
) -> None:
    from diffusers import StableDiffusion3Pipeline

    tiles, cache = training_tiles(3), tmp_path / "cache"
    whole = [finish(work()) for _, work in phases(tiny_sd3_folder, tiles, tmp_path / "whole", cache)]
    resumed: list[Any] = []
    for folder, work in phases(tiny_sd3_folder, tiles, tmp_path / "left", cache):
        events = work()
        for event in events:
            if getattr(event, "note", "").startswith("loss") and getattr(event, "done", 0) == 1:
                break
        events.close()
        assert (folder / "checkpoint").is_dir()
        resumed.append(finish(work()))
    assert resumed == whole

    lora = tmp_path / "whole" / "concept" / "lora"
    assert [path.name for path in lora.glob("*.safetensors")] == ["pytorch_lora_weights.safetensors"]
    ours = load_concept(tmp_path / "whole" / "concept", find_base=lambda: tiny_sd3_folder)
    plain: Any = StableDiffusion3Pipeline.from_pretrained(
        tiny_sd3_folder, local_files_only=True, text_encoder_3=None, tokenizer_3=None
    )
    latents, times = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(0)), torch.tensor([500.0])
    with torch.no_grad():
        before, _, pooled_before, _ = plain.encode_prompt(PROMPT, None, None, device="cpu")
        plain.load_lora_weights(lora)
        tokens, _, pooled, _ = plain.encode_prompt(PROMPT, None, None, device="cpu")
        context = ours.encode_prompts([PROMPT])
        expected = plain.transformer(latents, timestep=times, encoder_hidden_states=tokens, pooled_projections=pooled)
        found = ours.predict(latents, times, context)
    assert not torch.allclose(before, tokens, atol=1e-3)
    torch.testing.assert_close(context.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(context.pooled, pooled, rtol=1e-5, atol=1e-5)
    assert pooled_before.shape == pooled.shape
    torch.testing.assert_close(found, expected.sample, rtol=1e-4, atol=1e-5)
