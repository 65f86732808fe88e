"""Writes and opens the demo: a procedural borescope data set and its project file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from defectory.api.project import RESERVED, Project
from defectory.config.resolve import read_project_file, resolve, texts_of
from defectory.config.template import project_template
from defectory.files import write_text
from defectory.folders.claims import claim_folder, require_claimable
from defectory.folders.marker import record_files, require_unchanged
from defectory.procedural.borescope import write_dataset

SOURCE = "borescope"
PROJECT_FILE = "project.toml"
Preset = Literal["demo", "demo-full"]


def demo_project(preset: Preset, *, seed: int = 0) -> dict[str, Any]:
    """Return the settings of the demo's project file besides its preset."""
    return {"name": preset, "out": ".", "seed": seed, "data": {"path": f"{SOURCE}/annotations.json"}}


def write_demo(out: Path, preset: Preset, *, seed: int = 0) -> Path:
    """Write the borescope data set and `project.toml` to `out` once, and return the project file.

    Raises:
        OutputError: `out` is not empty and not a demo folder, or its project file was edited and uses another preset.
    """
    claim_folder(out, kind="demo")
    if not (out / SOURCE / "annotations.json").is_file():
        write_dataset(out / SOURCE, seed=seed)
    file = out / PROJECT_FILE
    if not file.is_file() or read_project_file(file).get("preset") != preset:
        require_unchanged(out, PROJECT_FILE)
        write_text(file, project_template(demo_project(preset, seed=seed), preset=preset))
        record_files(out, [PROJECT_FILE])
    return file


def open_demo(
    out: Path | str | None = None,
    preset: Preset = "demo",
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
) -> Project:
    """Write the demo's data set and project file if they do not exist, and open the project.

    Args:
        out: folder of the demo and its run; None takes `runs/demo`, or `runs/demo-full`.
        preset: `demo`, or `demo-full` with longer phases, for a study.
        overrides: settings that win over the file, as for `Project.open`.
        seed: of the whole project.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        ConfigError: a wrong setting; nothing is written.
        OutputError: `out` is not empty and not a demo folder.
    """
    environment = {name: value for name, value in os.environ.items() if name not in RESERVED}
    out = Path("runs") / preset if out is None else Path(out)
    settings = [*texts_of(overrides), *([f"seed={seed}"] if seed is not None else [])]
    resolve(project=demo_project(preset), preset=preset, environment=environment, overrides=settings)
    require_claimable(out, kind="demo", also=("run",))
    return Project.open(write_demo(out, preset), overrides=overrides, seed=seed, device=device)
