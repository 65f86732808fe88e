"""The demo: a procedural borescope data set and the project file that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from defectory.procedural.borescope import write_dataset
from defectory.recipes.resolve import read_project_file
from defectory.recipes.template import project_template
from defectory.run import write_text

SOURCE = "borescope"


Preset = Literal["demo", "demo-full"]


def demo_project(preset: Preset, *, seed: int = 0) -> dict[str, Any]:
    """Give what the demo's project file sets beside its preset."""
    return {"name": preset, "out": ".", "seed": seed, "data": {"path": f"{SOURCE}/annotations.json"}}


def write_demo(out: Path, preset: Preset, *, seed: int = 0) -> Path:
    """Write the borescope data set and `project.toml` into `out`, once; give the project file."""
    if not (out / SOURCE / "annotations.json").is_file():
        write_dataset(out / SOURCE, seed=seed)
    file = out / "project.toml"
    if not file.is_file() or read_project_file(file).get("preset") != preset:
        write_text(file, project_template(demo_project(preset, seed=seed), preset=preset))
    return file
