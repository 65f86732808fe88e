"""Writes the commented project file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

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
    "concept.class_noun",
    "concept.training.num_steps",
    "condition.training.num_steps",
    "condition.defect_noun",
    "synthesis.num_images",
    "segmentation.num_steps",
    "segmentation.seeds",
)
"""Settings that matter most, which `init` writes; `init --all` writes every one."""


def project_template(values: dict[str, Any], *, preset: str | None = None, every_setting: bool = True) -> str:
    """Return the text of a project file.

    Args:
        values: nested; these are set.
        preset: whose values the comments show where it sets them.
        every_setting: write all settings as comments, not only those of `MATTER`.
    """
    given, of_preset = flatten(values), flatten(PRESETS[preset]) if preset is not None else {}
    sections: dict[str, list[str]] = {}
    for key, (usual, meaning) in defaults().items():
        default = of_preset.get(key, usual)
        if not (every_setting or key in MATTER or key in given):
            continue
        section, _, name = key.rpartition(".")
        lines = sections.setdefault(section, [])
        lines.extend(f"# {line}" for line in meaning.split("\n") if line)
        if key in given:
            lines.append(f"{name} = {_toml(given[key])}")
        elif default is None:
            lines.append(f"# {name} =")
        else:
            lines.append(f"# {name} = {_toml(default)}")
    parts = [HEADER]
    if preset is not None:
        parts.append(
            f'# Settings measured for a machine or purpose; what stands in this file wins.\npreset = "{preset}"'
        )
    for section, lines in sections.items():
        parts.append("\n".join([f"\n[{section}]", *lines] if section else lines))
    return "\n".join(parts) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)


def write_project_file(
    file: Path, *, data: Path, defect_free: Path | None, preset: str | None, every_setting: bool, force: bool
) -> None:
    """Write a commented project file.

    Args:
        file: to write.
        data: annotation file or folder, from the current folder; it may not be there yet.
        defect_free: folder of further images, all without defects.
        preset: settings measured for a machine or purpose.
        every_setting: write all settings, not only those that matter most.
        force: replace a project file that is there.

    Raises:
        ConfigError: the file is there, or no preset or name that can stand in it.
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
    values: dict[str, Any] = {"name": name, "out": f"runs/{file_name_of(name)}", "data": sources}
    # a name that no project file can hold is told before anything is written
    resolve(project={**values, "preset": preset})
    write_text(file, project_template(values, preset=preset, every_setting=every_setting))


def path_from(file: Path, path: Path) -> str:
    """Return a path, given from the current folder, as it is written into a project file: from that file's folder on.

    It is relative and has `/` on every system where both are on one drive, else absolute.
    """
    home = file.absolute().parent
    try:
        return Path(os.path.relpath(path.expanduser().absolute(), home)).as_posix()
    except (ValueError, RuntimeError):  # another drive; a home folder that is not known
        return path.absolute().as_posix()


def _require_project_file(file: Path) -> None:
    """Require that a file to be replaced is a project file: a mistyped name must not cost a photo or a table."""
    if file.is_symlink():
        raise ConfigError(file, "is a link", "name the file itself")
    try:
        content = read_project_file(file)
    except ConfigError:
        content = {}
    if not isinstance(content.get("data"), dict):
        raise ConfigError(file, "is there already and is no project file", "give another name")
