"""Each method, followed by phase 2: the finished pipeline draws in plain diffusers what our own sampler draws."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.learn import learn_concept
from defectory.concept.load import load_concept
from defectory.condition.config import ConditionConfig
from defectory.condition.finalize import finalize_pipeline
from defectory.condition.learn import learn_condition
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.training.config import TrainingConfig
from defectory.events import finish

TRAINING = TrainingConfig(num_steps=2, batch_size=2, variants_per_image=1, warmup_steps=0, mixed_precision="no")
METHODS = ("lora", "textual_inversion", "lora_textual_inversion")


def no_driver(image: np.ndarray, instances: Any, valid_hw: Any) -> np.ndarray:
    return np.zeros((*image.shape[:2], 3), np.uint8)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_and_a_control_network_become_a_plain_pipeline(
    tiny_base_folder: Path, training_tiles: Callable[..., list[Any]], tmp_path: Path, method: str
) -> None:
    from diffusers import StableDiffusionControlNetPipeline

    out = tmp_path / "concept"
    config = ConceptConfig(
        method=method, prior_loss_weight=0, lora_learning_rate=0.05, num_vectors=2, training=TRAINING
    )
    finish(learn_concept(training_tiles(3), base=tiny_base_folder, config=config, seed=1, out=out))

    def backbone(folder: Path = out, device: Any = "cpu") -> Any:
        return load_concept(folder, device, find_base=lambda: tiny_base_folder)

    finish(
        learn_condition(
            training_tiles(3),
            concept=out,
            config=ConditionConfig(training=TRAINING),
            make_driver=no_driver,
            seed=1,
            out=tmp_path / "control",
            driver_digest="d",
            load_backbone=backbone,
        )
    )
    finalize_pipeline(backbone(), tmp_path / "control", tmp_path / "pipeline")
    plain: Any = StableDiffusionControlNetPipeline.from_pretrained(tmp_path / "pipeline", local_files_only=True)
    prompt = condition_prompt(Concept.load(out / "concept.json").instance_token, ["crack"])
    embedded = partial(plain.encode_prompt, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    with torch.no_grad():
        context = backbone().encode_prompts([prompt])
        torch.testing.assert_close(embedded(prompt)[0], context.tokens, rtol=1e-5, atol=1e-6)
        latents = torch.randn(1, 4, 8, 12, generator=torch.Generator().manual_seed(0))
        time = torch.tensor([500])
        ours = backbone().predict(latents, time, context)
        theirs = plain.unet(latents, time, encoder_hidden_states=embedded(prompt)[0]).sample
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6)
        driver = torch.zeros(1, 3, 32, 48)
        image = plain(prompt, image=driver, num_inference_steps=1, guidance_scale=1.0, output_type="np").images[0]
    assert image.shape == (32, 48, 3)
