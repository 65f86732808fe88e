"""Writes the commented project file."""

from __future__ import annotations

from typing import Any

import tomlkit
from tomlkit.items import Table

from defectory.config.resolve import defaults, flatten

HEADER = """\
# A Defectory project. `defectory run project.toml` does every stage; a stage whose inputs are unchanged is not run
# again. Settings that begin with `#` show their default. Precedence: command line (-o key=value), environment
# (DEFECTORY_SYNTHESIS__NUM_IMAGES=50), this file, preset, default. Paths are relative to this file.
"""


def project_template(values: dict[str, Any], *, preset: str | None = None) -> str:
    """Return the text of a project file: `values` (nested) set, everything else commented with its default."""
    given = flatten(values)
    document = tomlkit.parse(HEADER)
    document.add(tomlkit.nl())
    if preset is not None:
        document.add(tomlkit.comment("Settings measured for a machine or purpose; what stands in this file wins."))
        document.add("preset", tomlkit.item(preset))
    sections: dict[str, tomlkit.TOMLDocument | Table] = {"": document}
    # a table's own settings come before the tables within it
    for key, (default, meaning) in sorted(defaults().items(), key=lambda setting: setting[0].count(".")):
        name, section = key.rpartition(".")[2], _section(sections, key.rpartition(".")[0])
        for line in filter(None, meaning.split("\n")):
            section.add(tomlkit.comment(line))
        if key in given:
            section.add(name, tomlkit.item(given[key]))
        else:
            section.add(tomlkit.comment(f"{name} = {'' if default is None else _text(default)}".rstrip()))
    return tomlkit.dumps(document)


def _section(sections: dict[str, tomlkit.TOMLDocument | Table], name: str) -> tomlkit.TOMLDocument | Table:
    """Return the table of a dotted name; add it, and those around it, where it is not there yet."""
    if name not in sections:
        around, _, last = name.rpartition(".")
        parent = _section(sections, around)
        parent.add(tomlkit.nl())
        sections[name] = tomlkit.table()
        parent.add(last, sections[name])
    return sections[name]


def _text(value: Any) -> str:
    return tomlkit.item(list(value) if isinstance(value, tuple) else value).as_string()
