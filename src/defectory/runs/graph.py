"""Orders stages by their inputs, and says which are up to date and why others are not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from defectory.config.project import ProjectConfig
from defectory.errors import ConfigError
from defectory.files import digest_json, read_manifest
from defectory.folders.marker import read_marker
from defectory.runs.sources import MissingSource
from defectory.runs.stage import Run, Stage, inputs_of, leaves_of, work_folder

MAX_CHANGES_NAMED = 3
UP_TO_DATE, TO_RUN, TO_RESUME, TO_RUN_AGAIN = "up to date", "to be run", "to be resumed", "to be run again"


@dataclass(frozen=True, kw_only=True)
class State:
    """Whether a stage has to run.

    Attributes:
        stage: its name.
        state: `up to date`, `to be run`, `to be resumed` or `to be run again`.
        why: what changed, if a finished stage has to run again; else empty.
        seconds: duration of the finished stage; 0 if it has not finished.
    """

    stage: str
    state: str
    why: str = ""
    seconds: float = 0.0


def by_name(stages: Sequence[Stage]) -> dict[str, Stage]:
    """Return stages by name, in order."""
    return {stage.name: stage for stage in stages}


def in_order(stages: Sequence[Stage], added: Sequence[Stage], config: ProjectConfig) -> tuple[Stage, ...]:
    """Insert further stages, each right after the last stage that it reads.

    Raises:
        ConfigError: a stage reads an unknown stage, or its name is taken.
    """
    order = list(stages)
    for stage in added:
        names = [known.name for known in order]
        if stage.name in names:
            raise ConfigError(f"stage {stage.name!r}", "is there already", "choose another name")
        unknown = next((name for name in stage.inputs(config) if name not in names), None)
        if unknown is not None:
            raise ConfigError(f"stage {stage.name!r}", f"reads {unknown!r}, which is no stage", "correct its inputs")
        place = max((names.index(name) for name in stage.inputs(config)), default=-1)
        order.insert(place + 1, stage)
    return tuple(order)


def select(stages: Sequence[Stage], names: Sequence[str]) -> list[Stage]:
    """Return the stages with these names; the name of a group selects all its stages.

    Raises:
        ConfigError: no stage or group has this name.
    """
    known = {stage.name for stage in stages} | {stage.group for stage in stages if stage.group}
    for name in names:
        if name not in known:
            raise ConfigError(f"stage {name!r}", "no such stage", f"choose among {', '.join(sorted(known))}")
    return [stage for stage in stages if stage.name in names or (stage.group and stage.group in names)]


def needed_for(stages: Sequence[Stage], names: Sequence[str], config: ProjectConfig) -> list[str]:
    """Return the names of the stages and of everything they need, in order."""
    wanted = {stage.name for stage in select(stages, names)}
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.inputs(config))
    return [stage.name for stage in stages if stage.name in wanted]


def states_of(run: Run, stages: Sequence[Stage]) -> dict[str, State]:
    """Return the state of each stage by name, without reading result files."""
    states: dict[str, State] = {}
    named = by_name(stages)
    for stage in stages:
        states[stage.name] = _state(run, stage, named, states)
    return states


def _state(run: Run, stage: Stage, stages: Mapping[str, Stage], before: Mapping[str, State]) -> State:
    manifest = read_manifest(run.folder / stage.folder)
    seconds = 0.0 if manifest is None else float(manifest["info"]["seconds"])
    stale = [name for name in stage.inputs(run.config) if before[name].state != UP_TO_DATE]
    if stale:
        if manifest is None:
            begun = _inputs_of_partial_work(run, stage) is not None
            return State(stage=stage.name, state=TO_RESUME if begun else TO_RUN)
        own = _changed_settings(leaves_of(stage.cache_key(run.config, run.sources)), manifest)
        why = _shortened(own or [f"{stale[0]} may change"])
        return State(stage=stage.name, state=TO_RUN_AGAIN, why=why, seconds=seconds)
    inputs = inputs_of(run, stage, stages)
    if inputs.describe(manifest):
        return State(stage=stage.name, state=UP_TO_DATE, seconds=seconds)
    if _inputs_of_partial_work(run, stage) == inputs.digest:
        return State(stage=stage.name, state=TO_RESUME, seconds=seconds)
    if manifest is None:
        return State(stage=stage.name, state=TO_RUN)
    changes = inputs.changes_from(manifest)
    others = [
        f"{name.removeprefix('stage.')} changed" if name.startswith("stage.") else "Defectory changed"
        for name in changes
        if not name.startswith("settings.")
    ]
    why = _shortened([*_changed_settings(inputs.settings, manifest), *others])
    return State(stage=stage.name, state=TO_RUN_AGAIN, why=why, seconds=seconds)


def _changed_settings(settings: Mapping[str, object], manifest: Mapping[str, Any]) -> list[str]:
    """List the settings that changed since a result was made, each as `name: old -> new`."""
    recorded: Mapping[str, str] = manifest["inputs"]
    old: Mapping[str, object] = manifest["settings"]
    found: list[str] = []
    for name, value in settings.items():
        before = recorded.get(f"settings.{name}")
        if isinstance(value, MissingSource) or before == digest_json(value):
            continue
        if name in old and before is not None:
            found.append(f"{name}: {_shown(old[name])} -> {_shown(value)}")
        else:
            found.append(f"{name} {'is new' if before is None else 'changed'}")
    gone = {key.removeprefix("settings.") for key in recorded if key.startswith("settings.")}
    gone -= set(settings)
    return [*found, *(f"{name} is gone" for name in sorted(gone))]


def _shortened(changes: Sequence[str]) -> str:
    more = len(changes) - MAX_CHANGES_NAMED
    return ", ".join(changes[:MAX_CHANGES_NAMED]) + (f" and {more} more" if more > 0 else "")


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _inputs_of_partial_work(run: Run, stage: Stage) -> str | None:
    """Return the digest of the inputs of partial work; None if there is nothing to resume."""
    marker = read_marker(work_folder(run, stage)) if stage.is_resumable else None
    return None if marker is None or marker.maker is None else str(marker.maker.get("inputs"))
