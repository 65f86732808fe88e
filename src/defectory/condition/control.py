"""Learn the condition: a trainable copy of the frozen, adapted base obeys drivers (paper, section 3.2; Zhang et al.
2023).

L = E |target - f(x_t, t, prompt, control(x_t, t, prompt, driver))|^2 over the control network's weights alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor

from defectory.artifacts.weights import Concept, Control
from defectory.condition.config import ConditionConfig
from defectory.engine.backbones.load import LoadedModels, load_base, load_controlnet
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.backbones.save import save_model, save_pipeline
from defectory.engine.tensors import drivers_to_tensor
from defectory.engine.training.attention import use_plain_attention
from defectory.engine.training.cache import MakeDriver, TileVariants, VariantRecipe, prepare_variants
from defectory.engine.training.checkpoint import remove_checkpoint
from defectory.engine.training.data import BatchPlan, TrainingTile, check_tiles
from defectory.engine.training.embeddings import PromptEmbeddings
from defectory.engine.training.events import Finished, TrainingEvent
from defectory.engine.training.held_out import held_out_batches, held_out_indices
from defectory.engine.training.loop import train
from defectory.engine.training.loss import Batch, Predict, denoising_errors
from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.errors import InputError, WeightsError
from defectory.files import digest_folder, digest_json
from defectory.folders import atomic_folder, remove_leftovers


def learn_condition(
    tiles: Sequence[TrainingTile],
    *,
    concept: Path,
    config: ConditionConfig,
    make_driver: MakeDriver,
    seed: int,
    out: Path,
    device: torch.device | str = "cpu",
    driver_digest: str,
    held_out: Sequence[TrainingTile] = (),
    cache: Path | None = None,
) -> Iterator[TrainingEvent]:
    """Train a control network on an adapted base; writes `controlnet/`, `control.json` and `log.jsonl` under `out`.

    Args:
        tiles: training tiles; those without defects get an empty mask. All of one size.
        concept: phase 1's stage folder (`base/` and `concept.json`).
        config: of the phase.
        make_driver: image uint8 [H,W,3], instances (category id, mask bool [H,W]) and valid_hw to a driver uint8
            [H,W,3].
        seed: of everything drawn.
        out: stage folder; a checkpoint found in it is gone on from.
        device: where to train.
        driver_digest: digest of the driver's configuration and of the classes that decide its colours.
        held_out: tiles of val for a held-out loss; they are never trained on.
        cache: folder for latents and drivers; None means `out/cache`.

    Yields:
        Preparing, Started, Step, Validated, Checkpointed, and Finished last.

    Raises:
        InputError: no tile has a defect, or tiles do not fit the base.
        WeightsError: the concept or its base cannot be used.
        StageError: the loss is not finite, or `out` cannot be written.
    """
    device, cache, training = torch.device(device), cache or out / "cache", config.training
    remove_leftovers(out)
    learned = Concept.load(concept / "concept.json")
    models = load_base(concept / "base", device)
    validation_tiles = [held_out[index] for index in held_out_indices(len(held_out))]
    check_tiles([*tiles, *validation_tiles], multiple_px=models.size_multiple_px)
    defective = [index for index, tile in enumerate(tiles) if tile.instances]
    defect_free = [index for index, tile in enumerate(tiles) if not tile.instances]
    if not defective:
        raise InputError(
            "training tiles", "none has a defect, so there is nothing to obey", "check the split and the tiling"
        )
    recipe = VariantRecipe(
        vae=models.vae,
        vae_digest=digest_folder(concept / "base" / "vae"),
        num_variants=training.variants_per_image,
        seed=seed,
        flip=training.flip,
        precision=training.precision,
        make_driver=make_driver,
        driver_digest=driver_digest,
    )
    variants, validation_variants = yield from prepare_variants(tiles, validation_tiles, recipe, cache=cache)

    schedule = NoiseSchedule(models.scheduler, device)
    control = start_control(models, init=config.init, seed=seed).requires_grad_(True)
    if training.gradient_checkpointing:
        control.enable_gradient_checkpointing()
        models.unet.enable_gradient_checkpointing()
    else:
        use_plain_attention(control, models.unet, num_tokens=variants[0].latents[0, 0].numel(), device=device)
    predict = _Predictor(models, control, device)
    size = training.batch_size
    plan = BatchPlan(
        defective,
        defect_free,
        batch_size=size,
        share=config.defect_free_share,
        num_variants=training.variants_per_image,
        seed=seed,
    )

    def prompt_of(tile: TileVariants, variant: int) -> str:
        tone = tile.tone if learned.tone_words else ""
        return condition_prompt(learned.token, tile.class_names[variant], defect_noun=config.defect_noun, tone=tone)

    def batch_of(index: int) -> Batch:
        generator = generator_of(seed, "condition", index)
        members = [(variants[tile], variant) for tile, variant in plan.batch(index)]
        x = torch.stack([tile.latents[variant] for tile, variant in members]).float()
        dropped = torch.rand(size, generator=generator) < training.prompt_dropout
        prompts = [prompt_of(tile, variant) for tile, variant in members]
        return Batch(
            clean=x,
            noise=torch.randn(x.shape, generator=generator),
            timesteps=stratified_timesteps(size, schedule.num_timesteps, generator),
            prompts=["" if drop else prompt for drop, prompt in zip(dropped.tolist(), prompts, strict=True)],
            defect=torch.stack([tile.defect[variant] for tile, variant in members]),
            drivers=torch.stack([tile.driver(variant) for tile, variant in members]),
        )

    def loss_of(batch: Batch) -> Tensor:
        return denoising_errors(batch, predict.of(batch), schedule, training).mean()

    validation = held_out_batches(validation_variants, schedule.num_timesteps, prompt_of, size)

    @torch.no_grad()
    def held_out_loss() -> float:
        errors = [
            denoising_errors(batch, predict.of(batch), schedule, training, weighted=False) for batch in validation
        ]
        return float(torch.cat(errors).mean())

    yield from train(
        dict(control.named_parameters()),
        batch_of,
        loss_of,
        config=training,
        checkpoint=out / "checkpoint",
        recipe=digest_json(
            {
                "phase": "condition",
                "tiles": [tile.digest() for tile in tiles],
                "held_out": [tile.digest() for tile in validation_tiles],
                "concept": learned.weights_digest,
                "drivers": driver_digest,
                "config": config.model_dump(mode="json"),
                "seed": seed,
            }
        ),
        log=out / "log.jsonl",
        held_out_loss=held_out_loss if validation else None,
    )
    with atomic_folder(out / "controlnet", kind="base") as folder:
        save_model(control, folder)
    result = Control(
        concept_digest=learned.weights_digest,
        driver_config_digest=driver_digest,
        weights_digest=digest_folder(out / "controlnet"),
    )
    result.save(out / "control.json")
    remove_checkpoint(out / "checkpoint")
    yield Finished(digest=result.weights_digest)


def start_control(models: LoadedModels, *, init: str, seed: int) -> ControlNetModel:
    """Give the control network that phase 2 starts from, in float32, on the base's device.

    Args:
        models: the adapted base.
        init: `copy` of the base's encoder, `embedded` for the one that lies beside the base, or `auto`.
        seed: of the layers that are new in a copy.

    Raises:
        WeightsError: `embedded` was asked for and no control network lies beside the base.
    """
    if init == "embedded" and models.controlnet is None:
        raise WeightsError(
            "condition.init", "embedded, but no control network lies beside this base", "set it to copy or auto"
        )
    if models.controlnet is not None and init != "copy":
        return models.controlnet
    widths = (16, 32, 96, 256)
    # one halving per width after the first, so that the driver meets the latents at their size
    halvings = models.latent_factor.bit_length() - 1
    channels = (*widths[:halvings], 64) if halvings < 3 else (*widths, *(256,) * (halvings - 3))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        control: Any = ControlNetModel.from_unet(models.unet, conditioning_embedding_out_channels=channels)
    return control.to(models.unet.device)


def finalize_pipeline(concept: Path, control: Path, out: Path) -> str:
    """Write the finished pipeline, which plain diffusers loads as `StableDiffusionControlNetPipeline`, and give its
    digest.

    Args:
        concept: phase 1's stage folder.
        control: phase 2's stage folder.
        out: pipeline folder, replaced as a whole.

    Raises:
        WeightsError: a part cannot be used.
        StageError: `out` cannot be written.
    """
    models = load_base(concept / "base")
    parts = {
        "vae": models.vae,
        "text_encoder": models.text_encoder,
        "tokenizer": models.tokenizer,
        "unet": models.unet,
        "scheduler": models.scheduler,
        "controlnet": load_controlnet(control / "controlnet"),
    }
    save_pipeline(parts, out)
    return digest_folder(out)


class _Predictor:
    """The frozen base steered by the control network, given a batch's prompts and drivers."""

    def __init__(self, models: LoadedModels, control: ControlNetModel, device: torch.device) -> None:
        self._unet, self._control, self._device = models.unet, control, device
        self._embed = PromptEmbeddings(models.tokenizer, models.text_encoder, device)

    def of(self, batch: Batch) -> Predict:
        """Give the network with the batch's prompts and drivers filled in."""
        assert batch.drivers is not None
        driver = drivers_to_tensor(list(batch.drivers.numpy())).to(self._device)
        context = self._embed(batch.prompts)

        def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
            down, middle = self._control(
                noisy, timesteps, encoder_hidden_states=context, controlnet_cond=driver, return_dict=False
            )
            return self._unet(
                noisy,
                timesteps,
                encoder_hidden_states=context,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
            ).sample

        return predict
