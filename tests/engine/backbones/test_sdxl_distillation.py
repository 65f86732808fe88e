"""A student of Stable Diffusion XL, and the work of the stage that trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from defectory.condition.networks.controlnet import ControlNet
from defectory.distillation.config import DistillationConfig
from defectory.distillation.learn import distill
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.lora import DIFFUSERS_NAME, merge_lora
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.engine.sampling.schedulers import make_student_scheduler
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import TrainingTile
from defectory.events import finish


def test_a_student_of_xl_trains_and_draws_in_few_steps(tiny_sdxl_folder: Path, tmp_path: Path) -> None:
    mask = np.zeros((24, 40), bool)
    mask[8:14, 10:20] = True
    tiles = [
        TrainingTile(
            id=str(index),
            image=np.random.default_rng(index).integers(0, 255, (24, 40, 3)).astype(np.uint8),
            instances=((1, mask),),
            class_names=("crack",),
            valid_hw=(24, 40),
        )
        for index in range(2)
    ]
    training = TrainingConfig(num_steps=2, batch_size=2, variants_per_image=1, warmup_steps=0, learning_rate=1e-2)
    config = DistillationConfig(
        num_inference_steps=2, teacher_inference_steps=4, lora_rank=2, method="consistency", training=training
    )
    backbone = load_base(tiny_sdxl_folder)
    network = ControlNet.start(backbone, init="copy", seed=0)
    work = distill(
        tiles,
        models=SamplingModels(backbone=backbone, network=network),
        guidance=Guidance(text=2.0, driver=1.5, class_prompt="a surface"),
        config=config,
        make_driver=lambda image, instances, *_: image // (5 if instances else 6),
        prompt_of=lambda names, _tone: "an image of a sks" + " with a crack" * bool(names),
        seed=1,
        out=tmp_path,
        named={"drivers": "d"},
    )
    finish(work)
    student = load_base(tiny_sdxl_folder)
    merge_lora({"unet": student.denoiser}, tmp_path / "lora" / DIFFUSERS_NAME)
    scheduler = make_student_scheduler(student, "consistency", teacher_inference_steps=4)

    def drawn(batch: list[int]) -> np.ndarray:
        return sample_images(
            SamplingModels(backbone=student.with_scheduler(scheduler), network=ControlNet(network.module)),
            Conditions(prompts=["an image of a sks"] * len(batch), drivers=[tiles[0].image // 5] * len(batch)),
            seeds=batch,
            sampler=Sampler(scheduler="base", num_inference_steps=2),
        )

    held: Any = network.module
    held.float()
    alone, together = drawn([3]), drawn([2, 3])
    assert alone.shape == (1, 24, 40, 3)
    # the noise that LCM adds in each step is the sample's own
    assert np.array_equal(alone[0], together[1])
    assert not np.array_equal(together[0], together[1])
