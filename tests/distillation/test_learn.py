"""A student on a tiny base: what it learns, that it resumes to the same bits, and every condition network."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LCMScheduler
from safetensors.torch import load_file

from defectory.condition.networks import CONDITION_NETWORKS
from defectory.distillation.batches import Tiles, held_out_batches, training_batch
from defectory.distillation.batches import batch_plan as plan_of
from defectory.distillation.config import DistillationConfig
from defectory.distillation.learn import Student, distill, spans_of
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.lora import DIFFUSERS_NAME, add_lora, merge_lora, without_lora
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.sampling.guidance import Alternatives, Guidance, guided_prediction
from defectory.engine.sampling.models import Given, SamplingModels
from defectory.engine.tensors import drivers_to_tensor
from defectory.engine.training.cache import VariantRecipe, prepare_variants
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.noise import NoiseSchedule
from defectory.events import finish
from defectory.files import digest_file

GUIDANCE = Guidance(text=1.5, driver=1.75, class_prompt="a surface")
TRAINING = TrainingConfig(
    num_steps=5, batch_size=3, variants_per_image=2, warmup_steps=0, learning_rate=1e-2, checkpoint_every=2, ema_decay=0
)


def config_of(**settings: Any) -> DistillationConfig:
    training = TRAINING.model_copy(update=settings.pop("training", {}))
    return DistillationConfig.model_validate(
        {
            "num_inference_steps": 2,
            "teacher_inference_steps": 4,
            "lora_rank": 4,
            "training": training.model_dump(),
            **settings,
        }
    )


def painted(image: Any, instances: Any, _valid_hw: Any, _blind: Any = None) -> Any:
    driver = np.zeros_like(image)
    for category_id, mask in instances:
        driver[mask] = 100 * category_id
    return driver


def prompt_of(names: Any, tone: str) -> str:
    return condition_prompt("sks", names, tone=tone)


def models_of(base: Path, network: str = "controlnet") -> SamplingModels:
    backbone = load_base(base)
    kind: Any = CONDITION_NETWORKS.get(network)
    steering = kind.start(backbone, init="auto", seed=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for weight in steering.module.parameters():
            if not weight.abs().any():
                torch.nn.init.normal_(weight, std=0.05)
    return SamplingModels(backbone=backbone, network=steering)


def distilling(tiles: list[Any], out: Path, config: DistillationConfig, models: SamplingModels, **others: Any) -> Any:
    return distill(
        tiles,
        models=models,
        guidance=GUIDANCE,
        config=config,
        make_driver=painted,
        prompt_of=prompt_of,
        seed=3,
        out=out,
        named={"concept": "c", "control": "k", "drivers": "d"},
        **others,
    )


@pytest.fixture(scope="module")
def tiles(request: pytest.FixtureRequest) -> list[Any]:
    from defectory.engine.training.data import TrainingTile

    made: list[Any] = []
    for index in range(6):
        image = np.random.default_rng(index).integers(60, 200, (32, 48, 3)).astype(np.uint8)
        mask = np.zeros((32, 48), bool)
        mask[8 + index : 14 + index, 20:30] = index % 3 != 2
        instances = ((1 + index % 2, mask),) if mask.any() else ()
        names = ("crack",) * len(instances)
        made.append(TrainingTile(id=str(index), image=image, instances=instances, class_names=names, valid_hw=(32, 48)))
    return made


@pytest.fixture(scope="module")
def prepared(tiles: list[Any], tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    recipe = VariantRecipe.of(
        load_base(tiny_base_folder),
        TRAINING,
        flip=True,
        seed=3,
        make_driver=painted,
        driver_digest="d",
        with_empty_drivers=True,
    )
    variants, _ = finish(prepare_variants(tiles, [], recipe, cache=tmp_path_factory.mktemp("cache")))
    return Tiles(variants=variants, prompt_of=prompt_of)


def test_batches_hold_tiles_with_and_without_masks_and_every_span_in_turn(tiles: list[Any], prepared: Tiles) -> None:
    spans = spans_of(config_of(num_inference_steps=4), 1000)
    plan = plan_of(tiles, batch_size=5, num_variants=2, seed=3)
    batches = [training_batch(prepared, plan, spans, seed=3, index=index) for index in range(8)]
    for turn in (batches[:4], batches[4:]):
        assert sorted(batch.span.start for batch in turn) == sorted(span.start for span in spans)
    assert any(batch.drivers[:3].any() for batch in batches)
    for batch in batches:
        assert len(batch.prompts) == len(batch.drivers) == 5
        assert len(batch.prompts_without) == len(batch.drivers_without) == 3
        assert not batch.drivers[3:].any()
        assert not batch.drivers_without.any()
        assert not any("crack" in prompt for prompt in (*batch.prompts[3:], *batch.prompts_without))
    again = training_batch(prepared, plan, spans, seed=3, index=5)
    assert torch.equal(again.noise, batches[5].noise)
    assert again.prompts == batches[5].prompts


def test_held_out_batches_stay_the_same(prepared: Tiles) -> None:
    spans = spans_of(config_of(num_inference_steps=4), 1000)
    first, second = (held_out_batches(prepared, spans, batch_size=4) for _ in range(2))
    assert [batch.span for batch in first] == spans
    assert all(torch.equal(a.noise, b.noise) for a, b in zip(first, second, strict=True))


def student_of(models: SamplingModels, config: DistillationConfig) -> Student:
    assert models.network is not None
    schedule = NoiseSchedule(models.backbone.scheduler, "cpu")
    return Student(models=models, network=models.network, guidance=GUIDANCE, config=config, schedule=schedule)


@pytest.mark.parametrize("method", ["trajectory", "consistency"])
@torch.no_grad()
def test_the_teacher_is_the_guided_pipeline_and_not_its_student(
    tiles: list[Any], prepared: Tiles, tiny_base_folder: Path, method: str
) -> None:
    models = models_of(tiny_base_folder)
    backbone: Any = models.backbone
    added = add_lora(backbone.denoiser, targets=["to_q", "conv1"], rank=2, alpha=2, seed=0, where="test")
    for weight in added.values():
        torch.nn.init.normal_(weight, std=0.3)
    config = config_of(method=method, num_inference_steps=4, training={"mixed_precision": "no"})
    spans = spans_of(config, 1000)
    plan = plan_of(tiles, batch_size=4, num_variants=2, seed=3)
    found = [training_batch(prepared, plan, spans, seed=3, index=index) for index in range(4)]
    batch = next(batch for batch in found if 200 < batch.span.start < 900 and batch.drivers.any())
    target = student_of(models, config).target(batch)

    def context(prompts: Any) -> Any:
        return backbone.encode_prompts(list(prompts))

    def predict(x: Any, timestep: Any, given: Given) -> Any:
        if given.drivers is None:
            return backbone.predict(x, timestep, given.context)
        return models.network.predict(backbone, x, timestep, given.context, given.drivers)  # pyright: ignore[reportOptionalMemberAccess]

    def on_device(drivers: Any) -> Any:
        return drivers_to_tensor(list(drivers.numpy()))

    timestep = torch.tensor(batch.span.start)
    x = backbone.scheduler.add_noise(batch.clean, batch.noise, timestep.expand(4))
    drivers = on_device(batch.drivers)
    with without_lora(backbone.denoiser):
        v = guided_prediction(
            predict,
            x,
            timestep,
            given=Given(context=context(batch.prompts), drivers=drivers),
            others=Alternatives(
                empty=Given(context=context([""] * 4), drivers=drivers),
                without=Given(context=context(batch.prompts_without), drivers=on_device(batch.drivers_without)),
                class_alone=Given(context=context(["a surface"] * 4), drivers=None),
            ),
            guidance=GUIDANCE,
            mask_weight=None,
            num_timesteps=1000,
        )
    a_bar = backbone.scheduler.alphas_cumprod
    a, s = a_bar[batch.span.start].sqrt(), (1 - a_bar[batch.span.start]).sqrt()
    # one step of the teacher in a step of the student: x* is what the teacher predicts
    expected = a * x - s * v
    if method == "consistency":
        end = torch.tensor(batch.span.end)
        a_end, s_end = a_bar[end].sqrt(), (1 - a_bar[end]).sqrt()
        x_end = a_end * expected + s_end * (s * x + a * v)
        own = predict(x_end, end, Given(context=context(batch.prompts), drivers=drivers))
        skip, out = LCMScheduler().get_scalings_for_boundary_condition_discrete(int(end))
        expected = skip * x_end + out * (a_end * x_end - s_end * own)
    torch.testing.assert_close(target, expected, atol=2e-3, rtol=1e-2)
    assert all(weight.requires_grad for weight in added.values())


def test_a_student_comes_closer_to_its_teacher(tiles: list[Any], tiny_base_folder: Path, tmp_path: Path) -> None:
    losses: list[float] = []
    for num_steps, rate in ((1, 1e-9), (16, 1e-2)):
        training = {"num_steps": num_steps, "learning_rate": rate, "batch_size": 2, "mixed_precision": "no"}
        config = config_of(training=training)
        out, models = tmp_path / str(num_steps), models_of(tiny_base_folder)
        *_, last = distilling(tiles, out, config, models, held_out=tiles[:1], cache=tmp_path / "cache")
        losses.append(float(last.note.rpartition("held-out loss ")[2]))
    assert losses[1] < 0.8 * losses[0], losses


@pytest.mark.parametrize("method", ["trajectory", pytest.param("consistency", marks=pytest.mark.long)])
def test_a_training_that_is_left_resumes_to_the_same_bits(
    tiles: list[Any], tiny_base_folder: Path, tmp_path: Path, method: str
) -> None:
    config = config_of(method=method)
    digest = finish(distilling(tiles, tmp_path / "whole", config, models_of(tiny_base_folder)))
    for stop in (2, 4):
        with closing(distilling(tiles, tmp_path / "left", config, models_of(tiny_base_folder))) as work:
            for event in work:
                if event.total == 5 and event.done >= stop:
                    break
        assert not (tmp_path / "left" / "lora").exists()
    assert finish(distilling(tiles, tmp_path / "left", config, models_of(tiny_base_folder))) == digest
    files = [tmp_path / name / "lora" / DIFFUSERS_NAME for name in ("whole", "left")]
    assert digest_file(files[0]) == digest_file(files[1])
    # a kill after the training, before its caller is done, does not train again
    again = list(distilling(tiles, tmp_path / "left", config, models_of(tiny_base_folder)))
    assert next(event.done for event in again if event.total == 5) == 5


@pytest.mark.parametrize(
    ("network", "base"),
    [
        ("controlnet", "tiny_base_folder"),
        ("adapter", "tiny_base_folder"),
        ("hypernetwork", "tiny_base_folder"),
        ("controlnet", "tiny_stable_diffusion_folder"),
        ("hypernetwork", "tiny_stable_diffusion_folder"),
    ],
)
def test_every_network_has_a_student_and_it_merges_into_the_base(
    request: pytest.FixtureRequest, tiles: list[Any], tmp_path: Path, network: str, base: str
) -> None:
    folder: Path = request.getfixturevalue(base)
    models = models_of(folder, network)
    finish(distilling(tiles, tmp_path, config_of(training={"num_steps": 2, "mixed_precision": "no"}), models))
    weights = load_file(tmp_path / "lora" / DIFFUSERS_NAME)
    assert any(tensor.abs().max() > 0 for name, tensor in weights.items() if "lora_B" in name)
    assert any("conv1" in name for name in weights)
    assert any("to_q" in name for name in weights)
    merged, plain = load_base(folder), load_base(folder)
    merge_lora({"unet": merged.denoiser}, tmp_path / "lora" / DIFFUSERS_NAME)
    x, at = torch.ones(1, merged.latent_channels, 4, 6), torch.tensor(600)
    context = merged.encode_prompts(["a sks"])
    with torch.no_grad():
        ours, trained, before = (of.predict(x, at, context) for of in (merged, models.backbone, plain))
    torch.testing.assert_close(ours, trained, atol=1e-4, rtol=1e-3)
    assert not torch.equal(ours, before)
