"""What benches that run projects share: a project whose run folder is somewhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from defectory import Project


def open_in(folder: Path, file: Path, overrides: Sequence[str] = ()) -> Project:
    """Open a project file, independent of the environment, with `folder` as its run folder."""
    out = f"out={json.dumps(str(folder.absolute()))}"
    return Project.open(file, overrides=[*overrides, out], environment={})


def name_of(file: Path, overrides: Sequence[str] = ()) -> str:
    """Return the name of a project."""
    return Project.open(file, overrides=overrides, environment={}).config.name
