"""Writes the commented project file."""

from __future__ import annotations

import json
from typing import Any

from defectory.config.resolve import defaults, flatten

HEADER = """\
# A Defectory project. `defectory run project.toml` does every stage; a stage whose inputs are unchanged is not run
# again. Settings that begin with `#` show their default. Precedence: command line (-o key=value), environment
# (DEFECTORY_SYNTHESIS__NUM_IMAGES=50), this file, preset, default. Paths are relative to this file.
"""


def project_template(values: dict[str, Any], *, preset: str | None = None) -> str:
    """Return the text of a project file: `values` (nested) set, everything else commented with its default."""
    given = flatten(values)
    sections: dict[str, list[str]] = {}
    for key, (default, meaning) in defaults().items():
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
