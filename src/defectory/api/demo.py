"""Writes and opens the demo: a procedural borescope data set and its project file."""

from __future__ import annotations

import os
import tempfile
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
Preset = Literal["demo", "demo-short", "demo-full"]
LONGEST_S = 15 * 60
"""A demo that would take longer is run with shorter phases, unless its preset is asked for."""


def demo_project(preset: Preset, *, seed: int = 0) -> dict[str, Any]:
    """Return the settings of the demo's project file besides its preset."""
    return {"name": preset, "out": ".", "seed": seed, "data": {"path": f"{SOURCE}/annotations.json"}}


def write_demo(
    out: Path, preset: Preset | None = None, *, seed: int = 0, settings: Sequence[str] = (), device: str | None = None
) -> Path:
    """Write the borescope data set and `project.toml` to `out` once, and return the project file.

    Args:
        out: folder of the demo.
        preset: of the project file; None keeps that of the folder, and chooses one for this machine in a new folder.
        seed: of data set and project.
        settings: `key=value` texts that will win over the file; they count for the choice.
        device: that will be used, likewise.

    Raises:
        OutputError: `out` is not empty and not a demo folder, or its project file was edited and uses another preset.
    """
    claim_folder(out, kind="demo")
    if not (out / SOURCE / "annotations.json").is_file():
        write_dataset(out / SOURCE, seed=seed)
    file = out / PROJECT_FILE
    preset = preset or preset_here(out, settings=settings, device=device)
    if not file.is_file() or _preset_of(file) != preset:
        require_unchanged(out, PROJECT_FILE)
        write_text(file, project_template(demo_project(preset, seed=seed), preset=preset))
        record_files(out, [PROJECT_FILE])
    return file


def _preset_of(file: Path) -> object:
    return read_project_file(file).get("preset")


def is_short(project: Project) -> bool:
    """Return whether a demo has the shorter phases."""
    return _preset_of(project.file) == "demo-short"


def preset_here(out: Path, *, settings: Sequence[str] = (), device: str | None = None) -> Preset:
    """Return the preset of a demo for which none was asked for: its folder's, else the one for this machine.

    Args:
        out: folder of the demo, which holds its data set.
        settings: `key=value` texts that win over the project file.
        device: `auto`, `cpu`, `cuda`, ...
    """
    file = out / PROJECT_FILE
    if file.is_file():
        return "demo-short" if _preset_of(file) == "demo-short" else "demo"
    # the estimate needs a project file, and a kill must not leave one of the wrong length in the demo's folder
    with tempfile.TemporaryDirectory() as folder:
        images = (out / SOURCE / "annotations.json").resolve()
        values = {**demo_project("demo"), "data": {"path": str(images)}}
        write_text(Path(folder) / PROJECT_FILE, project_template(values, preset="demo"))
        project = Project.open(Path(folder) / PROJECT_FILE, overrides=settings, device=device)
        return "demo-short" if project.estimate().seconds > LONGEST_S else "demo"


def open_demo(
    out: Path | str | None = None,
    preset: Preset | None = None,
    *,
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seed: int | None = None,
    device: str | None = None,
) -> Project:
    """Write the demo's data set and project file if they do not exist, and open the project.

    Args:
        out: folder of the demo and its run; None takes `runs/demo`, or `runs/demo-full`.
        preset: `demo`, `demo-short` with shorter phases, or `demo-full` with longer ones, for a study. None takes that
            of the folder, and in a new one `demo`, or `demo-short` where `demo` would take over 15 minutes.
        overrides: settings that win over the file, as for `Project.open`.
        seed: of the whole project.
        device: `auto`, `cpu`, `cuda`, ...

    Raises:
        ConfigError: a wrong setting; nothing is written.
        OutputError: `out` is not empty and not a demo folder.
    """
    environment = {name: value for name, value in os.environ.items() if name not in RESERVED}
    out = Path("runs") / ("demo-full" if preset == "demo-full" else "demo") if out is None else Path(out)
    settings = [*texts_of(overrides), *([f"seed={seed}"] if seed is not None else [])]
    resolve(
        project=demo_project(preset or "demo"), preset=preset or "demo", environment=environment, overrides=settings
    )
    require_claimable(out, kind="demo", also=("run",))
    file = write_demo(out, preset, settings=settings, device=device)
    return Project.open(file, overrides=overrides, seed=seed, device=device)
