"""The concept check: it finds copies, warns, blocks nothing, and is left out by default."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectory.events import Event, Notice, StageEnded
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages import check_concept
from defectory.stages.all import run_all, stages_of
from defectory.stages.parts.image_uses import image_uses
from defectory.stages.parts.report_tables import concept_check_table

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture(scope="module")
def project(tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    copy = tmp_path_factory.mktemp("check_concept") / "copy"
    shutil.copytree(tiny_run[0], copy)
    return open_tiny(copy, tiny_run[1], "concept.check_images=5")


def ran(project: Run, *only: str) -> list[Event]:
    return list(run_all(project, only=only or None))


def ended(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, StageEnded) and not event.skipped]


def test_it_is_left_out_by_default_and_comes_before_phase_two(project: Run, tiny_run: TinyRun) -> None:
    assert "check-concept" not in [event.stage for event in tiny_run[2]]
    names = [stage.name for stage in stages_of(project.config)]
    assert names.index("learn-concept") < names.index("check-concept") < names.index("learn-condition")


def test_images_of_the_concept_are_compared_and_phase_one_is_not_run_again(project: Run) -> None:
    events = ran(project, "learn-concept", "check-concept", "learn-condition")
    assert ended(events) == ["check-concept"]
    check = project.store().concept_check
    assert len(check.images) == 5
    assert check.concept_digest == project.store().concept.concept.weights_digest
    assert all(0 <= image.similarity <= 1 for image in check.images)
    assert len({image.seed for image in check.images}) == 5
    assert all("sks with a" in image.prompt for image in check.images)
    assert (project.folder / layout.CONCEPT_CHECK / layout.CONTACT_SHEET).is_file()
    assert ended(ran(project, "check-concept")) == []
    used = next(use for use in image_uses(project.store(), project.config) if use.consumer == "concept check")
    assert used.unread == ()
    assert set(used.image_ids) <= set(project.store().split.train)


def test_the_report_and_the_certificate_have_it(project: Run) -> None:
    assert set(ended(ran(project))) == {"certify", "report"}
    assert "The concept alone: 5 images without a driver" in (project.folder / layout.RUN_REPORT).read_text("utf-8")
    assert "concept check" in [use.consumer for use in project.store().certificate.uses]


def test_copies_are_told_of_and_block_nothing(project: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = project.store().tiles
    first = next(tile for tile in tiles.tileset.of("train") if tile.instances)
    copied = np.ascontiguousarray(tiles.image(first)[: first.valid_hw[0], : first.valid_hw[1]])
    blank = np.full_like(copied, 90)

    def drawn(_inputs: Any, _config: Any, prompts: list[str], _seeds: list[int]) -> Any:
        yield from ()
        return [copied[:, ::-1], *[blank] * (len(prompts) - 1)]

    monkeypatch.setattr(check_concept, "_draw", drawn)
    monkeypatch.setattr(check_concept.CheckConcept, "VERSION", 99)
    events = ran(project, "check-concept")
    check = project.store().concept_check
    assert [image.nearest for image in check.copies] == [first.id]
    assert check.highest > 0.95
    told = [event.text for event in events if isinstance(event, Notice)]
    expected = f"1 of 5 images of the concept are copies of training tiles, the first of {first.id}"
    assert [text for text in told if text.startswith(expected)]
    assert ["copies of train tiles", "1 of 5"] in concept_check_table(check).rows
