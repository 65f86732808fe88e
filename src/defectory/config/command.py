"""Writes command lines that work on a project as it was opened: its file, and the settings given beside the file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CommandLine:
    """How a project was opened. A command that leaves out a part of it works on another project.

    Attributes:
        file: project file, as a path from the folder in which the command runs.
        preset: the preset that replaces the file's; None keeps the file's.
        settings: values by dotted key from the command line and the environment.
    """

    file: str = "project.toml"
    preset: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def text(
        self, verb: str = "run", *, settings: Mapping[str, Any] | None = None, arguments: Sequence[str] = ()
    ) -> str:
        """Return a command for a POSIX shell.

        Args:
            verb: of the command line, for example `run` or `drivers tune`.
            settings: further values by dotted key; they replace those that the project was opened with.
            arguments: further arguments.
        """
        # a name that begins with a hyphen would be read as an option
        file = f"./{self.file}" if self.file.startswith("-") else self.file
        preset = () if self.preset is None else ("--preset", self.preset)
        values = {**self.settings, **(settings or {})}
        options = [part for key, value in values.items() for part in ("-o", setting_text(key, value))]
        return shlex.join(["defectory", *verb.split(), file, *preset, *options, *arguments])


def parse(text: str) -> Any:
    """Parse the value of an option as JSON; return the text itself if it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def setting_text(key: str, value: object) -> str:
    """Write a setting as `key=value`, the form of the option `-o`."""
    if isinstance(value, str) and value == value.strip() and parse(value) == value:
        return f"{key}={value}"
    return f"{key}={json.dumps(value, ensure_ascii=False, separators=(',', ':'))}"
