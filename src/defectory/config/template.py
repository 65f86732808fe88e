"""Writes the commented project file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomlkit
from tomlkit.items import Item, Table

from defectory.config.presets import PRESETS
from defectory.config.resolve import defaults, flatten, read_project_file, resolve
from defectory.errors import ConfigError
from defectory.filenames import file_name_of
from defectory.files import write_text
from defectory.terminal import printable

HEADER = """\
# A Defectory project. `defectory run project.toml` does every stage; a stage whose inputs are unchanged is not run
# again. Settings that begin with `#` show their default. Precedence: command line (-o key=value), environment
# (DEFECTORY_SYNTHESIS__NUM_IMAGES=50), this file, preset, default. Paths are relative to this file.
"""


MATTER = (
    "name",
    "out",
    "seed",
    "device",
    "base",
    "data.path",
    "data.defect_free",
    "prompts.class_noun",
    "concept.training.num_steps",
    "condition.training.num_steps",
    "prompts.defect_noun",
    "synthesis.num_images",
    "segmentation.num_steps",
    "segmentation.seeds",
)
"""The most important settings, which `init` writes; `init --all` writes all settings."""


def project_template(values: dict[str, Any], *, preset: str | None = None, every_setting: bool = True) -> str:
    """Return the text of a project file.

    Args:
        values: settings to write, nested.
        preset: name of the preset; comments show its values as defaults.
        every_setting: write all settings as comments, not only those of `MATTER`.
    """
    given, of_preset = flatten(values), flatten(PRESETS[preset]) if preset is not None else {}
    document = tomlkit.parse(HEADER)
    document.add(tomlkit.nl())
    if preset is not None:
        document.add(tomlkit.comment("Settings measured for a machine or purpose; what stands in this file wins."))
        document.add("preset", tomlkit.item(preset))
    sections: dict[str, tomlkit.TOMLDocument | Table] = {"": document}
    # a table's own settings come before the tables within it
    for key, (usual, meaning) in sorted(defaults().items(), key=lambda setting: setting[0].count(".")):
        if not (every_setting or key in MATTER or key in given):
            continue
        default = of_preset.get(key, usual)
        name, section = key.rpartition(".")[2], _section(sections, key.rpartition(".")[0])
        for line in filter(None, meaning.split("\n")):
            section.add(tomlkit.comment(line))
        if key in given:
            section.add(name, _item(given[key]))
        else:
            section.add(tomlkit.comment(f"{name} = {'' if default is None else _text(default)}".rstrip()))
    return tomlkit.dumps(document)


def _section(sections: dict[str, tomlkit.TOMLDocument | Table], name: str) -> tomlkit.TOMLDocument | Table:
    """Return the table of a dotted name; add it and its parents if they do not exist."""
    if name not in sections:
        around, _, last = name.rpartition(".")
        parent = _section(sections, around)
        parent.add(tomlkit.nl())
        sections[name] = tomlkit.table()
        parent.add(last, sections[name])
    return sections[name]


def _text(value: Any) -> str:
    return _item(list(value) if isinstance(value, tuple) else value).as_string()


def _item(value: Any) -> Item:
    """Convert a value; a list of tables stands on one line, so that further keys of its section may follow."""
    if not (isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value)):
        return tomlkit.item(value)
    result = tomlkit.array()
    for one in value:
        table = tomlkit.inline_table()
        table.update(one)
        result.append(table)
    return result


def write_project_file(
    file: Path,
    *,
    data: Path,
    defect_free: Path | None,
    preset: str | None,
    every_setting: bool,
    settings: Mapping[str, Any],
    force: bool,
) -> None:
    """Write a commented project file.

    Args:
        file: to write.
        data: annotation file or folder, relative to the current folder; it does not have to exist yet.
        defect_free: folder of further images, all without defects.
        preset: settings measured for a machine or purpose.
        every_setting: write all settings, not only those that matter most.
        settings: further values to write, by dotted key or nested.
        force: replace a project file that is there.

    Raises:
        ConfigError: the file exists, the preset or a setting is unknown or wrong, or a name cannot be written to a
            project file.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset {preset!r}", "no such preset", f"choose among {', '.join(PRESETS)}")
    if file.is_dir():
        raise ConfigError(file, "is a folder", f"name the file, for example {file / 'project.toml'}")
    if os.path.lexists(file):
        if not force:
            raise ConfigError(file, "is there already", "give another name, or --force to replace it")
        _require_project_file(file)
    name = printable(file.resolve().parent.name or "project")
    sources = {"path": path_from(file, data)}
    if defect_free is not None:
        sources["defect_free"] = path_from(file, defect_free)
    values = flatten({"name": name, "out": f"runs/{file_name_of(name)}", "data": sources}) | flatten(settings)
    off = next((key for key, value in values.items() if value is None), None)
    if off is not None:
        raise ConfigError(off, "is None, which a project file cannot hold", "leave the setting out")
    # refuse what no project file can hold before anything is written
    resolve(project={**values, "preset": preset})
    write_text(file, project_template(values, preset=preset, every_setting=every_setting))


def path_from(file: Path, path: Path) -> str:
    """Convert a path from the current folder to one relative to the project file.

    It uses `/` on every system, and is absolute if the two are on different drives.
    """
    home = file.absolute().parent
    try:
        return Path(os.path.relpath(path.expanduser().absolute(), home)).as_posix()
    except (ValueError, RuntimeError):  # a different drive, or an unknown home folder
        return path.absolute().as_posix()


def _require_project_file(file: Path) -> None:
    """Require that a file to be replaced is a project file, so that a typo cannot overwrite other data."""
    if file.is_symlink():
        raise ConfigError(file, "is a link", "name the file itself")
    try:
        content = read_project_file(file)
    except ConfigError:
        content = {}
    if not isinstance(content.get("data"), dict):
        raise ConfigError(file, "exists and is not a project file", "give another name")
