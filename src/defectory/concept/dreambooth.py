"""DreamBooth with prior preservation (paper, section 3.1; Ruiz et al. 2023).

L = E |target - f(x_t, t, "an image of a [V] with a [class]")|^2 + lambda * E |target' - f(x'_t, t, "a [class
noun]")|^2, x from the training tiles, x' from the frozen model's own samples. Naming defects is ours (decision 040).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from defectory.artifacts.weights import Concept
from defectory.concept.config import ConceptConfig
from defectory.concept.prior import CLASS_IMAGES, class_latents
from defectory.engine.backbones.load import LoadedModels, load_base
from defectory.engine.backbones.prompts import class_prompt, condition_prompt
from defectory.engine.backbones.save import save_base_like
from defectory.engine.training.attention import use_plain_attention
from defectory.engine.training.cache import TileVariants, VariantRecipe, prepare_variants
from defectory.engine.training.checkpoint import remove_checkpoint, write_tensors
from defectory.engine.training.data import BatchPlan, TrainingTile, check_tiles
from defectory.engine.training.embeddings import PromptEmbeddings
from defectory.engine.training.events import Finished, TrainingEvent
from defectory.engine.training.held_out import held_out_batches, held_out_indices
from defectory.engine.training.loop import train
from defectory.engine.training.loss import Batch, Predict, denoising_errors
from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.files import digest_folder, digest_json
from defectory.folders import remove_leftovers


def learn_concept(
    tiles: Sequence[TrainingTile],
    *,
    base: Path,
    config: ConceptConfig,
    seed: int,
    out: Path,
    defect_noun: str = "",
    device: torch.device | str = "cpu",
    held_out: Sequence[TrainingTile] = (),
    cache: Path | None = None,
) -> Iterator[TrainingEvent]:
    """Teach a base the look of the user's parts; writes `base/`, `concept.json`, `log.jsonl` and the class images'
    latents under `out`.

    Args:
        tiles: training tiles with and without defects; all of one size.
        base: folder in Stable Diffusion layout.
        config: of the phase.
        seed: of everything drawn.
        out: stage folder; a checkpoint found in it is gone on from.
        defect_noun: word after each class name in prompts, as in phase 2.
        device: where to train.
        held_out: tiles of val for a held-out loss; they are never trained on.
        cache: folder for latents and class images; None means `out/cache`.

    Yields:
        Preparing, Started, Step, Validated, Checkpointed, and Finished last.

    Raises:
        InputError: there is no tile, or tiles do not fit the base.
        WeightsError: the base cannot be used.
        StageError: the loss is not finite, or `out` cannot be written.
    """
    device, cache, training = torch.device(device), cache or out / "cache", config.training
    remove_leftovers(out)
    models = load_base(base, device)
    validation_tiles = [held_out[index] for index in held_out_indices(len(held_out))]
    check_tiles([*tiles, *validation_tiles], multiple_px=models.size_multiple_px)
    base_digest = digest_folder(base)
    schedule = NoiseSchedule(models.scheduler, device)

    num_prior = 0 if config.prior_weight == 0 else max(1, round(training.batch_size * config.prior_share))
    num_instance = max(1, training.batch_size - num_prior)
    class_x = torch.empty(0)
    if num_prior:
        class_x = yield from class_latents(
            models,
            class_noun=config.class_noun,
            size_hw=(tiles[0].image.shape[0], tiles[0].image.shape[1]),
            num_images=config.num_class_images,
            num_steps=config.prior_steps,
            seed=seed,
            base_digest=base_digest,
            precision=training.precision,
            cache=cache,
        )
    recipe = VariantRecipe(
        vae=models.vae,
        vae_digest=digest_folder(base / "vae"),
        num_variants=training.variants_per_image,
        seed=seed,
        flip=training.flip,
        precision=training.precision,
    )
    variants, validation_variants = yield from prepare_variants(tiles, validation_tiles, recipe, cache=cache)

    trained: dict[str, nn.Module] = {"unet": models.unet}
    if config.train_text_encoder:
        trained["text_encoder"] = models.text_encoder
    for module in trained.values():
        module.requires_grad_(True)
    if training.gradient_checkpointing:
        models.unet.enable_gradient_checkpointing()
    else:
        use_plain_attention(models.unet, num_tokens=variants[0].latents[0, 0].numel(), device=device)
    predict = _Predictor(models, device)

    def prompt_of(tile: TileVariants, variant: int) -> str:
        names = tile.class_names[variant] if config.defect_words else ()
        return condition_prompt(
            config.token, names, defect_noun=defect_noun, tone=tile.tone if config.tone_words else ""
        )

    plan = BatchPlan(
        range(len(tiles)), (), batch_size=num_instance, share=0, num_variants=training.variants_per_image, seed=seed
    )

    def batch_of(index: int) -> Batch:
        generator = generator_of(seed, "concept", index)
        members = plan.batch(index)
        x = torch.stack([variants[tile].latents[variant] for tile, variant in members])
        dropped = torch.rand(num_instance, generator=generator) < training.prompt_dropout
        prompts = [
            "" if drop else prompt_of(variants[tile], variant)
            for drop, (tile, variant) in zip(dropped.tolist(), members, strict=True)
        ]
        defect = torch.stack([variants[tile].defect[variant] for tile, variant in members])
        timesteps = stratified_timesteps(num_instance, schedule.num_timesteps, generator)
        if num_prior:
            rows = torch.randint(len(class_x), (num_prior,), generator=generator)
            x = torch.cat([x, class_x[rows]])
            prompts += [class_prompt(config.class_noun)] * num_prior
            defect = torch.cat([defect, torch.zeros(num_prior, *defect.shape[1:], dtype=torch.bool)])
            timesteps = torch.cat([timesteps, stratified_timesteps(num_prior, schedule.num_timesteps, generator)])
        clean = x.float()
        noise = torch.randn(clean.shape, generator=generator)
        return Batch(clean=clean, noise=noise, timesteps=timesteps, prompts=prompts, defect=defect)

    def loss_of(batch: Batch) -> Tensor:
        errors = denoising_errors(batch, predict.of(batch), schedule, training)
        loss = errors[:num_instance].mean()
        if num_prior:
            loss = loss + config.prior_weight * errors[num_instance:].mean()
        return loss

    validation = held_out_batches(validation_variants, schedule.num_timesteps, prompt_of, training.batch_size)

    @torch.no_grad()
    def held_out_loss() -> float:
        errors = [
            denoising_errors(batch, predict.of(batch), schedule, training, weighted=False) for batch in validation
        ]
        return float(torch.cat(errors).mean())

    yield from train(
        {
            f"{part}.{name}": parameter
            for part, module in trained.items()
            for name, parameter in module.named_parameters()
        },
        batch_of,
        loss_of,
        config=training,
        checkpoint=out / "checkpoint",
        recipe=digest_json(
            {
                "phase": "concept",
                "tiles": [tile.digest() for tile in tiles],
                "held_out": [tile.digest() for tile in validation_tiles],
                "base": base_digest,
                "config": config.model_dump(mode="json"),
                "defect_noun": defect_noun,
                "seed": seed,
            }
        ),
        held_out_loss=held_out_loss if validation else None,
        log=out / "log.jsonl",
    )
    save_base_like(base, out / "base", replaced=trained)
    concept = Concept(
        method=config.method,
        token=config.token,
        class_noun=config.class_noun,
        tone_words=config.tone_words,
        base_digest=base_digest,
        weights_digest=digest_folder(out / "base"),
    )
    concept.save(out / "concept.json")
    if num_prior:
        write_tensors(out / CLASS_IMAGES, {"latents": class_x})
    remove_checkpoint(out / "checkpoint")
    yield Finished(digest=concept.weights_digest)


class _Predictor:
    """The UNet with its text encoder, given a batch's prompts."""

    def __init__(self, models: LoadedModels, device: torch.device) -> None:
        self._unet = models.unet
        self._embed = PromptEmbeddings(models.tokenizer, models.text_encoder, device)

    def of(self, batch: Batch) -> Predict:
        """Give the network with the batch's prompts filled in."""

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            return self._unet(noisy, timesteps, encoder_hidden_states=self._embed(batch.prompts)).sample

        return predict
