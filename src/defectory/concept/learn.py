"""Phase 1: learns the concept of the user's part (paper, section 3.1).

    L = E |target - f(x_t, t, prompt)|^2 + lambda E |target' - f(x'_t, t, "a [class noun]")|^2

    x        latents of training tiles
    x'       latents of class images, which the frozen model drew itself (prior preservation; DreamBooth's)
    lambda   weight of the prior term

The method decides what trains, what prompts say and what is saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from defectory.artifacts.weights import Concept
from defectory.concept.config import CHECK_SETTINGS, ConceptConfig
from defectory.concept.methods import CONCEPT_METHODS
from defectory.concept.methods.method import ConceptMethod
from defectory.concept.prior import CLASS_IMAGES, class_latents
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.embeddings import PromptEmbeddings
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.prompts import class_prompt
from defectory.engine.config import PromptConfig
from defectory.engine.training.cache import TileVariants, VariantRecipe, prepare_variants
from defectory.engine.training.checkpoint import remove_checkpoint, write_tensors
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.data import BatchPlan, TrainingTile
from defectory.engine.training.flow import schedule_of
from defectory.engine.training.held_out import held_out_batches
from defectory.engine.training.loss import Batch
from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.engine.training.phase import MemberSource, Phase, check_phase_tiles, make_ready, run_phase
from defectory.engine.training.team import ALONE, Team
from defectory.events import Work
from defectory.files import digest_folder, digest_json, write_text
from defectory.folders.swap import atomic_folder, remove_leftovers

DEFAULT_PROMPTS = PromptConfig()


def learn_concept(
    tiles: Sequence[TrainingTile],
    *,
    base: Path,
    config: ConceptConfig,
    prompts: PromptConfig = DEFAULT_PROMPTS,
    flip: bool = True,
    seed: int,
    out: Path,
    device: torch.device | str = "cpu",
    held_out: Sequence[TrainingTile] = (),
    cache: Path | None = None,
    team: Team = ALONE,
) -> Work[Concept]:
    """Teach a base the look of the user's parts, and return the concept.

    Writes the method's folder (`base/` for DreamBooth), `concept.json`, `log.jsonl` and the latents of the class images
    to `out`.

    Args:
        tiles: training tiles with and without defects; all of one size.
        base: folder of a base.
        config: of the phase.
        prompts: words of the prompts.
        flip: mirror augmented variants, and rotate square ones by quarter turns.
        seed: of all random numbers.
        out: stage folder; training resumes from a checkpoint found there.
        device: where to train.
        held_out: val tiles for a held-out loss; they are never trained on.
        cache: folder for latents and class images; None means `out/cache`.
        team: the processes that train together, all with the same arguments but for the device; the main one writes.

    Raises:
        InputError: there is no tile, or tiles do not fit the base.
        ConfigError: the method is unknown.
        WeightsError: the base cannot be used.
        StageError: the loss is not finite, `out` cannot be written, or another process of the team has ended.
    """
    cache, training = cache or out / "cache", config.training
    if team.is_main:
        remove_leftovers(out)
    kind: type[ConceptMethod] = CONCEPT_METHODS.get(config.method)
    backbone = load_base(base, device)
    held_out = check_phase_tiles(tiles, held_out, backbone)
    base_digest = digest_folder(base)
    prior = None
    variant_recipe = VariantRecipe.of(backbone, training, flip=flip, seed=seed)
    with team.main_first():
        if kind.preserves_prior and config.prior_loss_weight > 0:
            prior = yield from _draw_prior(
                backbone,
                tiles[0],
                config,
                class_noun=prompts.class_noun,
                seed=seed,
                base_digest=base_digest,
                cache=cache,
            )
        variants, held_out_variants = yield from prepare_variants(tiles, held_out, variant_recipe, cache=cache)
    settings = config.with_initializer(prompts.class_noun)
    method = kind.start(backbone, settings, instance_token=prompts.instance_token, seed=seed)
    if not method.parameters:
        if team.is_main:
            write_text(out / "log.jsonl", "")
        return _save(method, config, prompts, base=base, base_digest=base_digest, prior=prior, out=out, team=team)
    backbone.move_frozen_encoders("cpu")
    training, rate_shares = _rates_of(method, training)
    make_ready(backbone.denoiser, training=training, latents=variants[0].latents)
    schedule = schedule_of(backbone.scheduler, backbone.device)
    batches = _Batches(method, variants, config=config, prompts=prompts, seed=seed, schedule=schedule, prior=prior)
    embed = PromptEmbeddings(backbone)
    phase = Phase(
        parameters=method.parameters,
        batch_of=batches.batch,
        predict=lambda batch, noisy, timesteps: backbone.predict(noisy, timesteps, embed(batch.prompts)),
        total=batches.total,
        schedule=schedule,
        held_out=held_out_batches(held_out_variants, schedule.num_timesteps, batches.prompt_of, training.batch_size),
        training=training,
        rate_shares=rate_shares,
    )
    content = {
        "phase": "concept",
        "tiles": [tile.digest() for tile in tiles],
        "held_out": [tile.digest() for tile in held_out],
        "base": base_digest,
        "config": config.model_dump(mode="json", exclude=set(CHECK_SETTINGS)),
        "prompts": prompts.model_dump(mode="json"),
        "flip": flip,
        "seed": seed,
    }
    yield from run_phase(phase, out=out, recipe=digest_json(content), team=team)
    return _save(method, config, prompts, base=base, base_digest=base_digest, prior=prior, out=out, team=team)


def _rates_of(method: ConceptMethod, training: TrainingConfig) -> tuple[TrainingConfig, Mapping[str, float]]:
    """Return the training with a method's own learning rates, and each parameter's share of the highest one."""
    rates: Mapping[str, float] | None = getattr(method, "learning_rates", None)
    if not rates:
        return training, {}
    peak = max(rates.values())
    own = training.model_copy(update={"learning_rate": peak, "optimizer": "adamw"})
    return own, {name: rate / peak for name, rate in rates.items()}


@dataclass(frozen=True, kw_only=True)
class _Prior:
    """Class images: latents float16 [N,C,h,w], how many of them a batch holds, and their prompt."""

    latents: Tensor
    per_batch: int
    prompt: str


def _draw_prior(
    backbone: Backbone,
    tile: TrainingTile,
    config: ConceptConfig,
    *,
    class_noun: str,
    seed: int,
    base_digest: str,
    cache: Path,
) -> Work[_Prior]:
    latents = yield from class_latents(
        backbone,
        class_noun=class_noun,
        size_hw=(tile.image.shape[0], tile.image.shape[1]),
        num_images=config.num_class_images,
        num_inference_steps=config.prior_inference_steps,
        seed=seed,
        base_digest=base_digest,
        mixed_precision=config.training.mixed_precision,
        cache=cache,
    )
    per_batch = max(1, round(config.training.batch_size * config.prior_share))
    return _Prior(latents=latents, per_batch=per_batch, prompt=class_prompt(class_noun))


class _Batches:
    """Batches of training tiles, followed by class images if the prior is preserved."""

    def __init__(
        self,
        method: ConceptMethod,
        variants: Sequence[TileVariants],
        *,
        config: ConceptConfig,
        prompts: PromptConfig,
        seed: int,
        schedule: NoiseSchedule,
        prior: _Prior | None,
    ) -> None:
        self._method, self._config, self._prompts = method, config, prompts
        self._seed, self._num_timesteps, self._prior = seed, schedule.num_timesteps, prior
        self._num_tiles = max(1, config.training.batch_size - (prior.per_batch if prior else 0))
        plan = BatchPlan(
            range(len(variants)),
            (),
            batch_size=self._num_tiles,
            share=0,
            num_variants=config.training.variants_per_image,
            seed=seed,
        )
        self._source = MemberSource(
            plan=plan,
            variants=variants,
            prompt_of=self.prompt_of,
            proportion_empty_prompts=config.training.proportion_empty_prompts,
        )

    def prompt_of(self, tile: TileVariants, variant: int) -> str:
        """Return the prompt of a tile's variant."""
        names = tile.class_names[variant] if self._config.defect_words else ()
        tone = tile.tone if self._prompts.tone_words else ""
        return self._method.prompt(names, tone=tone, defect_noun=self._prompts.defect_noun)

    def batch(self, index: int) -> Batch:
        """Make the batch of an index."""
        generator = generator_of(self._seed, "concept", index)
        members = self._source.members(index, generator)
        clean, prompts, defect = members.latents, members.prompts, members.defect
        timesteps = stratified_timesteps(self._num_tiles, self._num_timesteps, generator)
        if (prior := self._prior) is not None:
            rows = torch.randint(len(prior.latents), (prior.per_batch,), generator=generator)
            clean = torch.cat([clean, prior.latents[rows].float()])
            prompts = prompts + [prior.prompt] * prior.per_batch
            defect = torch.cat([defect, torch.zeros(prior.per_batch, *defect.shape[1:], dtype=torch.bool)])
            strata = stratified_timesteps(prior.per_batch, self._num_timesteps, generator)
            timesteps = torch.cat([timesteps, strata])
        noise = torch.randn(clean.shape, generator=generator)
        return Batch(clean=clean, noise=noise, timesteps=timesteps, prompts=prompts, defect=defect)

    def total(self, errors: Tensor) -> Tensor:
        """Compute the loss of a batch: instance term plus lambda times prior term."""
        loss = errors[: self._num_tiles].mean()
        if self._prior is not None:
            loss = loss + self._config.prior_loss_weight * errors[self._num_tiles :].mean()
        return loss


def _save(
    method: ConceptMethod,
    config: ConceptConfig,
    prompts: PromptConfig,
    *,
    base: Path,
    base_digest: str,
    prior: _Prior | None,
    out: Path,
    team: Team,
) -> Concept:
    """Write the concept in the main process, and return it in all."""
    if not team.is_main:
        team.wait()
        return Concept.load(out / "concept.json")
    with atomic_folder(out / method.folder, kind="base") as folder:
        method.save(folder, base=base)
    concept = Concept(
        method=config.method,
        instance_token=method.instance_token,
        class_noun=prompts.class_noun,
        tone_words=prompts.tone_words,
        base_digest=base_digest,
        weights_digest=digest_folder(out / method.folder),
    )
    concept.save(out / "concept.json")
    if prior is not None:
        write_tensors(out / CLASS_IMAGES, {"latents": prior.latents})
    remove_checkpoint(out / "checkpoint")
    team.wait()
    return concept
