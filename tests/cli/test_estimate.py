"""What a run would take, as the command line says it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defectory import Project
from defectory.procedural.borescope import write_dataset


def test_a_dry_run_says_what_every_stage_takes(tmp_path: Path, defectory: Callable[..., Any]) -> None:
    data = write_dataset(tmp_path / "source", seed=0, num_labelled=12, num_defect_free=8, size_hw=(64, 88))
    settings = {"device": "cpu", "threads": 1, "tiling.mode": "tile", "tiling.tile_px": 64}
    file = Project.create(tmp_path / "project.toml", data=data, preset="cpu", settings=settings).file
    shown = defectory("run", file, "--dry-run")
    assert shown.code == 0
    assert "about" in shown.out
    assert "of memory" in " ".join(shown.out.split())
    lines = [json.loads(line) for line in defectory("run", file, "--dry-run", "--json").out.splitlines()]
    (whole,) = [line for line in lines if line["event"] == "Estimate"]
    assert whole["seconds"] > 0
    assert {of["stage"] for of in whole["stages"]} >= {"import", "learn-concept", "report"}
    assert not (tmp_path / "runs").exists()
