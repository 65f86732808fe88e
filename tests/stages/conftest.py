"""A whole run at tiny size, made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.config.resolve import resolve
from defectory.events import StageEnded
from defectory.procedural.borescope import write_dataset
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.stages.all import run_all

TINY_SIZE_HW = (64, 88)


def tiny_settings(base: Path) -> dict[str, Any]:
    """Settings of a run that takes seconds; curation accepts all, because a random base draws nothing."""
    return {
        "name": "tiny",
        "out": "run",
        "base": str(base),
        "device": "cpu",
        "threads": 1,
        "data": {"path": "source/annotations.json"},
        "split": {"val_share": 0.2, "test_share": 0.2},
        "tiling": {"mode": "frame"},
        "concept": {
            "num_class_images": 2,
            "prior_inference_steps": 2,
            "prior_share": 0.25,
            "training": {
                "num_steps": 6,
                "batch_size": 4,
                "variants_per_image": 2,
                "checkpoint_every": 2,
                "validate_every": 3,
            },
        },
        "condition": {
            "training": {
                "num_steps": 6,
                "batch_size": 4,
                "variants_per_image": 2,
                "checkpoint_every": 2,
                "validate_every": 3,
            }
        },
        "masks": {"min_area_px": 2},
        "synthesis": {"num_images": 8, "num_inference_steps": 2, "batch_size": 3, "calibration_drafts": 4},
        "curation": {"checks": [], "min_fidelity": 0.0, "max_stray_share": 1e6},
        "segmentation": {"num_steps": 4, "batch_size": 2, "validate_every": 2, "checkpoint_every": 2, "model": "light"},
        "evaluation": {"bootstrap_samples": 10},
    }


def open_project(folder: Path, settings: dict[str, Any], *overrides: str) -> Run:
    config = resolve(project=settings, overrides=overrides).config
    return Run(config=config, folder=folder / "run", sources=Sources(folder=folder))


@pytest.fixture(scope="session")
def open_tiny() -> Callable[..., Run]:
    """Open the project of a folder with `source/` and `run/`."""
    return open_project


@pytest.fixture(scope="session")
def tiny_run(
    tmp_path_factory: pytest.TempPathFactory, tiny_base_folder: Path
) -> tuple[Path, dict[str, Any], list[StageEnded]]:
    """Folder with `source/` and a finished `run/`, its settings, and what the run said; do not write into it."""
    folder = tmp_path_factory.mktemp("tiny_run")
    write_dataset(folder / "source", seed=0, num_labelled=28, num_defect_free=12, size_hw=TINY_SIZE_HW)
    settings = tiny_settings(tiny_base_folder)
    ended = [event for event in run_all(open_project(folder, settings)) if isinstance(event, StageEnded)]
    return folder, settings, ended
