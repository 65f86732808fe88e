"""Runs side by side in one folder, such as the cells of a study: what one has made, the others take over.

A result is known by the digest of everything it was made from. While one run makes it, the others that need the same
wait for it. Files are hard links where the file system has them, so they take no further space.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectory.events import Progress, Work
from defectory.files import DRAWN_NAME, read_manifest
from defectory.folders.marker import Marker, write_marker
from defectory.folders.swap import remove_ours
from defectory.lock import TurnLock, process_identity
from defectory.runs.stage import Inputs, Run, Stage
from defectory.runs.verify import verify_stage

TURNS = ".turns"
"""Folder of the locks, beside the runs."""


@dataclass(frozen=True, kw_only=True)
class TakenOver:
    """A result that a sibling made: its summary, how long it took there, and the sibling's name."""

    summary: str
    seconds: float
    sibling: str


def take_turn(run: Run, inputs: Inputs) -> Work[TurnLock | None]:
    """Wait until no sibling makes the same result, and return the lock; None if a run has no siblings.

    The caller releases the lock once its own result is in place.
    """
    if run.siblings is None:
        return None
    (run.siblings / TURNS).mkdir(parents=True, exist_ok=True)
    lock = TurnLock(run.siblings / TURNS / f"{inputs.digest}.lock")
    told = False
    while not lock.take():
        if not told:
            yield Progress(done=0, total=1, note="waits for another run that makes the same")
            told = True
        lock.wait()
    return lock


def take_over(run: Run, stage: Stage, inputs: Inputs, work: Path) -> TakenOver | None:
    """Put a sibling's result of the same inputs into the work folder, in place of partial work; None if there is none.

    Only a result that is whole is taken.
    """
    for sibling, manifest in _candidates(run, stage, inputs):
        other = Run(config=run.config, folder=sibling, sources=run.sources)
        if verify_stage(other, stage).state != "whole":
            continue
        remove_ours(work)
        work.mkdir(parents=True, exist_ok=True)
        write_marker(work, Marker(kind="stage", maker={**process_identity(), "inputs": inputs.digest}))
        (work / DRAWN_NAME).unlink(missing_ok=True)
        for name in manifest["files"]:
            target = work / name
            target.parent.mkdir(parents=True, exist_ok=True)
            _link(sibling / stage.folder / name, target)
        info = manifest["info"]
        return TakenOver(summary=str(info["summary"]), seconds=float(info["seconds"]), sibling=sibling.name)
    return None


def _candidates(run: Run, stage: Stage, inputs: Inputs) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the siblings, in order of their names, with a finished result of the same inputs."""
    if run.siblings is None or inputs.missing:
        return
    for place in sorted(os.scandir(run.siblings), key=lambda entry: entry.name):
        sibling = Path(place.path)
        if sibling == run.folder or place.name.startswith(".") or not place.is_dir(follow_symlinks=False):
            continue
        manifest = read_manifest(sibling / stage.folder)
        if manifest is not None and manifest["inputs_digest"] == inputs.digest:
            yield sibling, dict(manifest)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
