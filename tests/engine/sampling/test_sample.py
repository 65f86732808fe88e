from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionControlNetPipeline, StableDiffusionPipeline

from defectory.condition.networks.controlnet import ControlNet
from defectory.engine.backbones.embeddings import encode_prompts
from defectory.engine.backbones.sd1.model import StableDiffusion, load_stable_diffusion
from defectory.engine.sampling import guidance as guidance_module
from defectory.engine.sampling.chunks import in_chunks
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.known import Known
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images, sample_noise
from defectory.engine.sampling.schedulers import make_scheduler, set_timesteps
from defectory.engine.tensors import images_to_tensor, tensor_to_images
from defectory.errors import ConfigError

PROMPTS = ["an image of a sks with a crack", "an image of a sks", "an image of a sks with a blowhole"]
SEEDS = [11, 12, 13]


@pytest.fixture(scope="module")
def models(tiny_base_folder: Path) -> StableDiffusion:
    return load_stable_diffusion(tiny_base_folder)


def drivers() -> list[np.ndarray]:
    made = [np.zeros((32, 48, 3), np.uint8) for _ in SEEDS]
    for index, driver in enumerate(made):
        driver[::5] = 50
        driver[8:13, 4 + 8 * index : 15 + 8 * index] = (255, 0, 0)
    return made


def with_control(models: StableDiffusion) -> SamplingModels:
    assert models.controlnet is not None
    return SamplingModels(backbone=models, network=ControlNet(models.controlnet))


def draw(
    models: StableDiffusion,
    which: list[int],
    *,
    scheduler: str = "base",
    num_steps: int = 3,
    mixed_precision: Any = "no",
    known: Known | None = None,
    **guidance: Any,
) -> np.ndarray:
    return sample_images(
        with_control(models),
        Conditions(prompts=[PROMPTS[i] for i in which], drivers=[drivers()[i] for i in which]),
        seeds=[SEEDS[i] for i in which],
        sampler=Sampler(scheduler=scheduler, num_inference_steps=num_steps, mixed_precision=mixed_precision),
        guidance=Guidance(**guidance),
        known=known,
    ).astype(np.int64)


def test_noise_is_each_samples_own() -> None:
    noise = sample_noise([5, 6, 5], (4, 8, 12))
    assert noise.shape == (3, 4, 8, 12)
    assert torch.equal(noise[0], noise[2])
    assert not torch.equal(noise[0], noise[1])
    assert torch.equal(sample_noise([6], (4, 8, 12))[0], noise[1])
    assert abs(float(sample_noise(list(range(50)), (4, 8, 12)).std()) - 1) < 0.02


def test_an_embedding_does_not_depend_on_its_batch(models: StableDiffusion) -> None:
    together = encode_prompts(models, [*PROMPTS, PROMPTS[0]]).tokens
    assert together.shape[:2] == (4, 16)
    assert torch.equal(together[0], together[3])
    assert all(
        torch.equal(encode_prompts(models, [prompt]).tokens[0], row)
        for prompt, row in zip(PROMPTS, together, strict=False)
    )


@pytest.mark.parametrize(
    ("scheduler", "guidance"),
    [
        ("base", 1.0),
        ("dpm-solver", 3.0),
        *(pytest.param(name, 3.0, marks=pytest.mark.long) for name in ("base", "ddim", "ddpm", "euler")),
    ],
)
def test_a_sample_does_not_depend_on_its_batch(models: StableDiffusion, scheduler: str, guidance: float) -> None:
    together = draw(models, [0, 1, 2], scheduler=scheduler, text=guidance)
    assert together.shape == (3, 32, 48, 3)
    alone = np.concatenate([draw(models, [i], scheduler=scheduler, text=guidance) for i in (0, 1, 2)])
    assert (np.abs(together - alone) <= 1).mean() >= 0.999
    assert np.ptp(together) > 20
    assert all((np.abs(together[a] - together[b]) > 1).mean() > 0.2 for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_base_with_a_sampler_that_draws_noise_is_seeded_too(models: StableDiffusion) -> None:
    noisy = replace(models, scheduler=DDPMScheduler.from_config(dict(models.scheduler.config)))
    torch.manual_seed(0)
    first = draw(noisy, [0, 1])
    torch.manual_seed(1)
    assert np.array_equal(draw(noisy, [0, 1]), first)
    assert (np.abs(draw(noisy, [1])[0] - first[1]) <= 1).mean() >= 0.999


@pytest.mark.parametrize("scheduler", ["base", "dpm-solver"])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_it_draws_what_diffusers_own_pipeline_draws(
    models: StableDiffusion, tiny_base_folder: Path, guidance: float, scheduler: str
) -> None:
    control = ControlNetModel.from_pretrained(tiny_base_folder / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        tiny_base_folder, controlnet=control, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    driver = torch.from_numpy(drivers()[0]).permute(2, 0, 1)[None].float() / 255
    pipeline.scheduler = make_scheduler(models, scheduler)
    spaced: dict[str, Any] = {"num_inference_steps": 4} if scheduler == "base" else {"timesteps": [999, 562, 250, 62]}
    expected = pipeline(
        PROMPTS[0],
        image=driver,
        height=32,
        width=48,
        guidance_scale=guidance,
        negative_prompt="",
        latents=sample_noise([SEEDS[0]], (4, 8, 12)),
        output_type="np",
        **spaced,
    ).images[0]
    drawn = draw(models, [0], scheduler=scheduler, num_steps=4, text=guidance)[0]
    assert np.abs(drawn - expected * 255).max() < 1.5


def test_the_network_acts_in_the_same_steps_as_in_diffusers(models: StableDiffusion, tiny_base_folder: Path) -> None:
    control = ControlNetModel.from_pretrained(tiny_base_folder / "controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        tiny_base_folder, controlnet=control, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS[0],
        image=torch.from_numpy(drivers()[0]).permute(2, 0, 1)[None].float() / 255,
        height=32,
        width=48,
        num_inference_steps=4,
        guidance_scale=4.0,
        negative_prompt="",
        control_guidance_start=0.2,
        control_guidance_end=0.75,
        latents=sample_noise([SEEDS[0]], (4, 8, 12)),
        output_type="np",
    ).images[0]
    drawn = draw(models, [0], num_steps=4, text=4.0, control_start=0.2, control_end=0.75)
    assert np.abs(drawn[0] - expected * 255).max() < 1.5
    assert np.abs(drawn - draw(models, [0], num_steps=4, text=4.0)).max() > 3
    never = draw(models, [0], num_steps=4, text=4.0, control_start=0.9)
    assert (never == draw(models, [0], num_steps=4, text=4.0, control=0.0)).all()


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_rescaled_guidance_is_that_of_diffusers(
    models: StableDiffusion, tiny_base_folder: Path, rescale: float
) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(
        tiny_base_folder, safety_checker=None, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS[0],
        height=32,
        width=32,
        num_inference_steps=4,
        guidance_scale=6.0,
        guidance_rescale=rescale,
        negative_prompt="",
        latents=sample_noise([SEEDS[0]], (4, 8, 8)),
        output_type="np",
    ).images[0]
    drawn = sample_images(
        SamplingModels(backbone=models),
        Conditions(prompts=PROMPTS[:1]),
        seeds=SEEDS[:1],
        sampler=Sampler(scheduler="base", num_inference_steps=4),
        guidance=Guidance(text=6.0, text_rescale=rescale),
    )[0]
    assert np.abs(drawn - expected * 255).max() < 1.5
    assert np.ptp(expected) > 0.1


def test_the_control_networks_strength_scales_its_effect(models: StableDiffusion) -> None:
    def effect(scale: float) -> float:
        return float(np.abs(draw(models, [0], control=scale) - draw(models, [0], control=0.0)).mean())

    assert effect(0.0) == 0
    assert 0 < effect(0.3) < effect(1.0)


@pytest.mark.parametrize("mixed_precision", ["no", "auto"])
def test_a_sample_is_the_same_in_every_batch_at_both_precisions(models: StableDiffusion, mixed_precision: str) -> None:
    together = draw(models, [0, 1, 2], mixed_precision=mixed_precision)
    for index in range(3):
        assert (
            np.abs(draw(models, [index], mixed_precision=mixed_precision)[0] - together[index]) <= 1
        ).mean() >= 0.999


def test_networks_see_chunks_of_one_size_and_every_row_once() -> None:
    seen: list[list[int]] = []

    def part(rows: torch.Tensor) -> torch.Tensor:
        seen.append(rows.tolist())
        return rows.float() * 10

    assert in_chunks(part, 5, 3).tolist() == [0, 10, 20, 30, 40]
    assert seen == [[0, 1, 2], [3, 4, 4]]


def test_without_drivers_the_base_alone_draws_its_native_size(models: StableDiffusion) -> None:
    drawn = sample_images(
        SamplingModels(backbone=models),
        Conditions(prompts=PROMPTS[:2]),
        seeds=[1, 2],
        sampler=Sampler(scheduler="base", num_inference_steps=2),
    )
    assert drawn.shape == (2, models.tile_px, models.tile_px, 3)


def test_a_scheduler_keeps_the_bases_noise_schedule(models: StableDiffusion) -> None:
    for name in ("base", "ddim", "ddpm", "euler", "dpm-solver"):
        scheduler = make_scheduler(models, name)
        assert scheduler is not models.scheduler
        assert scheduler.config["prediction_type"] == "v_prediction"
        assert scheduler.config["beta_end"] == models.scheduler.config["beta_end"]
    with pytest.raises(ConfigError, match=r"'heun' is not one of base, ddim, ddpm, euler, dpm-solver"):
        make_scheduler(models, "heun")


class Listening:
    """An autoencoder that keeps the latents it was given."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, latents: torch.Tensor) -> Any:
        self.latents = latents
        return self.vae.decode(latents)


def one_step(models: StableDiffusion, conditions: Conditions, **options: Any) -> torch.Tensor:
    """Draw two samples of the same noise in one step, and return their latents."""
    vae: Any = Listening(models.vae)
    listening = with_control(replace(models, vae=vae))
    sampler = Sampler(scheduler="ddim", num_inference_steps=1)
    sample_images(listening, conditions, seeds=[SEEDS[0]] * 2, sampler=sampler, **options)
    return vae.latents[:2]  # the rest fills the chunk up


def test_mask_guidance_of_one_step_is_linear_and_leaves_samples_without_a_mask(models: StableDiffusion) -> None:
    plain = np.zeros((32, 48, 3), np.uint8)
    plain[::5] = 50
    without = Conditions(prompts=[PROMPTS[1]], drivers=[plain])

    def latents(mask: float | np.ndarray, mask_spill: float = 1.0) -> torch.Tensor:
        conditions = Conditions(prompts=PROMPTS[:2], drivers=[drivers()[0], plain])
        return one_step(models, conditions, without=without, guidance=Guidance(mask=mask, mask_spill=mask_spill))

    with_mask, no_mask = latents(1.0)
    assert float((with_mask - no_mask).abs().max()) > 1e-3
    guided = latents(2.5)
    painted = (torch.from_numpy(drivers()[0]) != torch.from_numpy(plain)).any(dim=-1).float()
    share = torch.nn.functional.avg_pool2d(painted[None], models.latent_factor)
    # a latent pixel counts wholly once a mask covers half of it
    cover = torch.where(share >= 0.5, torch.ones(()), 2 * share)
    assert ((cover > 0) & (cover < 1)).any()
    difference = with_mask - no_mask
    torch.testing.assert_close(guided[0], with_mask + 1.5 * cover * difference, atol=1e-4, rtol=1e-4)
    assert torch.equal(guided[1], no_mask)
    by_pixel = latents(np.where(painted.numpy() > 0, 2.5, 77.0)[None].astype(np.float32))
    torch.testing.assert_close(by_pixel[0], guided[0], atol=1e-5, rtol=1e-5)
    left, right = np.full((1, 32, 48), 2.5, np.float32), np.ones((1, 32, 48), np.float32)
    halved = latents(np.where(np.arange(48) < 8, left, right))
    border = 8 // models.latent_factor
    torch.testing.assert_close(halved[0, ..., :border], guided[0, ..., :border], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(halved[0, ..., border:], with_mask[..., border:], atol=1e-5, rtol=1e-5)
    kept_inside = latents(2.5, mask_spill=0.0)
    torch.testing.assert_close(kept_inside[0], no_mask + 2.5 * cover * difference, atol=1e-4, rtol=1e-4)
    assert torch.equal(kept_inside[1], no_mask)


def test_driver_guidance_of_one_step_is_linear_and_knows_no_mask(
    models: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guidance_module, "DRIVER_GUIDANCE_INTERVAL", (0.0, 1.0))
    plain = np.zeros((32, 48, 3), np.uint8)
    plain[::5] = 50
    without = Conditions(prompts=PROMPTS[1:2], drivers=[plain])

    def latents(
        prompts: list[str] = PROMPTS[:2], *, undriven: bool = False, without: Conditions | None = None, **guidance: Any
    ) -> torch.Tensor:
        conditions = Conditions(prompts=prompts, drivers=None if undriven else [drivers()[0], plain])
        return one_step(models, conditions, without=without, guidance=Guidance(**guidance))

    def without_mean(values: torch.Tensor) -> torch.Tensor:
        return values - values.mean(dim=(-2, -1), keepdim=True)

    with_mask, no_mask = latents()
    # one step of a v-prediction is linear in it, so that latents differ as predictions do
    of_class = ["a surface"] * 2
    bare_with, bare_without = latents(of_class, control=0.0)
    assert not torch.allclose(bare_without, latents(control=0.0)[1], atol=1e-3)
    guidance: dict[str, Any] = {"driver": 2.5, "class_prompt": "a surface"}
    guided = latents(without=without, **guidance)
    torch.testing.assert_close(guided[0], with_mask + 1.5 * without_mean(no_mask - bare_with), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(guided[1], no_mask + 1.5 * without_mean(no_mask - bare_without), atol=1e-4, rtol=1e-4)
    alone = latents(**guidance)
    torch.testing.assert_close(alone[0], with_mask + 1.5 * without_mean(with_mask - bare_with), atol=1e-4, rtol=1e-4)
    own, class_alone = latents(undriven=True), latents(of_class, undriven=True)
    concept = latents(undriven=True, **guidance)
    torch.testing.assert_close(concept, own + 1.5 * without_mean(own - class_alone), atol=1e-4, rtol=1e-4)
    assert torch.equal(latents(driver=2.5), latents())
    both = latents(without=without, mask=1.0, mask_spill=0.0, **guidance)
    painted = (torch.from_numpy(drivers()[0]) != torch.from_numpy(plain)).any(dim=-1).float()
    cover = (2 * torch.nn.functional.avg_pool2d(painted[None], models.latent_factor)).clamp(max=1)
    torch.testing.assert_close(
        both[0], no_mask + cover * (with_mask - no_mask) + 1.5 * without_mean(no_mask - bare_with), atol=1e-4, rtol=1e-4
    )


def test_drivers_are_guided_between_two_noise_levels_alone(
    models: StableDiffusion, monkeypatch: pytest.MonkeyPatch
) -> None:
    guidance: dict[str, Any] = {"driver": 3.0, "class_prompt": "a surface"}
    plain = draw(models, [0], num_steps=4)
    assert (draw(models, [0], num_steps=4, **guidance) != plain).mean() > 0.05
    monkeypatch.setattr(guidance_module, "DRIVER_GUIDANCE_INTERVAL", (0.0, 0.0))
    assert np.array_equal(draw(models, [0], num_steps=4, **guidance), plain)


@pytest.mark.parametrize("scheduler", ["base", "euler", "dpm-solver"])
def test_known_pictures_stay_as_the_autoencoder_gives_them_outside_their_regions(
    models: StableDiffusion, scheduler: str
) -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (32, 48, 3)).astype(np.uint8) for _ in SEEDS]
    nowhere, right = np.zeros((32, 48), bool), np.zeros((32, 48), bool)
    right[:, 24:] = True
    vae: Any = models.vae
    with torch.no_grad():
        passed = tensor_to_images(vae.decode(vae.encode(images_to_tensor(pictures)).latent_dist.mode()).sample).astype(
            int
        )
    kept = draw(models, [0, 1, 2], scheduler=scheduler, known=Known(images=pictures, regions=[nowhere] * 3))
    assert np.abs(kept - passed).max() <= 1
    drawn = draw(models, [0, 1, 2], scheduler=scheduler, known=Known(images=pictures, regions=[nowhere, right, right]))
    assert np.array_equal(drawn[0], kept[0])
    assert (drawn[1:, :, 30:] != kept[1:, :, 30:]).any()


def drawn_spread(models: StableDiffusion, num_steps: int, spread: float, *, spaced: bool) -> float:
    """Give the spread of what dpm-solver draws, over the true one, when the network is perfect and the data are normal.

    Of x = a x0 + s e, with x0 and e normal of spread d and 1, the best guesses are x0 = a d^2 x / (a^2 d^2 + s^2) and
    e = s x / (a^2 d^2 + s^2).
    """
    scheduler = make_scheduler(models, "dpm-solver")
    if spaced:
        set_timesteps(scheduler, num_steps, "cpu")
    else:
        scheduler.set_timesteps(num_steps)
    x = torch.randn((1, 1, 200, 300), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for timestep in scheduler.timesteps:
        signal = scheduler.alphas_cumprod[int(timestep)].double()
        variance = signal * spread**2 + (1 - signal)
        x0, e = signal.sqrt() * spread**2 / variance * x, (1 - signal).sqrt() / variance * x
        x = scheduler.step(signal.sqrt() * e - (1 - signal).sqrt() * x0, timestep, x).prev_sample
    return float(x.std()) / spread


@pytest.mark.parametrize("num_steps", [8, 20, 50, 400])
def test_timesteps_of_dpm_solver_are_denser_towards_the_end(models: StableDiffusion, num_steps: int) -> None:
    scheduler = make_scheduler(models, "dpm-solver")
    set_timesteps(scheduler, num_steps, "cpu")
    steps = scheduler.timesteps.tolist()
    assert steps[0] == 999
    assert len(set(steps)) == len(steps) <= num_steps
    assert num_steps > 30 or len(steps) == num_steps
    gaps = -np.diff(steps)
    assert (gaps > 0).all()
    assert gaps[-1] < gaps[0] / 4


@pytest.mark.parametrize(("num_steps", "kept", "kept_evenly"), [(8, 0.55, 0.3), (20, 0.85, 0.45)])
def test_dpm_solver_keeps_faint_detail(
    models: StableDiffusion, num_steps: int, kept: float, kept_evenly: float
) -> None:
    """Detail of a tenth of the latents' spread is drawn at a quarter to under a half of its strength by as many even
    steps.
    """
    assert drawn_spread(models, num_steps, 0.1, spaced=False) < kept_evenly
    assert drawn_spread(models, num_steps, 0.1, spaced=True) > kept
    assert abs(drawn_spread(models, num_steps, 1.0, spaced=True) - 1) < 0.05
