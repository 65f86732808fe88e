from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from defectory.events import StageEnded
from defectory.lock import TurnLock
from defectory.runs.stage import Run
from defectory.stages.all import run_all

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture
def siblings(tiny_run: TinyRun, tmp_path: Path, open_tiny: Callable[..., Run]) -> Callable[..., Run]:
    """Runs beside a finished one, `first`, in one folder."""
    shutil.copytree(tiny_run[0], tmp_path / "project")
    (tmp_path / "project" / "cells").mkdir()
    (tmp_path / "project" / "run").rename(tmp_path / "project" / "cells" / "first")

    def run_of(name: str, *overrides: str) -> Run:
        cells = tmp_path / "project" / "cells"
        run = open_tiny(tmp_path / "project", tiny_run[1], *overrides)
        return replace(run, folder=cells / name, siblings=cells)

    return run_of


def ended(run: Run) -> dict[str, StageEnded]:
    return {event.stage: event for event in run_all(run) if isinstance(event, StageEnded)}


def files_of(folder: Path) -> dict[str, bytes]:
    own = (".defectory.json", "project.json", ".defectory.lock")
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in own and "cache" not in path.relative_to(folder).parts
    }


def test_a_run_takes_over_everything_that_its_sibling_made_of_the_same(siblings: Callable[..., Run]) -> None:
    first, second = siblings("first"), siblings("second")
    found = ended(second)
    assert all(event.skipped for event in found.values())
    theirs, mine = files_of(first.folder), files_of(second.folder)
    # manifests record the time of their own making
    assert {n: c for n, c in mine.items() if not n.endswith("stage.json")} == {
        n: c for n, c in theirs.items() if not n.endswith("stage.json")
    }
    one = first.folder / "concept" / "concept.json"
    assert one.stat().st_ino == (second.folder / "concept" / "concept.json").stat().st_ino
    assert all(event.skipped for event in ended(second).values())


def test_only_what_differs_is_made_anew(siblings: Callable[..., Run]) -> None:
    found = ended(siblings("second", "segmentation.num_steps=3"))
    made = {stage for stage, event in found.items() if not event.skipped}
    segmenters = {"segment-real-seed0", "segment-synthetic-seed0", "segment-synthetic_then_real-seed0"}
    assert made - {"evaluate", "certify", "best-segmenter", "report"} == segmenters


def test_a_damaged_result_of_a_sibling_is_not_taken_over(siblings: Callable[..., Run]) -> None:
    first = siblings("first")
    (first.folder / "split" / "split.json").write_text("{}")
    found = ended(siblings("second"))
    assert not found["split"].skipped
    assert found["import"].skipped
    assert found["tiles"].skipped


def test_removing_one_run_leaves_what_the_other_has(siblings: Callable[..., Run]) -> None:
    first, second = siblings("first"), siblings("second")
    ended(second)
    shutil.rmtree(first.folder)
    assert all(event.skipped for event in ended(second).values())


def test_a_turn_is_free_again_once_it_is_released(tmp_path: Path) -> None:
    lock = TurnLock(tmp_path / "a.lock")
    assert lock.take()
    script = (
        "import sys; from pathlib import Path; from defectory.lock import TurnLock; "
        f"sys.exit(0 if TurnLock(Path({str(tmp_path / 'a.lock')!r})).take() else 3)"
    )
    import subprocess
    import sys

    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 3
    lock.release()
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
