"""Stable Diffusion XL through the code of the other families: a run up to the finished pipeline, and adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.condition.load import load_network
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.new_tokens import start_tokens
from defectory.engine.backbones.verify import verify
from defectory.engine.training.config import TrainingConfig
from defectory.events import finish
from defectory.procedural.borescope import write_dataset
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages.all import run_all

PROMPT = "an image of a sks with a crack"
SIZE_HW = (24, 40)
TRAINING = {"num_steps": 2, "batch_size": 2, "variants_per_image": 1, "warmup_steps": 0}


@pytest.fixture(scope="module")
def project(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_sdxl_folder: Path,
    open_tiny: Callable[..., Run],
    family_settings: Callable[..., dict[str, Any]],
    family_stages: tuple[str, ...],
) -> Run:
    """A run up to its finished pipeline; do not write into it."""
    folder = tmp_path_factory.mktemp("sdxl")
    write_dataset(folder / "source", seed=0, num_labelled=10, num_defect_free=4, size_hw=(40, 64))
    settings = family_settings(tiny_sdxl_folder, synthesis={"scheduler": "base"})
    run = open_tiny(folder, settings)
    for _ in run_all(run, only=family_stages):
        pass
    return run


def test_a_run_trains_all_networks_and_curates_drafts(project: Run, tiny_sdxl_folder: Path) -> None:
    adapted, start = load_base(project.folder / layout.CONCEPT / "base"), load_base(tiny_sdxl_folder)
    for part, network in start.networks.items():
        moved = adapted.networks[part].state_dict()
        assert any(not torch.equal(weight, moved[name]) for name, weight in network.state_dict().items()), part
    decisions = project.store().decisions.decisions
    assert len(decisions) == 3
    assert any(decision.status == "accepted" for decision in decisions)


def test_the_finished_pipeline_predicts_the_same_in_plain_diffusers(project: Run) -> None:
    from diffusers import StableDiffusionXLControlNetPipeline

    folder = project.folder / layout.PIPELINE
    plain: Any = StableDiffusionXLControlNetPipeline.from_pretrained(
        folder, local_files_only=True, add_watermarker=False
    )
    plain.set_progress_bar_config(disable=True)
    ours = load_base(project.folder / layout.CONCEPT / "base")
    network = load_network(project.folder / layout.CONTROL, ours)
    generator = torch.Generator().manual_seed(0)
    latents, driver = torch.randn(1, 4, 6, 10, generator=generator), torch.rand(1, 3, *SIZE_HW, generator=generator)
    with torch.no_grad():
        found = network.predict(ours, latents, torch.tensor([500]), ours.encode_prompts([PROMPT]), driver, scale=0.7)
        tokens, _, pooled, _ = plain.encode_prompt(PROMPT, device="cpu", do_classifier_free_guidance=False)
        sizes = plain._get_add_time_ids(SIZE_HW, (0, 0), SIZE_HW, torch.float32, text_encoder_projection_dim=24)
        given = {
            "encoder_hidden_states": tokens,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
            "return_dict": False,
        }
        skips, middle = plain.controlnet(latents, 500, controlnet_cond=driver, conditioning_scale=0.7, **given)
        expected = plain.unet(
            latents, 500, down_block_additional_residuals=skips, mid_block_additional_residual=middle, **given
        )[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    drawn = plain(PROMPT, image=driver, num_inference_steps=2, output_type="np").images
    assert drawn.shape == (1, *SIZE_HW, 3)
    assert verify(folder).family == "Stable Diffusion XL"


def concept_config(method: str) -> ConceptConfig:
    training = TrainingConfig(**TRAINING, checkpoint_every=1, mixed_precision="no")
    return ConceptConfig(method=method, prior_loss_weight=0, lora_learning_rate=0.05, num_vectors=2, training=training)


def test_training_that_was_left_ends_with_the_same_files(
    tiny_sdxl_folder: Path, training_tiles: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """The last layers of the text encoders get no gradient, and have no moments in a checkpoint."""

    def work(out: Path) -> Any:
        config = concept_config("dreambooth")
        return learn_concept(
            training_tiles(3), base=tiny_sdxl_folder, config=config, seed=1, out=out, cache=tmp_path / "cache"
        )

    whole = finish(work(tmp_path / "whole"))
    events = work(tmp_path / "left")
    for event in events:
        if getattr(event, "note", "").startswith("loss") and getattr(event, "done", 0) == 1:
            break
    events.close()
    assert (tmp_path / "left" / "checkpoint").is_dir()
    assert finish(work(tmp_path / "left")) == whole


def test_adapters_and_a_new_token_of_both_text_encoders_load_in_plain_diffusers(
    tiny_sdxl_folder: Path, training_tiles: Callable[..., list[Any]], tmp_path: Path
) -> None:
    from diffusers import StableDiffusionXLPipeline

    config, out = concept_config("lora_textual_inversion"), tmp_path / "concept"
    concept = finish(learn_concept(training_tiles(3), base=tiny_sdxl_folder, config=config, seed=1, out=out))
    ours = load_concept(out, find_base=lambda: tiny_sdxl_folder)
    plain: Any = StableDiffusionXLPipeline.from_pretrained(
        tiny_sdxl_folder, local_files_only=True, add_watermarker=False
    )
    plain.load_lora_weights(out / "adapters")
    for file, part in (("learned_embeds", ""), ("learned_embeds_2", "_2")):
        plain.load_textual_inversion(
            out / "adapters" / f"{file}.safetensors",
            text_encoder=getattr(plain, f"text_encoder{part}"),
            tokenizer=getattr(plain, f"tokenizer{part}"),
        )
    prompt = PROMPT.replace("sks", concept.instance_token)
    with torch.no_grad():
        tokens, *_ = plain.encode_prompt(prompt, device="cpu", do_classifier_free_guidance=False)
        before = load_base(tiny_sdxl_folder).encode_prompts([PROMPT])
        found = ours.encode_prompts([prompt])
    torch.testing.assert_close(found.tokens, tokens, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found.tokens, before.tokens, atol=0.01)


def test_a_text_with_a_new_token_is_pooled_at_its_end(tiny_sdxl_folder: Path) -> None:
    """The configuration names another end, so that transformers alone would pool at the new token."""
    assert json.loads((tiny_sdxl_folder / "text_encoder_2" / "config.json").read_text())["eos_token_id"] == 2
    backbone: Any = load_base(tiny_sdxl_folder)
    with torch.no_grad():
        before = backbone.encode_prompts([PROMPT])
        start_tokens(backbone, "<v>", num_vectors=1, initializer="sks")
        again, new = backbone.encode_prompts([PROMPT]), backbone.encode_prompts([PROMPT.replace("sks", "<v>")])
    assert torch.equal(again.pooled, before.pooled)
    torch.testing.assert_close(new.pooled, before.pooled)
