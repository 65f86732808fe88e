"""Segmenters trained in processes of their own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from defectory.artifacts.split import Split
from defectory.errors import FirewallError, StageError
from defectory.events import Progress, StageEnded
from defectory.files import digest_file, digest_json, read_manifest
from defectory.folders.marker import record_files
from defectory.runs.stage import Run
from defectory.stages import all as all_module
from defectory.stages.all import CHECKS, run_all, stages_of

Open = Callable[..., Run]
Children = Callable[[], list[psutil.Process]]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
SIDE_BY_SIDE = "num_processes=2"
RUN = """
import json, sys
from pathlib import Path
from defectory.stages.all import run_all
from defectory.runs.sources import Sources
from defectory.runs.stage import Run
from defectory.config.resolve import resolve

folder, settings, override = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3]
config = resolve(project=settings, overrides=[override]).config
project = Run(config=config, folder=folder / "run", sources=Sources(folder=folder))
for event in run_all(project, only=["segment"]):
    print(event, flush=True)
"""


@pytest.fixture
def untrained(tiny_run: TinyRun, tmp_path: Path) -> tuple[Path, dict[str, Any], dict[str, str]]:
    """A copy of the run without its segmenters, its settings, and the digests that they had."""
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    digests = outcome(folder / "run")
    shutil.rmtree(tmp_path / "copy" / "run" / "segment")
    return tmp_path / "copy", settings, digests


def forge(folder: Path, name: str) -> None:
    """Make manifest and marker of a stage folder agree with a file that was changed."""
    manifest = read_manifest(folder)
    assert manifest is not None
    manifest["files"][name] = digest_file(folder / name)
    manifest["info"]["output_digest"] = digest_json(manifest["files"])
    (folder / "stage.json").write_text(json.dumps(manifest))
    record_files(folder, [name, "stage.json"])


def outcome(run: Path) -> dict[str, str]:
    manifests = {
        path.parent.name: read_manifest(path.parent) for path in sorted((run / "segment").glob("*/stage.json"))
    }
    return {name: str((manifest or {})["info"]["output_digest"]) for name, manifest in manifests.items()}


def test_segmenters_trained_side_by_side_are_those_trained_one_after_the_other(
    untrained: tuple[Path, dict[str, Any], dict[str, str]], open_tiny: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, settings, digests = untrained
    # modules of a user's own in the current folder are none of ours
    for name in ("scipy", "psutil", "torch", "random"):
        (folder / f"{name}.py").write_text("raise SystemExit('a file beside the project was executed')")
    monkeypatch.chdir(folder)
    project = open_tiny(folder, settings, SIDE_BY_SIDE)
    events = list(run_all(project, only=["segment"]))
    assert outcome(folder / "run") == digests
    assert {e.stage for e in events if isinstance(e, StageEnded)} == {
        s.name for s in stages_of(project.config) if s.name.startswith("segment-")
    }
    assert {e.stage for e in events if isinstance(e, Progress)} == {
        e.stage for e in events if isinstance(e, StageEnded)
    }
    assert all(e.summary.startswith("validation segm mAP") for e in events if isinstance(e, StageEnded))
    # how they were trained is none of what decides whether they are up to date
    again = list(run_all(open_tiny(folder, settings), only=["segment"]))
    assert all(isinstance(event, StageEnded) and event.skipped for event in again)


def test_the_first_failure_is_told_as_what_it_is_and_ends_the_others(
    untrained: tuple[Path, dict[str, Any], dict[str, str]],
    open_tiny: Open,
    monkeypatch: pytest.MonkeyPatch,
    children: Children,
) -> None:
    folder, settings, _ = untrained
    path = folder / "run" / "split" / "split.json"
    split = Split.load(path)
    moved = split.train[0]
    # an image taken out of train: the drafts made from it, which are there, must not reach a training
    forged = split.model_copy(update={"train": split.train[1:]})
    forged.save(path)
    with pytest.raises(StageError, match=r"split\.json is changed or damaged; `defectory run` makes stage split anew"):
        list(run_all(open_tiny(folder, settings, SIDE_BY_SIDE), only=["segment"]))
    assert outcome(folder / "run") == {}
    # not even where the manifests have been made to agree
    forge(path.parent, "split.json")
    monkeypatch.setattr(all_module, "CHECKS", replace(CHECKS, before_training=lambda *_: ()))
    refused = rf"^segment-synthetic[a-z_]*-seed0, image [\w-]+: image ids \[{moved}\] are not in train or pool"
    with pytest.raises(FirewallError, match=refused):
        list(run_all(open_tiny(folder, settings, SIDE_BY_SIDE), only=["segment"]))
    # the arm of real images alone breaks no rule, and may have ended first
    assert not [name for name in outcome(folder / "run") if "synthetic" in name]
    assert not children()


@pytest.mark.long
def test_killing_a_run_ends_the_processes_it_started_and_it_goes_on_to_the_same_end(
    untrained: tuple[Path, dict[str, Any], dict[str, str]], open_tiny: Open
) -> None:
    folder, settings, digests = untrained
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN, str(folder), json.dumps(settings), SIDE_BY_SIDE], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert any("Progress" in line for line in parent.stdout)
    started = psutil.Process(parent.pid).children()
    assert len(started) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 20
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in started):
        assert time.monotonic() < deadline, "a process outlived the run that started it"
        time.sleep(0.05)
    assert len(outcome(folder / "run")) < len(digests)
    list(run_all(open_tiny(folder, settings, SIDE_BY_SIDE), only=["segment"]))
    assert outcome(folder / "run") == digests


@pytest.mark.long
def test_a_killed_segmenter_is_told_with_what_to_do(
    untrained: tuple[Path, dict[str, Any], dict[str, str]], open_tiny: Open, children: Children
) -> None:
    folder, settings, _ = untrained
    events = run_all(open_tiny(folder, settings, SIDE_BY_SIDE), only=["segment"])
    assert any(isinstance(event, Progress) for event in events)
    for child in children():
        child.kill()
    with pytest.raises(StageError, match=r"segment-.*killed by signal 9.*num_processes=1"):
        list(events)
