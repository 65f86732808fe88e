"""Resolves a project's configuration: command line, environment, project file, preset, default, in this order."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from defectory.errors import ConfigError
from defectory.recipes.presets import PRESETS
from defectory.recipes.project import ProjectConfig
from defectory.run import write_json

ENVIRONMENT_PREFIX = "DEFECTORY_"
Tree = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A resolved configuration and where each value comes from, by dotted key."""

    config: ProjectConfig
    origins: dict[str, str]

    def with_value(self, key: str, value: object) -> Resolved:
        """Give the same with one top-level value replaced, its origin kept."""
        return replace(self, config=self.config.model_copy(update={key: value}))

    def save(self, path: Path, *, version: str) -> None:
        """Write configuration and origins as JSON."""
        write_json(path, {"version": version, "config": self.config.model_dump(mode="json"), "origins": self.origins})


def read_project_file(path: Path) -> Tree:
    """Read a TOML project file.

    Raises:
        ConfigError: it is missing, not UTF-8 or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(path, "no such file", "write one with `defectory init`") from None
    except IsADirectoryError:
        raise ConfigError(path, "is a folder, not a project file", "name the project.toml itself") from None
    except UnicodeDecodeError:
        raise ConfigError(path, "is not UTF-8 text", "save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            path, f"is not TOML ({str(error).splitlines()[0]})", "correct the line; `defectory init` shows the form"
        ) from None


def resolve(
    *, project_file: Path | None = None, project: Tree | None = None, preset: str | None = None, environment: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Resolved:  # fmt: skip
    """Resolve a configuration from its layers.

    Args:
        project_file: TOML file; its `preset` key is used unless `preset` is given.
        project: content in place of a file, for programs.
        preset: name of a preset.
        environment: variables; `DEFECTORY_SYNTHESIS__NUM_IMAGES=50` sets `synthesis.num_images`.
        overrides: `dotted.key=value` of the command line.

    Raises:
        ConfigError: an unknown or wrong key, in the layer where it stands.
    """
    content = dict(project) if project is not None else (read_project_file(project_file) if project_file else {})
    source = str(project_file) if project_file else "project"
    named = content.pop("preset", None)
    preset = preset or named
    layers: list[tuple[str, dict[str, Any]]] = []
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"preset {preset!r}", "no such preset", f"choose among {', '.join(PRESETS)}")
        layers.append((f"preset {preset}", flatten(PRESETS[preset])))
    layers.append((source, flatten(content)))
    layers.append(("environment", dict(_environment(environment or {}))))
    layers.append(("command line", dict(_override(text) for text in overrides)))

    origins: dict[str, str] = {}
    tree: Tree = {}
    known = defaults()
    for key, (value, _) in known.items():
        # a section's own defaults may differ from its type's, which setting one of its keys must not bring back
        if value is not None:
            _put(tree, key, value)
    for origin, values in layers:
        for key, value in values.items():
            where = f"{ENVIRONMENT_PREFIX}{key.upper().replace('.', '__')}" if origin == "environment" else f"{origin}: {key}"
            if key not in known:
                raise ConfigError(where, "no such setting", _advice(key, known))
            origins[key] = where if origin == "environment" else origin
            _put(tree, key, value)
    try:
        config = ProjectConfig.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
        origin = next((origins[k] for k in (key, *(k for k in origins if k.startswith(f"{key}."))) if k in origins), source)
        said = first["msg"].removeprefix("Value error, ")
        found = said[0].lower() + said[1:]
        if first["type"] == "missing":
            raise ConfigError(f"{origin}: {key}", "is missing", "set it; `defectory init` shows the form") from None
        raise ConfigError(
            f"{origin}: {key}", f"{found}, found {_short(first.get('input'))}", "correct the value; `defectory init` shows the form"
        ) from None
    everything = {key: origins.get(key, "default") for key in flatten(config.model_dump(mode="json"))}
    return Resolved(config=config, origins=everything)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give a nested mapping as dotted keys; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def defaults() -> dict[str, tuple[Any, str]]:
    """Give every setting by dotted key with its default (None where required) and what it means."""
    return dict(_settings(ProjectConfig, ""))


def _settings(model: type[BaseModel], prefix: str, values: BaseModel | None = None) -> Iterator[tuple[str, tuple[Any, str]]]:
    for name, field in model.model_fields.items():
        default = (
            getattr(values, name) if values is not None else (None if field.is_required() else field.get_default(call_default_factory=True))
        )
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
        else:
            yield f"{prefix}{name}", (default, field.description or "")


def _environment(environment: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            yield name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", "."), parse(environment[name])


def _override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise ConfigError(f"option {text!r}", "is not of the form key=value", "write for example `-o synthesis.num_images=50`")
    return key.strip(), parse(value.strip())


def parse(text: str) -> Any:
    """Read a value as JSON where it is JSON, else as text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _put(tree: Tree, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _advice(key: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        key.rpartition(".")[2], [k.rpartition(".")[2] for k in known], n=1
    )
    return f"did you mean {close[0]!r}?" if close else "`defectory init` lists every setting"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
