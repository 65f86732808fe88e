"""Phase 2: learns the condition (paper, section 3.2).

    L = E |target - f(x_t, t, prompt, driver)|^2

f is the frozen backbone, steered by a condition network; only that network trains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defectory.artifacts.weights import Concept, Control
from defectory.condition.config import ConditionConfig
from defectory.condition.networks import CONDITION_NETWORKS
from defectory.condition.networks.network import ConditionNetwork
from defectory.condition.reward import FidelityReward
from defectory.engine.backbones.backbone import Backbone
from defectory.engine.backbones.embeddings import PromptEmbeddings
from defectory.engine.backbones.load import load_base
from defectory.engine.backbones.prompts import condition_prompt
from defectory.engine.tensors import drivers_to_tensor
from defectory.engine.training.cache import MakeDriver, TileVariants, VariantRecipe, prepare_variants
from defectory.engine.training.checkpoint import remove_checkpoint
from defectory.engine.training.data import BatchPlan, TrainingTile
from defectory.engine.training.flow import schedule_of
from defectory.engine.training.held_out import held_out_batches
from defectory.engine.training.loss import Batch, Counterparts
from defectory.engine.training.noise import NoiseSchedule, generator_of, stratified_timesteps
from defectory.engine.training.phase import MemberSource, Phase, check_phase_tiles, make_ready, run_phase
from defectory.engine.training.team import ALONE, Team
from defectory.errors import ConfigError, InputError
from defectory.events import Work
from defectory.files import digest_folder, digest_json
from defectory.folders.swap import atomic_folder, remove_leftovers

LoadBackbone = Callable[[Path, torch.device], Backbone]
"""Maps phase 1's stage folder and a device to the backbone that knows the concept."""


def load_adapted_base(concept: Path, device: torch.device | str = "cpu") -> Backbone:
    """Load the backbone of a concept that was saved as a whole base."""
    return load_base(concept / "base", device)


def learn_condition(
    tiles: Sequence[TrainingTile],
    *,
    concept: Path,
    config: ConditionConfig,
    make_driver: MakeDriver,
    defect_noun: str = "",
    flip: bool = True,
    seed: int,
    out: Path,
    device: torch.device | str = "cpu",
    driver_digest: str,
    held_out: Sequence[TrainingTile] = (),
    cache: Path | None = None,
    load_backbone: LoadBackbone = load_adapted_base,
    team: Team = ALONE,
) -> Work[Control]:
    """Train a condition network on a backbone that knows the concept, and return it.

    Writes the network's folder (`controlnet/` for a ControlNet), `control.json` and `log.jsonl` to `out`.

    Args:
        tiles: training tiles, all of one size; those without defects get an empty mask.
        concept: phase 1's stage folder.
        config: of the phase.
        make_driver: image uint8 [H,W,3], instances (category id, mask bool [H,W]) and valid_hw to a driver uint8
            [H,W,3].
        defect_noun: word after each class name in prompts, as in phase 1.
        flip: mirror augmented variants, and rotate square ones by quarter turns.
        seed: of all random numbers.
        out: stage folder; training resumes from a checkpoint found there.
        device: where to train.
        driver_digest: digest of the driver's configuration and of the classes that decide its colours.
        held_out: val tiles for a held-out loss; they are never trained on.
        cache: folder for latents and drivers; None means `out/cache`.
        load_backbone: loads concepts that are not a whole base.
        team: the processes that train together, all with the same arguments but for the device; the main one writes.

    Raises:
        InputError: no tile has a defect, or tiles do not fit the base.
        ConfigError: the network is unknown, or does not have a setting that is set.
        WeightsError: the concept or its base cannot be used.
        StageError: the loss is not finite, `out` cannot be written, or another process of the team has ended.
    """
    cache, training = cache or out / "cache", config.training
    if team.is_main:
        remove_leftovers(out)
    learned = Concept.load(concept / "concept.json")
    kind: type[ConditionNetwork] = CONDITION_NETWORKS.get(config.network)
    further = _further_settings(kind, config)
    backbone = load_backbone(concept, torch.device(device))
    held_out = check_phase_tiles(tiles, held_out, backbone)
    plan = _plan(tiles, config, seed=seed)
    variant_recipe = VariantRecipe.of(
        backbone,
        training,
        flip=flip,
        seed=seed,
        make_driver=make_driver,
        driver_digest=driver_digest,
        with_empty_drivers=config.fidelity_reward > 0,
    )
    with team.main_first():
        variants, held_out_variants = yield from prepare_variants(tiles, held_out, variant_recipe, cache=cache)
    schedule = schedule_of(backbone.scheduler, backbone.device)
    network = kind.start(backbone, init=config.init, seed=seed, **further)
    network.module.requires_grad_(True)
    backbone.move_frozen_encoders("cpu")
    make_ready(network.module, backbone.denoiser, training=training, latents=variants[0].latents)

    def prompt_of(tile: TileVariants, variant: int) -> str:
        return prompt(tile, tile.class_names[variant])

    def prompt(tile: TileVariants, class_names: Sequence[str]) -> str:
        tone = tile.tone if learned.tone_words else ""
        return condition_prompt(learned.instance_token, class_names, defect_noun=defect_noun, tone=tone)

    source = MemberSource(
        plan=plan,
        variants=variants,
        prompt_of=prompt_of,
        proportion_empty_prompts=training.proportion_empty_prompts,
        bare_prompt_of=lambda tile, _: prompt(tile, ()),
    )
    embed = PromptEmbeddings(backbone)
    phase = Phase(
        parameters=dict(network.module.named_parameters()),
        batch_of=partial(_batch, source, schedule, seed, _rewarded_from(config)),
        predict=partial(_predict, backbone, network, embed),
        total=torch.mean,
        schedule=schedule,
        held_out=held_out_batches(held_out_variants, schedule.num_timesteps, prompt_of, training.batch_size),
        training=training,
        further=_reward(config, schedule, backbone, network, embed),
    )
    named = {"concept": learned.weights_digest, "drivers": driver_digest, "defect_noun": defect_noun}
    recipe = digest_json({**named, **_recipe(tiles, held_out, config), "flip": flip, "seed": seed})
    yield from run_phase(phase, out=out, recipe=recipe, team=team)
    return _save(network, config.network, learned, driver_digest=driver_digest, out=out, team=team)


NETWORK_SETTINGS = ("capacity", "hypernetwork_rank")
"""Settings of the section that only some networks have."""


def _further_settings(kind: Any, config: ConditionConfig) -> dict[str, Any]:
    """Return the settings that a network's `start` takes besides `init` and `seed`.

    Raises:
        ConfigError: another network's setting is set.
    """
    named: tuple[str, ...] = getattr(kind, "settings", ())
    for name in NETWORK_SETTINGS:
        value = getattr(config, name)
        if name not in named and value != ConditionConfig.model_fields[name].default:
            raise ConfigError(
                f"condition.{name}", f"{value}, but the network {config.network} has no such setting", "leave it out"
            )
    return {name: getattr(config, name) for name in named}


def _recipe(
    tiles: Sequence[TrainingTile], held_out: Sequence[TrainingTile], config: ConditionConfig
) -> dict[str, object]:
    return {
        "phase": "condition",
        "tiles": [tile.digest() for tile in tiles],
        "held_out": [tile.digest() for tile in held_out],
        "config": config.model_dump(mode="json"),
    }


def _save(
    network: ConditionNetwork, name: str, learned: Concept, *, driver_digest: str, out: Path, team: Team
) -> Control:
    """Write the network in the main process, and return its description in all."""
    if not team.is_main:
        team.wait()
        return Control.load(out / "control.json")
    with atomic_folder(out / network.folder, kind="base") as folder:
        network.save(folder)
    control = Control(
        network=name,
        concept_digest=learned.weights_digest,
        driver_config_digest=driver_digest,
        weights_digest=digest_folder(out / network.folder),
    )
    control.save(out / "control.json")
    remove_checkpoint(out / "checkpoint")
    team.wait()
    return control


def _plan(tiles: Sequence[TrainingTile], config: ConditionConfig, *, seed: int) -> BatchPlan:
    defective = [index for index, tile in enumerate(tiles) if tile.instances]
    defect_free = [index for index, tile in enumerate(tiles) if not tile.instances]
    if not defective:
        raise InputError(
            "training tiles", "none has a defect, so there is nothing to obey", "check the split and the tiling"
        )
    return BatchPlan(
        defective,
        defect_free,
        batch_size=config.training.batch_size,
        share=config.defect_free_share,
        num_variants=config.training.variants_per_image,
        seed=seed,
    )


def _rewarded_from(config: ConditionConfig) -> float:
    """Return the index of the first batch that gets the fidelity reward; infinite if none does."""
    training = config.training
    if config.fidelity_reward == 0:
        return math.inf
    return int(config.fidelity_reward_start * training.num_steps) * training.gradient_accumulation_steps


def _reward(
    config: ConditionConfig,
    schedule: NoiseSchedule,
    backbone: Backbone,
    network: ConditionNetwork,
    embed: PromptEmbeddings,
) -> FidelityReward | None:
    if config.fidelity_reward == 0:
        return None

    def predict(given: Counterparts, noisy: Tensor, timesteps: Tensor) -> Tensor:
        drivers = drivers_to_tensor(list(given.drivers.numpy())).to(noisy.device)
        return network.predict(backbone, noisy, timesteps, embed(given.prompts), drivers)

    return FidelityReward(
        weight=config.fidelity_reward,
        max_timestep=round(config.fidelity_reward_max_noise * schedule.num_timesteps),
        schedule=schedule,
        predict=predict,
        mixed_precision=config.training.mixed_precision,
    )


def _batch(source: MemberSource, schedule: NoiseSchedule, seed: int, rewarded_from: float, index: int) -> Batch:
    """Make the batch of an index."""
    generator = generator_of(seed, "condition", index)
    members = source.members(index, generator, with_counterparts=index >= rewarded_from)
    noise = torch.randn(members.latents.shape, generator=generator)
    return Batch(
        clean=members.latents,
        noise=noise,
        timesteps=stratified_timesteps(len(noise), schedule.num_timesteps, generator),
        prompts=members.prompts,
        defect=members.defect,
        drivers=members.drivers,
        without=members.without,
    )


def _predict(
    backbone: Backbone,
    network: ConditionNetwork,
    embed: PromptEmbeddings,
    batch: Batch,
    noisy: Tensor,
    timesteps: Tensor,
) -> Tensor:
    """Predict noise or velocity for a batch with its prompts and drivers."""
    assert batch.drivers is not None
    drivers = drivers_to_tensor(list(batch.drivers.numpy())).to(noisy.device)
    return network.predict(backbone, noisy, timesteps, embed(batch.prompts), drivers)
