"""Resolves a project's configuration: command line, environment, project file, preset, default, in this order."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from defectory.artifacts.config import Section
from defectory.config.command import CommandLine, parse
from defectory.config.hints import either, keys_like, list_hint
from defectory.config.presets import PRESETS
from defectory.config.project import ProjectConfig
from defectory.config.settings import Setting, problem_of, takes_of
from defectory.errors import AnnotationError, ConfigError
from defectory.files import write_json
from defectory.textfile import read_text_file

ENVIRONMENT_PREFIX = "DEFECTORY_"
Tree = dict[str, Any]
MAX_DOTS = 1000
"""Most dots in one line of a project file."""


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A resolved configuration, the origin of each value by dotted key, and how to write a command that resolves it."""

    config: ProjectConfig
    origins: dict[str, str]
    command: CommandLine

    def with_value(self, key: str, value: object) -> Resolved:
        """Return a copy with one top-level value replaced and its origin kept."""
        return replace(self, config=self.config.model_copy(update={key: value}))

    def save(self, path: Path, *, version: str) -> None:
        """Write configuration and origins as JSON."""
        write_json(path, {"version": version, "config": self.config.model_dump(mode="json"), "origins": self.origins})


def read_project_file(path: Path) -> Tree:
    """Read a TOML project file, in any encoding that text editors write.

    Raises:
        ConfigError: the file is missing, unreadable, not text or not TOML.
    """
    try:
        text = read_text_file(path).text
        if max((line.count(".") for line in text.splitlines()), default=0) > MAX_DOTS:
            # the parser's time grows with the square of the number of parts of a key
            raise ConfigError(
                path, f"has a line with more than {MAX_DOTS} dots", "correct it; `defectory init` shows the form"
            )
        return tomllib.loads(text)
    except AnnotationError as error:
        todo = "write one with `defectory init`" if error.found == "no such file" else error.todo
        raise ConfigError(path, error.found, todo) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(
            path, f"is not TOML ({str(error).splitlines()[0]})", "correct the line; `defectory init` shows the form"
        ) from None
    except RecursionError:
        raise ConfigError(path, "is nested too deeply", "correct it; `defectory init` shows the form") from None
    except ValueError as error:  # for example a number with more than 4,300 digits, or a date that does not exist
        raise ConfigError(path, f"is not TOML ({str(error).splitlines()[0]})", "correct the value") from None


def resolve(
    *,
    project_file: Path | None = None,
    project: Tree | None = None,
    preset: str | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Sequence[str] = (),
) -> Resolved:
    """Resolve a configuration from its layers.

    Args:
        project_file: TOML file; its `preset` key is used unless `preset` is given.
        project: content in place of a file.
        preset: name of a preset.
        environment: variables; `DEFECTORY_SYNTHESIS__NUM_IMAGES=50` sets `synthesis.num_images`.
        overrides: `dotted.key=value` of the command line.

    Raises:
        ConfigError: an unknown or wrong key, in the layer where it stands.
    """
    content = dict(project) if project is not None else (read_project_file(project_file) if project_file else {})
    source = str(project_file) if project_file else "project"
    named = content.pop("preset", None)
    chosen: object = named if preset is None else preset
    layers: list[tuple[str, dict[str, Any]]] = []
    if chosen is not None:
        if not isinstance(chosen, str) or chosen not in PRESETS:
            raise ConfigError(f"preset {_short(chosen)}", "no such preset", f"choose among {', '.join(PRESETS)}")
        layers.append((f"preset {chosen}", flatten(PRESETS[chosen])))
    settings = {setting.key: setting for setting in _settings(ProjectConfig, "")}
    layers.append((source, _flat_content(content, source)))
    layers.append(("environment", dict(_environment(environment or {}, settings))))
    layers.append(("command line", dict(_override(text, settings) for text in overrides)))

    origins: dict[str, str] = {}
    tree: Tree = {}
    for setting in settings.values():
        # defaults of a section may differ from those of its type; setting one key must not restore the type's
        if setting.default is not None:
            _put(tree, setting.key, setting.default)
    for origin, values in layers:
        for key, value in values.items():
            where = (
                f"{ENVIRONMENT_PREFIX}{key.upper().replace('.', '__')}"
                if origin == "environment"
                else f"{origin}: {key}"
            )
            if key not in settings:
                raise ConfigError(where, *_unknown(key, settings))
            problem = problem_of(value, settings[key])
            if problem is not None:
                raise ConfigError(where, f"{problem}, found {_short(value)}", _todo(value, settings[key], origin))
            origins[key] = where if origin == "environment" else origin
            _put(tree, key, value)
    try:
        config = ProjectConfig.model_validate(tree)
    except ValidationError as error:
        raise _said_of(error, origins, source) from None
    everything = {key: origins.get(key, "default") for key in flatten(config.model_dump(mode="json"))}
    given = dict(layers)
    command = CommandLine(
        file=CommandLine.file if project_file is None else project_file.name,
        preset=preset if preset != named else None,
        settings={**given["environment"], **given["command line"]},
    )
    return Resolved(config=config, origins=everything, command=command)


def _todo(value: object, setting: Setting, origin: str) -> str:
    """Return how to correct a value of the wrong kind."""
    if setting.takes & {"list"} and not setting.takes & {"text", "number"} and not isinstance(value, list | tuple):
        return list_hint(setting.key, value, on_command_line=origin == "command line")
    return "correct the value; `defectory init --all` shows the form"


def _said_of(error: ValidationError, origins: Mapping[str, str], source: str) -> ConfigError:
    """Convert a section's first validation error to an error that names the layer and the setting."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int))
    near = (key, *(k for k in origins if k.startswith(f"{key}.")), key.rpartition(".")[0])
    origin = next((origins[k] for k in near if k in origins), source)
    said = first["msg"].removeprefix("Value error, ")
    where, found = (f"{origin}: {key}" if key else source), said[0].lower() + said[1:]
    if first["type"] == "missing":
        return ConfigError(where, "is missing", "set it; `defectory init` shows the form")
    if not isinstance(first.get("input"), Mapping):
        found = f"{found}, found {_short(first.get('input'))}"
    return ConfigError(where, found, "correct the value; `defectory init` shows the form")


def with_settings(config: ProjectConfig, values: Mapping[str, Any]) -> ProjectConfig:
    """Return a configuration with other values by dotted key.

    Raises:
        ValidationError: a value that no project file may have.
    """
    tree: Tree = config.model_dump(mode="json")
    for key, value in values.items():
        _put(tree, key, value)
    return ProjectConfig.model_validate(tree)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested mapping to dotted keys; lists count as values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _flat_content(content: Tree, source: str) -> dict[str, Any]:
    """Flatten a project's content; a table in place of a setting is reported, even an empty one."""
    try:
        flat = flatten(content)
    except RecursionError:
        raise ConfigError(source, "is nested too deeply", "correct it; `defectory init` shows the form") from None
    for key, value in content.items():
        field = ProjectConfig.model_fields.get(key)
        if isinstance(value, Mapping) and field is not None and not _is_section(field.annotation):
            raise ConfigError(
                f"{source}: {key}",
                "is a section, one value was expected",
                f"write `{key} = ...` above the first section",
            )
    return flat


def defaults() -> dict[str, tuple[Any, str]]:
    """Return every setting by dotted key, with its default (None if required) and meaning."""
    return {setting.key: (setting.default, setting.meaning) for setting in _settings(ProjectConfig, "")}


def _is_section(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _settings(model: type[Section], prefix: str, values: BaseModel | None = None) -> Iterator[Setting]:
    for name, field in model.model_fields.items():
        default = (
            getattr(values, name)
            if values is not None
            else (None if field.is_required() else field.get_default(call_default_factory=True))
        )
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from _settings(kind, f"{prefix}{name}.", default if isinstance(default, BaseModel) else None)
        else:
            yield Setting(key=f"{prefix}{name}", default=default, meaning=field.description or "", takes=takes_of(kind))
    for name in model.added_names():
        yield Setting(key=f"{prefix}{name}", default=None, meaning="", takes=frozenset({"number"}))


def _environment(environment: Mapping[str, str], settings: Mapping[str, Setting]) -> Iterator[tuple[str, Any]]:
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            yield key, _parsed(environment[name], settings.get(key))


def _override(text: str, settings: Mapping[str, Setting]) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise ConfigError(
            f"option {text!r}", "is not of the form key=value", "write for example `-o synthesis.num_images=50`"
        )
    key = key.strip()
    return key, _parsed(value.strip(), settings.get(key))


def _parsed(text: str, setting: Setting | None) -> Any:
    """Parse a text for a setting; a setting that accepts only text takes `2024` and `true` literally."""
    value = parse(text)
    if (
        setting is not None
        and "text" in setting.takes
        and value is not None
        and not isinstance(value, str | list | dict)
    ):
        return text if "number" not in setting.takes else value
    return value


def texts_of(overrides: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """Convert settings to `key=value` texts, as the command line takes them; texts stay as they are."""
    if isinstance(overrides, Mapping):
        return [f"{key}={json.dumps(value)}" for key, value in overrides.items()]
    return list(overrides)


def _put(tree: Tree, key: str, value: Any) -> None:
    *path, last = key.split(".")
    for part in path:
        tree = tree.setdefault(part, {})
    tree[last] = value


def _unknown(key: str, settings: Mapping[str, Setting]) -> tuple[str, str]:
    """Return the problem with an unknown key, and what to do."""
    inside = next((known for known in settings if known.startswith(f"{key}.")), None)
    if inside is not None:
        return "is a section, not a value", f"set its keys, for example {inside}"
    parent = next((known for known in settings if key.startswith(f"{known}.")), None)
    if parent is not None:
        return f"no such setting: {parent} is one value, not a section", f"write `{parent.rpartition('.')[2]} = ...`"
    like = keys_like(key, settings)
    return "no such setting", f"did you mean {either(like)}?" if like else "`defectory init --all` lists every setting"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
