"""Reckons what networks have to do: training, encoding, drawing."""

from __future__ import annotations

from defectory.condition.config import ConditionConfig
from defectory.engine.backbones.workload import BaseWorkload, Workload
from defectory.engine.config import MixedPrecision
from defectory.engine.training.config import TrainingConfig
from defectory.engine.training.share import divided
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.situation import Situation, StageWork
from defectory.synthesis.config import SynthesisConfig, num_acting

MAX_HELD_OUT = 32
GUIDED_SHARE = 0.7
"""Share of the denoising steps in which drivers are guided."""
FEW_TOKENS = 32 * 32
"""Up to so many latent pixels attention is plain on a CPU, and keeps its maps."""
CHUNK_LATENT_PX = {"cpu": 8 * 32 * 32}
DECODED_LATENT_PX_ELSEWHERE, CHUNK_LATENT_PX_ELSEWHERE = 64 * 64, 8 * 64 * 64
"""Latent pixels that are decoded, and that the networks process, at once."""


def copies_encoder(condition: ConditionConfig) -> bool:
    """Check that the condition network is as large as the base's encoder, whose size is known."""
    return condition.network == "controlnet" and condition.capacity == 1


def training_work(
    of: Situation,
    training: TrainingConfig,
    trained: Workload,
    *,
    frozen: Workload | None = None,
    passed: Workload | None = None,
    together: int = 1,
) -> StageWork:
    """Reckon the steps of a phase.

    Args:
        of: settings, data and base.
        training: of the phase.
        trained: networks whose weights train.
        frozen: networks that only run forward.
        passed: the part of the frozen networks that gradients pass through.
        together: processes that share each step.
    """
    frozen, passed = frozen or Workload(), passed or Workload()
    per_tile = costs.PASSES * trained.multiply_adds + frozen.multiply_adds + passed.multiply_adds
    if training.gradient_checkpointing:
        per_tile *= costs.RECOMPUTED
    tiles = training.num_steps * training.gradient_accumulation_steps * training.batch_size
    steps = costs.MUON * training.num_steps * trained.muon_multiply_adds if training.optimizer == "muon" else 0
    weights = costs.WEIGHT_BYTES * trained.num_parameters
    still = _frozen_bytes(of, training.mixed_precision) * frozen.num_parameters
    _, sharing = divided(training.gradient_accumulation_steps, training.batch_size, together) or (1, 1)
    at_a_time = -(-training.batch_size // sharing)
    batch = at_a_time * _kept_bytes(of, training, trained + passed)
    # weights and gradients; the average, and a copy while it is validated
    averaged, moments = training.ema_decay is not None, costs.MOMENTS[training.optimizer]
    state = (2 + moments + 2 * averaged) * weights + still + batch
    own = costs.NETWORK_OVERHEAD_BYTES + (state if of.on_cpu else weights + still)
    return StageWork(
        multiply_adds=costs.TRAIN * tiles * per_tile + steps,
        seconds=loaded_s(trained + frozen),
        on_device=True,
        # the process that starts the others holds no network
        memory_bytes=own if together == 1 else together * (costs.PROCESS_BYTES + own),
        device_bytes=0 if of.on_cpu else state,
        # two checkpoints are on disk while the new one replaces the old one
        passing_bytes=2 * (1 + moments + averaged) * weights,
        num_together=together,
        tiles_at_a_time=at_a_time,
    )


def _frozen_bytes(of: Situation, mixed_precision: MixedPrecision) -> int:
    """Return the bytes of a frozen network's weight."""
    from defectory.engine.precision import uses_bf16

    return costs.FROZEN_BYTES if uses_bf16(mixed_precision, "cpu" if of.on_cpu else "cuda") else costs.WEIGHT_BYTES


def _kept_bytes(of: Situation, training: TrainingConfig, networks: Workload) -> float:
    """Return the bytes that the backward pass of one tile keeps."""
    if training.gradient_checkpointing:
        return costs.ACTIVATION_BYTES * (networks.num_kept + networks.largest_block)
    base = of.base
    is_plain = of.on_cpu and base is not None and base.latent_px <= FEW_TOKENS
    return costs.ACTIVATION_BYTES * networks.num_activations + (costs.SCORE_BYTES * networks.num_scores) * is_plain


def loaded_s(networks: Workload) -> float:
    """Return the seconds to load networks, and to save them."""
    return costs.LOADED_S + costs.LOADED_S_PER_PARAMETER * networks.num_parameters


def held_out(of: Situation) -> int:
    """Return the tiles of a held-out loss."""
    return min(MAX_HELD_OUT, of.data.num_val_tiles)


def latents_work(of: Situation, base: BaseWorkload, training: TrainingConfig) -> StageWork:
    """Reckon the latents of augmented tiles."""
    count = of.data.num_phase_tiles * training.variants_per_image + held_out(of)
    return StageWork(
        multiply_adds=costs.ENCODE * count * base.encoder.multiply_adds,
        cache_bytes=costs.LATENT_BYTES * count * base.latent_values,
    )


def validation_multiply_adds(of: Situation, training: TrainingConfig, networks: Workload) -> float:
    """Return the multiply-adds of a training's held-out losses."""
    rounds = -(-training.num_steps // training.validate_every)
    return costs.DRAW * rounds * held_out(of) * networks.multiply_adds


def drawing_work(of: Situation, synthesis: SynthesisConfig, num_drafts: int, *, num_halves: int) -> StageWork | None:
    """Reckon drafts.

    Args:
        of: settings, data and base.
        synthesis: how they are drawn.
        num_drafts: how many.
        num_halves: 2 if each is drawn without its mask too.
    """
    base = of.base
    if base is None or not copies_encoder(of.config.condition) or any(kind != "controlnet" for kind in of.also):
        return None
    guides_mask = synthesis.mask_guidance != 1.0 or synthesis.mask_spill != 1.0
    guides_driver = GUIDED_SHARE if synthesis.driver_guidance > 1.0 else 0.0
    steered = num_halves * (2 if synthesis.guidance_scale > 1.0 else 1) + max(float(guides_mask), guides_driver)
    per_step = (
        steered * (base.denoiser + base.control).multiply_adds
        + guides_driver * num_halves * base.denoiser.multiply_adds
    )
    further = sum(
        num_acting(synthesis.num_inference_steps, start=one.start, end=one.end)
        for one in synthesis.also_controls
        if one.scale > 0
    )
    per_draft = synthesis.num_inference_steps * per_step + num_halves * base.decoder.multiply_adds
    per_draft += further * steered * base.control.multiply_adds
    decoded_px = CHUNK_LATENT_PX["cpu"] if of.on_cpu else DECODED_LATENT_PX_ELSEWHERE
    decoded, drawn = max(1, decoded_px // base.latent_px), max(1, CHUNK_LATENT_PX_ELSEWHERE // base.latent_px)
    drawing, coding = base.denoiser + base.control, base.text_encoder + base.encoder + base.decoder
    for _ in of.also:
        drawing += base.control
    networks = drawing + base.decoder
    weights = _frozen_bytes(of, synthesis.mixed_precision) * drawing.num_parameters
    weights += costs.WEIGHT_BYTES * coding.num_parameters
    # decoding comes after drawing, and the networks' maps are then free again
    while_decoding = costs.DECODED_COPIES * costs.WEIGHT_BYTES * decoded * base.decoder.largest_block
    while_drawing = costs.DRAWN_COPIES * drawn * base.denoiser.largest_block
    state = weights + (while_decoding if of.on_cpu else max(while_decoding, while_drawing))
    return StageWork(
        multiply_adds=costs.DRAW * num_drafts * per_draft,
        seconds=loaded_s(networks),
        on_device=True,
        memory_bytes=costs.NETWORK_OVERHEAD_BYTES + (state if of.on_cpu else weights),
        device_bytes=0 if of.on_cpu else state,
        file_bytes=costs.DRAFT_FILE_BYTES * num_drafts * of.tile_px**2,
    )
