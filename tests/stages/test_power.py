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
    folders = [run.folder / stage.folder for stage in stages_of(run.config)]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 100
    assert recorder.vouched >= set(folders)
    assert recorder.unsynced == []
    assert [str(path) for path in files if not recorder.is_on_disk(path)] == []


def test_the_recorder_notices_what_is_not_synced(sync_recorder: Any, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with sync_recorder.recording():
        (work / "weights").write_bytes(b"not synced")
        # a manifest that appears in its folder, and then one that appears with it
        write_bytes(work / "stage.json", b"{}")
        assert [Path(path).name for path in sync_recorder.unsynced] == ["weights"]
        work.rename(tmp_path / "finished")
    assert [Path(path).name for path in sync_recorder.unsynced] == ["weights", "weights"]
    assert sync_recorder.vouched == {work, tmp_path / "finished"}
    assert sync_recorder.is_on_disk(tmp_path / "finished" / "stage.json")
