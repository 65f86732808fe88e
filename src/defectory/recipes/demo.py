"""The demo: a procedural borescope data set and the project file that goes with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defectory.procedural.borescope import write_dataset
from defectory.recipes.resolve import read_project_file
from defectory.recipes.template import project_template
from defectory.run import write_text

SOURCE = "borescope"


def write_demo(out: Path, *, full: bool, seed: int = 0) -> Path:
    """Write the borescope data set and `project.toml` into `out`, once; give the project file."""
    project: dict[str, Any] = {
        "name": "demo-full" if full else "demo",
        "out": ".",
        "seed": seed,
        "data": {"path": f"{SOURCE}/annotations.json", "defect_free": None},
    }
    project["data"].pop("defect_free")
    if not (out / SOURCE / "annotations.json").is_file():
        write_dataset(out / SOURCE, seed=seed)
    file = out / "project.toml"
    text = project_template(project, preset="demo-full" if full else "demo")
    if not file.is_file() or read_project_file(file).get("preset") != ("demo-full" if full else "demo"):
        write_text(file, text)
    return file
