"""Estimates the stages that would run: seconds, memory and disk, per stage and in all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from defectory.config.project import ProjectConfig
from defectory.engine.backbones.known import resolve_base
from defectory.engine.backbones.verify import verify_layout
from defectory.engine.backbones.workload import base_workload
from defectory.engine.devices import device_of
from defectory.engine.speed import Speed, measure_speed
from defectory.errors import ConfigError, DefectoryError, WeightsError
from defectory.files import DRAWN_NAME, read_manifest
from defectory.runs.executors import runs_side_by_side, shares
from defectory.runs.graph import TO_RESUME, UP_TO_DATE, State, select, states_of
from defectory.runs.stage import Run, Stage, work_folder
from defectory.stages.parts.also_controls import also_networks
from defectory.stages.parts.estimate import costs
from defectory.stages.parts.estimate.facts import DataFacts, facts_of
from defectory.stages.parts.estimate.situation import Situation, StageWork
from defectory.stages.parts.estimate.work import work_of

CHECKPOINT = "checkpoint/state.safetensors"
FILES_PER_DRAFT = 3
CORRECTIONS = (0.2, 5.0)
"""A stage's own measured speed corrects its estimate within these bounds."""
COPIED_PARTS = ("vae", "tokenizer", "scheduler", "controlnet")
NOT_RECKONED = "the base's family is experimental, not reckoned"
OF_DATA, NOT_MEASURED, UNKNOWN = "depends on the data", "not measured on this device", "no estimate"


@dataclass(frozen=True, kw_only=True)
class StageEstimate:
    """What one stage takes; all 0 if it is up to date.

    Attributes:
        stage: its name.
        seconds: until it is done; None if that is not known.
        why: why the seconds are not known; else empty.
        memory_bytes: of all processes at its peak.
        device_bytes: of a GPU's memory at its peak, the same on each GPU; 0 on a CPU.
        file_bytes: of files that stay.
        passing_bytes: of files that are removed before it ends, such as checkpoints.
        is_side_by_side: stages of its group run at the same time; memory is that of all of them.
        num_together: processes that train it together, one per GPU.
        tiles_at_a_time: that each of these trains on; 0 of a stage that does not train on tiles.
    """

    stage: str
    seconds: float | None = 0.0
    why: str = ""
    memory_bytes: int = 0
    device_bytes: int = 0
    file_bytes: int = 0
    passing_bytes: int = 0
    is_side_by_side: bool = False
    num_together: int = 1
    tiles_at_a_time: int = 0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a run would take.

    Attributes:
        stages: those asked for, in order.
        seconds: of all stages whose seconds are known; stages that run side by side count once.
        device: `cpu`, or the GPU.
        folder: the run folder.
        free_bytes: of the disk that holds it; None if that cannot be told.
        is_counted: the data have been read; otherwise their size is guessed from the number of image files.
    """

    stages: tuple[StageEstimate, ...]
    seconds: float
    device: str
    folder: Path
    free_bytes: int | None
    is_counted: bool

    @property
    def memory_bytes(self) -> int:
        """Return the memory at the peak."""
        return max((stage.memory_bytes for stage in self.stages), default=0)

    @property
    def device_bytes(self) -> int:
        """Return the GPU memory at the peak; 0 on a CPU."""
        return max((stage.device_bytes for stage in self.stages), default=0)

    @property
    def disk_bytes(self) -> int:
        """Return the most bytes that are on disk at a time: files that stay, and a stage's passing ones."""
        most = stay = 0
        for stage in self.stages:
            stay += stage.file_bytes
            most = max(most, stay + stage.passing_bytes)
        return most

    @property
    def unknown(self) -> dict[str, list[str]]:
        """Return the stages whose seconds are not known, by the reason."""
        found: dict[str, list[str]] = {}
        for stage in self.stages:
            if stage.seconds is None:
                found.setdefault(stage.why, []).append(stage.stage)
        return found


def estimate(
    run: Run,
    stages: Sequence[Stage],
    selected: Sequence[Stage],
    states: Mapping[str, State],
    *,
    device: str,
    speed: Speed | None,
) -> Estimate:
    """Estimate stages; those that are up to date count as nothing.

    Args:
        run: settings and folders.
        stages: of the run.
        selected: the stages asked for, in order.
        states: of all stages, by name; empty if they cannot be told.
        device: `cpu`, or the GPU that networks run on.
        speed: of the CPU; None leaves seconds out.
    """
    situation = _situation(run, states, device)
    stale = [stage for stage in selected if stage.name not in states or states[stage.name].state != UP_TO_DATE]
    num_threads = speed.num_threads if speed is not None else _num_threads(run.config)
    beside = {
        group: _Beside.of(run.config, _group(stages, group), _group(stale, group), num_threads, situation.on_cpu)
        for group in {stage.group for stage in stale if stage.group}
    }
    found: list[StageEstimate] = []
    for stage in selected:
        if stage not in stale:
            found.append(StageEstimate(stage=stage.name))
            continue
        work = work_of(stage, situation)
        if work is None:
            why = UNKNOWN if situation.base is not None else situation.why_no_base
            found.append(StageEstimate(stage=stage.name, seconds=None, why=why))
            continue
        together = beside.get(stage.group, _Beside(num_processes=1, num_threads=num_threads, all_threads=num_threads))
        seconds, why = _seconds_and_why(run, stage, states, situation, work, together, speed)
        found.append(
            StageEstimate(
                stage=stage.name,
                seconds=seconds,
                why=why,
                memory_bytes=round(together.memory_of(work)),
                device_bytes=round(work.device_bytes),
                file_bytes=round(work.file_bytes + work.cache_bytes),
                # of a group, so many checkpoints exist at a time
                passing_bytes=round(work.passing_bytes * together.num_processes),
                is_side_by_side=together.num_processes > 1,
                num_together=work.num_together,
                tiles_at_a_time=work.tiles_at_a_time,
            )
        )
    return Estimate(
        stages=tuple(found),
        seconds=_total(selected, found, beside),
        device=device,
        folder=run.folder,
        free_bytes=free_bytes(run.folder),
        is_counted=situation.data.is_read,
    )


def estimate_run(run: Run, stages: Sequence[Stage], *, only: Sequence[str] | None = None) -> Estimate:
    """Estimate the stages of a run, and time this machine unless they are all up to date.

    Args:
        run: settings and folders.
        stages: of the run.
        only: names of stages or groups; None for all.

    Raises:
        ConfigError: an unknown stage, or a device that cannot be used.
    """
    selected, states, config = list(stages) if only is None else select(stages, only), dict[str, State](), run.config
    with suppress(ConfigError):
        states = states_of(run, stages)
    stale = [stage for stage in selected if stage.name not in states or states[stage.name].state != UP_TO_DATE]
    if not stale:
        return estimate(run, stages, selected, states, device="cpu", speed=None)
    device = "cpu" if all(stage.is_preparation for stage in stale) else device_of(config.device)
    speed = measure_speed(threads=config.threads, mixed_precision=config.concept.training.mixed_precision)
    return estimate(run, stages, selected, states, device=device, speed=speed)


def free_bytes(folder: Path) -> int | None:
    """Return the free bytes of the disk that holds a folder, which may not exist yet; None if that cannot be told."""
    try:
        place = next((place for place in (folder, *folder.absolute().parents) if place.is_dir()), None)
        return None if place is None else shutil.disk_usage(place).free
    except OSError:
        return None


def _group(stages: Sequence[Stage], name: str) -> list[Stage]:
    return [stage for stage in stages if stage.group == name]


@dataclass(frozen=True, kw_only=True)
class _Beside:
    """How many stages of a group run side by side, and with how many threads each, of how many."""

    num_processes: int
    num_threads: int
    all_threads: int

    @classmethod
    def of(
        cls, config: ProjectConfig, group: Sequence[Stage], stale: Sequence[Stage], threads: int, on_cpu: bool
    ) -> _Beside:
        num_processes, num_threads = shares(config, len(group), threads)
        if not runs_side_by_side(config, num_processes, on_cpu=on_cpu):
            return cls(num_processes=1, num_threads=threads, all_threads=threads)
        return cls(num_processes=min(num_processes, len(stale)), num_threads=num_threads, all_threads=threads)

    def seconds_of(self, stage: Stage, work: StageWork, speed: Speed) -> float:
        """Return the seconds of one stage while the others run beside it."""
        serial = costs.SERIAL_SHARE
        spread = work.spread_seconds * (serial + (1 - serial) / self.num_threads)
        started = costs.STARTED_S if self.num_processes > 1 else 0.0
        reference = costs.REFERENCE_SPEED if speed.is_bf16 else costs.REFERENCE_SPEED_FP32
        times = 1.0 if speed.is_bf16 else costs.FP32_TIMES.get(stage.group or stage.name, 1.0)
        own = work.multiply_adds / speed.all + (work.seconds + spread + started) * reference / speed.one
        return times * own * max(1.0, self.num_processes * self.num_threads / self.all_threads)

    def memory_of(self, work: StageWork) -> float:
        """Return the bytes of all processes."""
        one = costs.PROCESS_BYTES + work.memory_bytes
        return one if self.num_processes == 1 else costs.PARENT_BYTES + self.num_processes * one


def _total(stages: Sequence[Stage], found: Sequence[StageEstimate], beside: Mapping[str, _Beside]) -> float:
    alone = sum(of.seconds or 0.0 for stage, of in zip(stages, found, strict=True) if stage.group not in beside)
    together = 0.0
    for group, how in beside.items():
        seconds = [of.seconds or 0.0 for stage, of in zip(stages, found, strict=True) if stage.group == group]
        together += max([*seconds, sum(seconds) / how.num_processes])
    return alone + together


def _situation(run: Run, states: Mapping[str, State], device: str) -> Situation:
    folder, config = _base_folder(run), run.config
    base, tile_px, copied = None, config.tiling.tile_px or costs.REFERENCE_PX, 0
    is_experimental = False
    if folder is not None:
        with suppress(WeightsError, KeyError, TypeError, ValueError):  # a base of a family with other files
            facts = verify_layout(folder)
            tile_px, is_experimental = config.tiling.tile_px or facts.tile_px, facts.is_experimental
            base = base_workload(folder, tile_px)
            copied = sum(
                path.stat().st_size for part in COPIED_PARTS for path in (folder / part).rglob("*") if path.is_file()
            )
    data: DataFacts = facts_of(run, states)
    also: tuple[str, ...] = ()
    with suppress(DefectoryError):
        also = tuple(of.found.kind for of in also_networks(run.sources, config))
    found = Situation(
        config=config, data=data, base=base, copied_bytes=copied, tile_px=tile_px, on_cpu=device == "cpu", also=also
    )
    return replace(found, why_no_base=NOT_RECKONED) if is_experimental else found


def _base_folder(run: Run) -> Path | None:
    """Return the base's folder, or the adapted base of a run whose base is gone; None if there is neither."""
    with suppress(WeightsError):
        return resolve_base(run.config.base)
    with suppress(DefectoryError):
        return run.store().concept.base
    return None


def _seconds_and_why(
    run: Run,
    stage: Stage,
    states: Mapping[str, State],
    situation: Situation,
    work: StageWork,
    together: _Beside,
    speed: Speed | None,
) -> tuple[float | None, str]:
    if work.on_device and not situation.on_cpu:
        return None, NOT_MEASURED
    if speed is None:
        return None, UNKNOWN
    if not situation.data.num_images and stage.is_preparation:
        return None, OF_DATA
    seconds = together.seconds_of(stage, work, speed) * _left(run, stage, states)
    return seconds * _correction(run, stage, situation, together, speed), ""


def _correction(run: Run, stage: Stage, situation: Situation, together: _Beside, speed: Speed) -> float:
    """Return how much longer this stage took before than its settings of that time were estimated at; else 1."""
    manifest = read_manifest(run.folder / stage.folder)
    if manifest is None or not situation.data.is_read:
        return 1.0
    before = replace(situation, config=_settings_of(run.config, manifest["settings"]))
    work = work_of(stage, before)
    expected = 0.0 if work is None else together.seconds_of(stage, work, speed)
    measured = float(manifest["info"]["seconds"])
    low, high = CORRECTIONS
    return min(high, max(low, measured / expected)) if measured > 0 and expected > 0 else 1.0


def _settings_of(config: ProjectConfig, recorded: Mapping[str, Any]) -> ProjectConfig:
    """Return the settings that a finished stage had, as far as its manifest records them."""
    content = config.model_dump(mode="json")
    if "synthesis.num_images" in recorded:
        # a stage records the drafts of its own round
        content["synthesis"]["rounds"] = 1
    if any(name.startswith("synthesis.") for name in recorded):
        # recorded only where there are some
        content["synthesis"]["also_controls"] = []
    for name, value in recorded.items():
        *path, last = name.split(".")
        section: Any = content
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if path and isinstance(section, dict) and last in section:
            section[last] = value
    try:
        return ProjectConfig.model_validate(content)
    except ValueError:
        return config


def _left(run: Run, stage: Stage, states: Mapping[str, State]) -> float:
    """Return the share of a stage that is left, if it was interrupted and will be resumed."""
    if stage.name not in states or states[stage.name].state != TO_RESUME:
        return 1.0
    work, config = work_folder(run, stage), run.config
    with suppress(OSError):
        lines = (work / DRAWN_NAME).read_text(errors="replace").splitlines()
        drawn = sum(bool(line) for line in lines) / FILES_PER_DRAFT
        return max(0.0, 1 - drawn / config.synthesis.of_round(1).num_images)
    num_steps = {
        "learn-concept": config.concept.training.num_steps,
        "learn-condition": config.condition.training.num_steps,
        "distill": config.distillation.training.num_steps,
        "learn-masks": config.masks.diffusion.num_steps,
        "segment": config.segmentation.num_steps,
    }.get(stage.group or stage.name)
    with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
        with safe_open(work / CHECKPOINT, framework="numpy") as stored:
            done = int(stored.metadata()["step"])
        return 1.0 if num_steps is None else max(0.0, 1 - done / num_steps)
    return 1.0


def _num_threads(config: ProjectConfig) -> int:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return config.threads or usable
