"""Projects for the public API: a copy of the tiny finished run, and one with more tiles."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from defectory import Project, StageEnded
from defectory.procedural.borescope import write_dataset


@pytest.fixture(scope="module")
def file(tiny_run: tuple[Path, dict[str, Any], list[StageEnded]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project file of a finished run."""
    folder = tmp_path_factory.mktemp("api") / "copy"
    shutil.copytree(tiny_run[0], folder)
    data = folder / "source" / "annotations.json"
    return Project.create(folder / "project.toml", data=data, preset=None, settings=tiny_run[1]).file


@pytest.fixture
def project(file: Path) -> Project:
    """A finished run."""
    return Project.open(file, environment={})


@pytest.fixture(scope="session")
def many_tiles(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project with enough tiles to measure leakage, run up to its tiles; do not write into it."""
    folder = tmp_path_factory.mktemp("many")
    data = write_dataset(folder / "source", seed=0, num_labelled=60, num_defect_free=60, size_hw=(64, 88))
    settings = {"device": "cpu", "threads": 1, "tiling.mode": "tile", "tiling.tile_px": 32, "tiling.max_pool_tiles": 60}
    project = Project.create(folder / "project.toml", data=data, preset=None, settings=settings)
    return project.run(until="tiles")
