"""The demo: a procedural borescope data set and the project file that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from defectory.config.resolve import read_project_file
from defectory.config.template import project_template
from defectory.files import write_text
from defectory.folders import claim_folder, record_files, require_unchanged
from defectory.procedural.borescope import write_dataset

SOURCE = "borescope"
PROJECT_FILE = "project.toml"


Preset = Literal["demo", "demo-full"]


def demo_project(preset: Preset, *, seed: int = 0) -> dict[str, Any]:
    """Give what the demo's project file sets beside its preset."""
    return {"name": preset, "out": ".", "seed": seed, "data": {"path": f"{SOURCE}/annotations.json"}}


def write_demo(out: Path, preset: Preset, *, seed: int = 0) -> Path:
    """Write the borescope data set and `project.toml` into `out`, once, and return the project file.

    Raises:
        OutputError: `out` holds something and is not a demo's folder, or its project file was edited and is of another
            preset.
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
