"""A power cut at any moment: what a manifest vouches for was on disk before the manifest was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from defectory.events import StageEnded
from defectory.files import write_bytes
from defectory.stages.all import stages_of

Recorded = tuple[tuple[Path, dict[str, Any], list[StageEnded]], Any]


def test_everything_a_manifest_vouches_for_is_synced_before_the_manifest(
    tiny_run_and_its_syncs: Recorded, open_tiny: Any
) -> None:
    (folder, settings, _), recorder = tiny_run_and_its_syncs
    run = open_tiny(folder, settings)
    paths = [path for stage in stages_of(run.config) for path in (run.folder / stage.folder).rglob("*")]
    files = [path for path in paths if path.is_file()]
    assert len(files) > 100
    assert recorder.unsynced == []
    assert [str(path) for path in files if not recorder.is_on_disk(path)] == []


def test_the_recorder_notices_what_is_not_synced(tiny_run_and_its_syncs: Recorded, tmp_path: Path) -> None:
    recorder = type(tiny_run_and_its_syncs[1])()
    with recorder.recording():
        (tmp_path / "weights").write_bytes(b"not synced")
        write_bytes(tmp_path / "stage.json", b"{}")
    assert [Path(path).name for path in recorder.unsynced] == ["weights"]
    assert recorder.is_on_disk(tmp_path / "stage.json")
