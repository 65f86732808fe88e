"""Checks everything that can be known before the first stage, before anything is written: settings, device, base,
sources, disk and memory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from defectory.config.project import ProjectConfig
from defectory.drivers.kinds import kind_of
from defectory.engine.backbones.facts import FLOW, BaseFacts
from defectory.engine.backbones.known import is_known, resolve_base
from defectory.engine.backbones.verify import verify, verify_layout
from defectory.engine.devices import device_of, num_gpus, usable_device
from defectory.engine.training.share import divided
from defectory.errors import ConfigError, WeightsError
from defectory.memory import machine_memory_bytes
from defectory.runs.graph import State
from defectory.runs.out_of_memory import TRAINING
from defectory.runs.stage import Run, Stage
from defectory.segmentation.models.registry import TAKES_PRETRAINING
from defectory.stages.parts.also_controls import require_also_controls
from defectory.stages.parts.estimate.estimate import Estimate, estimate
from defectory.stages.parts.further_rounds import is_round

SEGMENTERS_GROUP = "segment"
TOKEN_METHODS = ("textual_inversion", "lora_textual_inversion")
UNET_NETWORKS = ("adapter", "hypernetwork")
ROUND = "round"
"""Stands for every further round of drafts."""
READ_BY: Mapping[str, tuple[str, ...]] = {
    "data.path": ("import",),
    "data.image_root": ("import",),
    "data.defect_free": ("import",),
    "data.index": ("import",),
    "data.class_colours": ("import",),
    "masks.expert": ("learn-masks", "plan", ROUND),
    "masks.regions": ("plan", ROUND),
    "drivers.drawings": ("learn-condition", "calibrate", "synthesize", ROUND),
}
"""Settings that name the user's files or folders, and the stages that read them."""


def check_before_all(
    run: Run, stages: Sequence[Stage], selected: Sequence[Stage], states: Mapping[str, State], stale: Collection[str]
) -> tuple[str, ...]:
    """Check a project before the first stage, in seconds at most, and return remarks. Nothing is written.

    Only what the stages that have to run need is checked: a source on a disk that is not mounted is no error for a
    finished run.

    Args:
        run: settings and folders.
        stages: of the run.
        selected: the stages asked for.
        states: of all stages, by name; empty if they cannot be told.
        stale: names of the selected stages that have to run.

    Raises:
        ConfigError: a setting that cannot work, a source that is not there, a device that cannot be used, or a disk
            that is too small.
        WeightsError: the base is missing, damaged, or of a family that is not supported; or a network of
            `synthesis.also_controls` does not fit it.
    """
    config = run.config
    kind_of(config.drivers.kind)
    remarks: list[str] = []
    to_run = {ROUND if is_round(name) else name for name in stale}
    for setting, readers in READ_BY.items():
        if any(name in to_run for name in readers):
            _require_source(run, setting)
    if to_run & {"calibrate", "synthesize", "finalize", ROUND}:
        require_also_controls(run.sources, config)
    computes = any(not stage.is_preparation for stage in selected if stage.name in stale)
    if computes and config.device not in ("auto", "cpu"):
        usable_device(config.device)
    if ROUND in to_run or any(stage.group == SEGMENTERS_GROUP for stage in selected if stage.name in stale):
        _require_weights(run)
        _require_heeding(config)
    if any(stage.reads_base for stage in selected if stage.name in stale):
        facts = verify(resolve_base(config.base))
        _require_tile_size(config, facts)
        _require_supported(config, facts)
        if facts.is_experimental:
            remarks.append(
                f"bases of {facts.family} are experimental: tested with tiny networks alone; time and memory are "
                "not reckoned"
            )
    elif not is_known(config.base):
        _verify_if_there(config.base)
    if computes:
        remarks += _remarks_on_precision(config)
    _require_shares(config, [stage.name for stage in selected if stage.name in stale and stage.trains_together])
    if not stale:
        return ()
    found = _estimate_of_sizes(run, stages, selected, states, computes=computes)
    _require_disk(found)
    return (*remarks, *_remarks(found))


def _require_weights(run: Run) -> None:
    """Require that initial weights of segmenters are there, and that the family takes some."""
    segmentation = run.config.segmentation
    if segmentation.weights is None:
        if segmentation.model == "mask2former":
            raise ConfigError(
                "segmentation.weights",
                "is not set; the family mask2former has no weights of its own",
                "name a folder with config.json and model.safetensors",
            )
        return
    if segmentation.model == "light":
        raise ConfigError(
            "segmentation.weights",
            "the family light has weights of its own",
            'leave the setting out, or set segmentation.model = "resnet50"',
        )
    path = run.sources.path(segmentation.weights)
    if not path.exists():
        raise ConfigError(
            f"segmentation.weights {path}", "no such file or folder", "correct the path, or leave the setting out"
        )
    if segmentation.model in TAKES_PRETRAINING and not (path / "model.safetensors").is_file():
        raise ConfigError(
            f"segmentation.weights {path}",
            f"the family {segmentation.model} takes the folder of a pretraining, and this is none",
            'set segmentation.model = "resnet50" for weights of torchvision, or leave the setting out',
        )


def _require_heeding(config: ProjectConfig) -> None:
    """Require a family that can leave out doubtful pixels; families of other packages are asked before training."""
    if config.curation.ignore and config.segmentation.model == "mask2former":
        found = "the family mask2former cannot leave doubtful pixels out of its loss"
        raise ConfigError("curation.ignore", found, "set it to [], or set another segmentation.model")


def _require_shares(config: ProjectConfig, stages: Sequence[str]) -> None:
    """Require that processes which train together share each step equally, and have a GPU each.

    Args:
        config: of the project.
        stages: that have to run, and in which processes train together.
    """
    wanted = config.training_processes
    if wanted == 1 or not stages:
        return
    trainings = {"learn-concept": config.concept.training, "learn-condition": config.condition.training}
    steps = {
        TRAINING[stage]: (trainings[stage].gradient_accumulation_steps, trainings[stage].batch_size)
        for stage in stages
        if stage in trainings
    }
    for section, (micro_batches, size) in steps.items():
        if divided(micro_batches, size, wanted) is None:
            fitting = max(n for n in range(1, wanted) if all(divided(*step, n) is not None for step in steps.values()))
            larger = next(n for n in range(size, size + wanted) if divided(micro_batches, n, wanted) is not None)
            found = f"{wanted} processes cannot share a step of {micro_batches} x {size} tiles equally"
            raise ConfigError("training_processes", found, f"set it to {fitting}, or {section}.batch_size to {larger}")
    device = device_of(config.device)
    if device not in ("cpu", "cuda"):
        found = f"{wanted} processes cannot train together on the device {device}"
        raise ConfigError("training_processes", found, 'set it to 1, or set device to "cuda" or "cpu"')
    if device == "cuda" and wanted > (count := num_gpus()):
        found = f"{wanted} processes, but this machine shows {count} GPU{'s' if count > 1 else ''}"
        raise ConfigError("training_processes", found, f"set it to {count}, one process per GPU")


def _require_source(run: Run, setting: str) -> None:
    section, _, name = setting.partition(".")
    value = getattr(getattr(run.config, section), name)
    if value is None:
        return
    path = run.sources.path(value)
    try:
        is_there = path.exists()
    except (OSError, RuntimeError, ValueError):  # a link to itself
        is_there = False
    if not is_there:
        raise ConfigError(
            f"{setting} {path}", "no such file or folder", f"set {setting} to one that is there, or mount its disk"
        )


def _verify_if_there(base: str) -> None:
    """Check family and configuration of a base that is not needed now; it may be missing."""
    try:
        folder = resolve_base(base)
    except WeightsError:
        return
    verify_layout(folder)


def _require_supported(config: ProjectConfig, facts: BaseFacts) -> None:
    """Require methods that the base's family supports, before phase 1 has taken hours."""
    found, todo, where = "", "", ""
    if not facts.takes_new_tokens and config.concept.method in TOKEN_METHODS:
        where, found, todo = "concept.method", config.concept.method, "set it to dreambooth, lora or none"
    elif not facts.has_unet and config.condition.network in UNET_NETWORKS:
        where, found, todo = "condition.network", config.condition.network, "set it to controlnet"
    elif not facts.has_unet and config.condition.capacity < 1:
        where, found, todo = "condition.capacity", f"{config.condition.capacity:g}", "leave it out"
    elif facts.prediction_type == FLOW and config.distillation.enabled:
        where, found, todo = "distillation.enabled", "true", "set it to false"
    elif facts.prediction_type == FLOW and config.synthesis.scheduler == "ddpm":
        where, found, todo = "synthesis.scheduler", "ddpm", "set it to base, euler, ddim or dpm-solver"
    if where:
        raise ConfigError(where, f"{found}, which bases of {facts.family} do not support", todo)


def _require_tile_size(config: ProjectConfig, facts: BaseFacts) -> None:
    """Require a tile side that the base's networks can halve often enough, and that is not too large for them."""
    tile_px, multiple = config.tiling.tile_px, facts.size_multiple_px
    if tile_px is not None and facts.most_px is not None and tile_px > facts.most_px:
        raise ConfigError("tiling.tile_px", f"{tile_px}, but this base draws {facts.most_px} at most", "lower it")
    if tile_px is not None and tile_px % multiple:
        near = max(multiple, round(tile_px / multiple) * multiple)
        found = f"{tile_px} is no multiple of {multiple}, which this base needs"
        raise ConfigError("tiling.tile_px", found, f"set it to {near}")


def _estimate_of_sizes(
    run: Run, stages: Sequence[Stage], selected: Sequence[Stage], states: Mapping[str, State], *, computes: bool
) -> Estimate:
    config = run.config
    # `auto` is looked up with torch, which takes seconds to load and which preparation alone does not need
    device = device_of(config.device) if computes and config.device != "cpu" else "cpu"
    return estimate(run, stages, selected, states, device=device, speed=None)


def _require_disk(found: Estimate) -> None:
    free, needed = found.free_bytes, found.disk_bytes
    if free is not None and free < needed:
        raise ConfigError(
            found.folder,
            f"its disk has {free / 1e6:,.0f} MB free, about {needed / 1e6:,.0f} MB are needed",
            "free space, or set `out` to a folder on a larger disk; nothing was written",
        )


def _remarks_on_precision(config: ProjectConfig) -> list[str]:
    """Return a remark if bf16 was asked for on a device that has no instructions for it."""
    chosen = {
        "concept.training": config.concept.training.mixed_precision,
        "condition.training": config.condition.training.mixed_precision,
        "synthesis": config.synthesis.mixed_precision,
        "segmentation": config.segmentation.mixed_precision,
    }
    asked = [f"{section}.mixed_precision" for section, precision in chosen.items() if precision == "bf16"]
    if not asked:
        return []
    from defectory.engine.precision import has_bf16

    if has_bf16(device_of(config.device).partition(":")[0]):
        return []
    return [f"{', '.join(asked)} = bf16: the processor has no instructions for it, so it may take many times as long"]


def _remarks(found: Estimate) -> list[str]:
    has = machine_memory_bytes()
    if has is None or found.memory_bytes <= has:
        return []
    peak = max(found.stages, key=lambda stage: stage.memory_bytes)
    todo = "num_processes=1" if peak.is_side_by_side else "smaller batches (batch_size) or tiles (tiling.tile_px)"
    if peak.num_together > 1:
        todo = "training_processes=1"
    return [
        f"stage {peak.stage} needs about {found.memory_bytes / 1e9:.1f} GB of memory, this machine has "
        f"{has / 1e9:.1f} GB; set {todo}"
    ]
