"""Trains a student: a LoRA on the denoiser, which learns what the guided pipeline draws (`steps.py`).

    teacher   h(x_t) + (w_d - 1) center(q - p[k, -])    the sampler's guided prediction, but for the guidance of masks
    student   p_s(x_t), the denoiser with LoRA, steered by the same condition network

A draft with a mask and its half without are both taught, and the teacher guides both from the half without, as the
sampler does. The student therefore needs no guidance by prompt and by driver. Masks are still guided when it draws:
their strength is chosen per class and applies to single pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from defectory.distillation.batches import StudentBatch, Tiles, batch_plan, held_out_batches, training_batch
from defectory.distillation.config import DistillationConfig
from defectory.distillation.steps import (
    Span,
    Steps,
    consistency_errors,
    consistency_spans,
    trajectory_errors,
    trajectory_spans,
)
from defectory.engine.backbones.backbone import Steering
from defectory.engine.backbones.embeddings import PromptEmbeddings
from defectory.engine.backbones.lora import DIFFUSERS_NAME, add_lora, lora_tensors, without_lora
from defectory.engine.precision import autocast
from defectory.engine.sampling.guidance import Alternatives, Guidance, guided_prediction
from defectory.engine.sampling.models import Given, SamplingModels
from defectory.engine.tensors import drivers_to_tensor
from defectory.engine.training.cache import MakeDriver, VariantRecipe, prepare_variants
from defectory.engine.training.checkpoint import write_tensors
from defectory.engine.training.data import TrainingTile
from defectory.engine.training.noise import NoiseSchedule
from defectory.engine.training.phase import check_phase_tiles, make_ready, run_training
from defectory.events import Work
from defectory.files import digest_folder, digest_json
from defectory.folders.swap import atomic_folder, remove_leftovers

LORA_FOLDER = "lora"
TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"),
    *("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj"),
)
"""Layers of the denoiser that get adapters, as in diffusers' script of LCM-LoRA; those that a base lacks are left out.
"""
NUM_HELD_OUT_SPANS = 8
"""Most places on the trajectory that the held-out loss looks at."""


def distill(
    tiles: Sequence[TrainingTile],
    *,
    models: SamplingModels,
    guidance: Guidance,
    config: DistillationConfig,
    make_driver: MakeDriver,
    prompt_of: Callable[[Sequence[str], str], str],
    flip: bool = True,
    seed: int,
    out: Path,
    named: dict[str, str],
    held_out: Sequence[TrainingTile] = (),
    cache: Path | None = None,
) -> Work[str]:
    """Train a student, write its LoRA to `out/lora`, and return the digest of that folder.

    The checkpoint stays in `out` until the caller removes it, so that a later kill does not train again.

    Args:
        tiles: training tiles, all of one size; those without defects have an empty mask.
        models: the finished backbone and its condition network, in float32; the backbone gets adapters in place.
        guidance: of the teacher; its `mask` is not learned.
        config: of distillation.
        make_driver: image, instances and valid_hw to the driver, as in phase 2.
        prompt_of: maps class names and words for tones to the prompt, as in phase 2.
        flip: mirror augmented variants, and rotate square ones by quarter turns.
        seed: of all random numbers.
        out: stage folder; training resumes from a checkpoint found there.
        named: digests of what the student depends on besides: `concept`, `control` and `drivers`, which is that of the
            driver's configuration.
        held_out: val tiles for a held-out loss; they are never trained on.
        cache: folder for latents and drivers; None means `out/cache`.

    Raises:
        InputError: there is no tile, or tiles do not fit the base.
        WeightsError: the base predicts neither noise nor velocity.
        StageError: the loss is not finite, or `out` cannot be written.
    """
    training, backbone, network = config.training, models.backbone, models.network
    assert network is not None, "a finished pipeline has a condition network"
    remove_leftovers(out)
    held_out = check_phase_tiles(tiles, held_out, backbone)
    recipe = VariantRecipe.of(
        backbone,
        training,
        flip=flip,
        seed=seed,
        make_driver=make_driver,
        driver_digest=named["drivers"],
        with_empty_drivers=True,
    )
    variants, held_out_variants = yield from prepare_variants(tiles, held_out, recipe, cache=cache or out / "cache")
    prepared = Tiles(variants=variants, prompt_of=prompt_of)
    prepared_held_out = Tiles(variants=held_out_variants, prompt_of=prompt_of)
    plan = batch_plan(tiles, batch_size=training.batch_size, num_variants=training.variants_per_image, seed=seed)
    schedule = NoiseSchedule(backbone.scheduler, backbone.device)
    spans = spans_of(config, schedule.num_timesteps)
    network.module.requires_grad_(False)
    parameters = add_lora(
        backbone.denoiser,
        targets=_present(backbone.denoiser),
        rank=config.lora_rank,
        alpha=config.lora_rank,
        seed=seed,
        where="distillation.lora_rank",
    )
    backbone.move_frozen_encoders("cpu")
    make_ready(backbone.denoiser, network.module, training=training, latents=variants[0].latents)
    student = Student(models=models, network=network, guidance=guidance, config=config, schedule=schedule)
    shown = spans[:: -(-len(spans) // NUM_HELD_OUT_SPANS)]
    validating = held_out_batches(prepared_held_out, shown, batch_size=training.batch_size)
    known: dict[int, Tensor] = {}

    @torch.no_grad()
    def held_out_loss() -> float:
        losses: list[Tensor] = []
        for number, batch in enumerate(validating):
            if number not in known and config.method == "trajectory":
                known[number] = student.target(batch)
            losses.append(student.errors(batch, known.get(number)).mean())
        return float(torch.stack(losses).mean())

    yield from run_training(
        parameters,
        lambda index: training_batch(prepared, plan, spans, seed=seed, index=index),
        lambda batch: student.loss(batch),
        training=training,
        out=out,
        recipe=digest_json({**named, **_recipe(tiles, held_out, config, guidance), "flip": flip, "seed": seed}),
        held_out_loss=held_out_loss if validating else None,
    )
    with atomic_folder(out / LORA_FOLDER, kind="base") as folder:
        write_tensors(folder / DIFFUSERS_NAME, lora_tensors({"unet": backbone.denoiser}), {"format": "pt"})
    return digest_folder(out / LORA_FOLDER)


def spans_of(config: DistillationConfig, num_timesteps: int) -> list[Span]:
    """Return the places on the trajectory that a student trains at, from noise to image."""
    if config.method == "consistency":
        return consistency_spans(num_timesteps, teacher_inference_steps=config.teacher_inference_steps)
    return trajectory_spans(
        num_timesteps,
        num_inference_steps=config.num_inference_steps,
        teacher_inference_steps=config.teacher_inference_steps,
    )


def _present(denoiser: nn.Module) -> list[str]:
    layers = [name for name, layer in denoiser.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return [end for end in TARGETS if any(name.endswith(f".{end}") for name in layers)]


def _recipe(
    tiles: Sequence[TrainingTile], held_out: Sequence[TrainingTile], config: DistillationConfig, guidance: Guidance
) -> dict[str, object]:
    return {
        "phase": "distillation",
        "tiles": [tile.digest() for tile in tiles],
        "held_out": [tile.digest() for tile in held_out],
        "config": config.model_dump(mode="json"),
        "guidance": [guidance.text, guidance.text_rescale, guidance.control, guidance.driver, guidance.class_prompt],
    }


@dataclass(frozen=True, kw_only=True)
class _On:
    """A batch on the networks' device: conditions, noisy latents, and what the teacher guides away from."""

    x: Tensor
    given: Given
    others: Alternatives


class Student:
    """A student and its teacher, which share all weights but the LoRA.

    Args:
        models: backbone with adapters, and its condition network.
        network: that of `models`.
        guidance: of the teacher.
        config: method, precision, weight of defects.
        schedule: of the base.
    """

    def __init__(
        self,
        *,
        models: SamplingModels,
        network: Steering,
        guidance: Guidance,
        config: DistillationConfig,
        schedule: NoiseSchedule,
    ) -> None:
        self._models, self._network, self._guidance, self._config = models, network, guidance, config
        self._schedule, self._steps = schedule, Steps(schedule)
        self._embed = PromptEmbeddings(models.backbone)

    def loss(self, batch: StudentBatch) -> Tensor:
        """Compute the loss of a batch, with more weight on defects if that is set."""
        errors, training = self.errors(batch, self.target(batch)), self._config.training
        if training.defect_weight != 1:
            side = 2 * training.defect_margin + 1
            near = max_pool2d(batch.defect.to(errors.device).float(), side, stride=1, padding=training.defect_margin)
            errors = errors * (1 + (training.defect_weight - 1) * near)
        return errors.mean()

    def errors(self, batch: StudentBatch, target: Tensor | None = None) -> Tensor:
        """Compute the errors of the student's prediction, float [B,C,h,w]; a known target is not computed again."""
        wanted = self.target(batch) if target is None else target
        on, start = self._on(batch), batch.span.start
        clean = self._steps.clean(on.x, self._predict(on.x, start, on.given), start)
        if self._config.method == "consistency":
            return consistency_errors(self._steps.consistent(on.x, clean, start), wanted)
        return trajectory_errors(clean, wanted, self._steps.scales(start)[1])

    @torch.no_grad()
    def target(self, batch: StudentBatch) -> Tensor:
        """Compute what the student should reach, float [B,C,h,w]: x* of a trajectory, or f(x_u, u)."""
        on, span = self._on(batch), batch.span
        with without_lora(self._models.backbone.denoiser):
            end = self._steps.solve(on.x, span, lambda x, timestep: self._teacher(x, timestep, on))
        if self._config.method == "trajectory":
            return self._steps.leading_to(end, on.x, span)
        if span.end < 0:
            return end
        clean = self._steps.clean(end, self._predict(end, span.end, on.given), span.end)
        return self._steps.consistent(end, clean, span.end)

    def _on(self, batch: StudentBatch) -> _On:
        device, guidance, count = self._schedule.alpha_bar.device, self._guidance, len(batch.prompts)
        clean, noise = batch.clean.to(device), batch.noise.to(device)
        timesteps = torch.full((count,), batch.span.start, dtype=torch.int64, device=device)
        given = Given(context=self._embed(batch.prompts), drivers=_on_device(batch.drivers, device))
        empty = class_alone = without = None
        if guidance.text > 1:
            empty = Given(context=self._embed([""] * count), drivers=given.drivers)
        if guidance.driver != 1 and guidance.class_prompt is not None:
            class_alone = Given(context=self._embed([guidance.class_prompt] * count), drivers=None)
            without = Given(
                context=self._embed(batch.prompts_without), drivers=_on_device(batch.drivers_without, device)
            )
        return _On(
            x=self._schedule.add(clean, noise, timesteps)[0],
            given=given,
            others=Alternatives(empty=empty, without=without, class_alone=class_alone),
        )

    def _teacher(self, x: Tensor, timestep: int, on: _On) -> Tensor:
        return guided_prediction(
            lambda x, at, given: self._predict(x, int(at), given),
            x,
            torch.tensor(timestep, device=x.device),
            given=on.given,
            others=on.others,
            guidance=self._guidance,
            mask_weight=None,
            num_timesteps=self._schedule.num_timesteps,
        )

    def _predict(self, x: Tensor, timestep: int, given: Given) -> Tensor:
        """Predict with or without the LoRA, as it is switched; without drivers, the network does not act."""
        backbone = self._models.backbone
        timesteps = torch.full((len(x),), timestep, dtype=torch.int64, device=x.device)
        with autocast(self._config.training.mixed_precision, x.device):
            if given.drivers is None:
                return backbone.predict(x, timesteps, given.context).float()
            return self._network.predict(
                backbone, x, timesteps, given.context, given.drivers, scale=self._guidance.control
            ).float()


def _on_device(drivers: Tensor, device: torch.device) -> Tensor:
    return drivers_to_tensor(list(drivers.numpy())).to(device)
