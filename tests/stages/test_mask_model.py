from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectory.errors import ConfigError, WeightsError
from defectory.events import StageEnded
from defectory.files import digest_file
from defectory.masks.diffusion import MODEL_FILE
from defectory.runs.stage import Run
from defectory.stages.all import run_all
from defectory.tools.masks import preview_masks

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
LEARNED = ("masks.sources.diffusion=1", "masks.sources.bank=0", "masks.diffusion.num_steps=3", "synthesis.num_images=3")


@pytest.fixture(scope="module")
def folder(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = tmp_path_factory.mktemp("mask_model") / "copy"
    shutil.copytree(tiny_run[0], copy)
    return copy


def ran(project: Run, *only: str) -> set[str]:
    return {event.stage for event in run_all(project, only=only) if isinstance(event, StageEnded) and not event.skipped}


def test_masks_are_learned_once_and_planned(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    project = open_tiny(folder, tiny_run[1], *LEARNED)
    with pytest.raises(ConfigError, match="stage learn-masks has not been run"):
        ran(project, "plan")
    assert ran(project, "learn-masks", "plan") == {"learn-masks", "plan"}
    assert {source.kind for job in project.store().plan.jobs for source in job.mask_sources} == {"diffusion"}
    assert ran(project, "learn-masks", "plan") == set()
    placed = open_tiny(folder, tiny_run[1], *LEARNED, "masks.placement=anywhere", "masks.num_branches=1")
    assert ran(placed, "learn-masks", "plan") == {"plan"}, "where masks lie is nothing it learns"
    perturbed = open_tiny(folder, tiny_run[1], *LEARNED, "masks.elastic_px=0")
    assert "learn-masks" in ran(perturbed, "learn-masks")


@pytest.mark.long
def test_another_seed_learns_another_model(folder: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    digests: set[str] = set()
    for seed in (0, 1):
        project = open_tiny(folder, tiny_run[1], *LEARNED, f"seed={seed}")
        ran(project, "import", "split", "tiles", "learn-masks")
        digests.add(digest_file(project.folder / "mask_model" / MODEL_FILE))
    assert len(digests) == 2


def test_the_preview_draws_from_the_model_and_tells_a_damaged_one(
    folder: Path, tiny_run: TinyRun, open_tiny: Opened
) -> None:
    project = open_tiny(folder, tiny_run[1], *LEARNED)
    ran(project, "import", "split", "tiles", "learn-masks")
    sheet, counts = preview_masks(project, per_class=2, seed=0)
    assert sheet.any()
    assert {kind for of in counts.values() for kind in of} == {"diffusion"}
    (project.folder / "mask_model" / MODEL_FILE).write_bytes(b"no weights")
    with pytest.raises(WeightsError, match="run the stage `learn-masks` again"):
        preview_masks(project, per_class=2, seed=0)
