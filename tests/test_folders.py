"""Folders of ours: what may be replaced, what is carried over, what a kill or a full disk leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from defectory.errors import InputError, OutputError
from defectory.files import MARKER_NAME, in_progress
from defectory.folders.claims import claim_folder, require_new_or_ours, require_replaceable
from defectory.folders.marker import (
    Marker,
    folder_is_whole,
    is_ours,
    read_marker,
    record_files,
    require_unchanged,
    write_marker,
)
from defectory.folders.swap import atomic_folder, recover, remove_leftovers, remove_ours
from defectory.images.save import save_jpeg, save_png


def make(path: Path, text: str = "a", *, kind: str = "dataset", addressed: bool = True) -> None:
    with atomic_folder(path, kind=kind, addressed=addressed) as folder:
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_text(text)
        (folder / "index.json").write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {
        p.relative_to(folder).as_posix(): p.read_text()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != MARKER_NAME
    }


def test_a_folder_of_ours_is_replaced_as_a_whole_and_lists_its_files(tmp_path: Path) -> None:
    make(tmp_path / "out", "one")
    with atomic_folder(tmp_path / "out", kind="dataset") as folder:
        (folder / "other.txt").write_text("two")
    assert contents(tmp_path / "out") == {"other.txt": "two"}
    marker = read_marker(tmp_path / "out")
    assert marker is not None
    assert (marker.kind, list(marker.files), marker.maker) == ("dataset", ["other.txt"], None)
    assert folder_is_whole(tmp_path / "out", kind="dataset")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    ("prepare", "found"),
    [
        (lambda p: [(p / name).mkdir(parents=True) for name in ("a", "b", "c", "d")], "it holds a, b, c and 1 more"),
        (lambda p: p.write_text("mine"), "is a file, not a folder"),
        (lambda p: make(p, kind="run"), "was made by Defectory as a run folder, not as a dataset folder"),
        (lambda p: p.symlink_to(p.parent), "is a link"),
        (lambda p: (p.mkdir(), (p / MARKER_NAME).write_text("{")), "has a marker .defectory.json that cannot be read"),
    ],
)
def test_what_is_not_ours_is_refused_and_stays(tmp_path: Path, prepare: Callable[[Path], object], found: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    prepare(place / "out")
    before = {p: p.lstat().st_mtime_ns for p in place.rglob("*")}
    for attempt in (make, lambda p: require_replaceable(p, kind="dataset")):
        with pytest.raises(OutputError, match=found) as caught:
            attempt(place / "out")
        assert "\n" not in str(caught.value)
    assert {p: p.lstat().st_mtime_ns for p in place.rglob("*")} == before


def test_the_root_of_the_file_system_and_places_below_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="root of the file system"):
        make(Path("/"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"file: is a file, not a folder"):
        make(tmp_path / "file" / "a" / "out")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_empty_current_folder_is_filled_and_stays_the_same_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    (place / ".DS_Store").write_text("litter")
    number = place.stat().st_ino
    monkeypatch.chdir(place)
    make(Path())
    assert place.stat().st_ino == number
    assert set(contents(place)) == {".DS_Store", "images/a.png", "index.json"}
    assert is_ours(place, kind="dataset")
    with pytest.raises(OutputError, match="current folder"):
        make(Path())
    make(tmp_path / "whole")
    (tmp_path / "whole" / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "whole" / "sub")
    with pytest.raises(OutputError, match="current folder"):
        make(tmp_path / "whole")


def test_files_of_others_are_carried_over_unchanged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out, "one")
    (out / "images" / "mine.png").write_text("mine")
    (out / "notes").mkdir()
    (out / "notes" / "todo.txt").write_text("call Ann")
    (out / "new.txt").write_text("mine, too")
    (out / "link").symlink_to(tmp_path / "nowhere")
    with atomic_folder(out, kind="dataset") as folder:
        (folder / "new.txt").write_text("ours")
    expected = {"images/mine.png": "mine", "notes/todo.txt": "call Ann", "new.txt": "ours", "kept-new.txt": "mine, too"}
    assert contents(out) == expected
    assert (out / "link").is_symlink()
    assert list(read_marker(out).files) == ["new.txt"]  # type: ignore[union-attr]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_of_ours_that_was_edited_is_not_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    make(out)
    (out / "index.json").write_text("edited")
    with pytest.raises(OutputError, match=r"index\.json was changed since Defectory wrote it"):
        make(out, "b")
    assert (out / "index.json").read_text() == "edited"
    make(out, "b", addressed=False)
    assert (out / "index.json").read_text() == "b"


def test_a_file_that_was_touched_or_copied_only_counts_as_unchanged(tmp_path: Path) -> None:
    make(tmp_path / "out")
    os.utime(tmp_path / "out" / "index.json", ns=(1, 1))
    make(tmp_path / "out", "b")
    assert contents(tmp_path / "out")["index.json"] == "b"


def test_an_edit_made_while_the_new_folder_was_made_is_kept(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with atomic_folder(tmp_path / "out", kind="dataset") as folder:
        (folder / "index.json").write_text("new")
        (tmp_path / "out" / "index.json").write_text("edited meanwhile")
    assert contents(tmp_path / "out") == {"index.json": "new", "kept-index.json": "edited meanwhile"}


def test_a_source_inside_the_folder_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "out")
    with pytest.raises(OutputError, match="which it would be made from"):
        require_replaceable(tmp_path / "out", kind="dataset", sources=[tmp_path / "out" / "images"])


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), ValueError("stop"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path, fault: BaseException) -> None:
    make(tmp_path / "out")
    with (
        pytest.raises((OutputError, ValueError, KeyboardInterrupt)),
        atomic_folder(tmp_path / "out", kind="dataset") as folder,
    ):
        (folder / "half").write_text("half")
        raise fault
    with (
        pytest.raises((OutputError, ValueError, KeyboardInterrupt)),
        atomic_folder(tmp_path / "a" / "b", kind="dataset"),
    ):
        raise fault
    assert contents(tmp_path) == {"out/images/a.png": "a", "out/index.json": "a"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_and_an_unreadable_source_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no space left on device"), atomic_folder(tmp_path / "out", kind="dataset"):
        raise OSError(28, "No space left on device")
    with (
        pytest.raises(InputError, match=r"source\.png: cannot be read \(no such file") as caught,
        atomic_folder(tmp_path / "out", kind="x"),
    ):
        (tmp_path / "source.png").read_bytes()
    assert not isinstance(caught.value, OutputError)


KILLED = """
import os, signal, sys
from pathlib import Path
from defectory.folders import swap
out, moment = Path(sys.argv[1]), sys.argv[2]
def die(*_arguments, **_keywords):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "before the swap":
    swap._exchange = die
if moment == "between two renames":
    swap._exchange = lambda *_: False
    renamed = Path.rename
    Path.rename = lambda self, target: (renamed(self, target), die())
if moment == "after the swap":
    swap.retire = die
if moment == "while moving up":
    renamed = Path.rename
    Path.rename = lambda self, target: (renamed(self, target), die())
with swap.atomic_folder(out, kind="dataset") as folder:
    (folder / "index.json").write_text("b")
    (folder / "extra.json").write_text("b")
    if moment == "while writing":
        die()
"""


@pytest.mark.parametrize("moment", ["while writing", "before the swap", "between two renames", "after the swap"])
def test_a_kill_at_any_moment_loses_nothing_and_the_next_call_tidies_up(tmp_path: Path, moment: str) -> None:
    out = tmp_path / "out"
    make(out)
    (out / "mine.txt").write_text("mine")
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, str(out), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    recover(out)
    state = contents(out)
    assert state.pop("mine.txt") == "mine"
    assert state in ({"index.json": "b", "extra.json": "b"}, {"index.json": "a", "images/a.png": "a"})
    assert (state["index.json"] == "b") == (moment == "after the swap")
    make(out, "c")
    assert contents(out) == {"index.json": "c", "images/a.png": "c", "mine.txt": "mine"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("moment", ["while writing", "while moving up"])
def test_a_kill_while_an_empty_folder_is_filled_leaves_one_that_can_be_filled(tmp_path: Path, moment: str) -> None:
    (tmp_path / "out").mkdir()
    done = subprocess.run([sys.executable, "-P", "-c", KILLED, str(tmp_path / "out"), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    make(tmp_path / "out", "c")
    assert contents(tmp_path / "out") == {"index.json": "c", "images/a.png": "c"}


def test_a_temporary_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "out", kind="dataset") as first:
        (first / "x").write_text("first")
        make(tmp_path / "out", "second")
        assert (first / "x").read_text() == "first"
    assert contents(tmp_path / "out") == {"x": "first"}


def test_nothing_without_our_marker_is_ever_removed(tmp_path: Path) -> None:
    (tmp_path / "users").mkdir()
    (tmp_path / "users" / "file").write_text("mine")
    remove_ours(tmp_path / "users")
    make(tmp_path / "ours")
    (tmp_path / "ours" / "mine.txt").write_text("mine")
    remove_ours(tmp_path / "ours")
    assert contents(tmp_path) == {"users/file": "mine", "ours/mine.txt": "mine"}
    write_marker(
        tmp_path / "users", Marker(kind="x", files={"../ours/mine.txt": {"sha256": "", "size": 4, "mtime_ns": 0}})
    )
    remove_ours(tmp_path / "users")
    assert contents(tmp_path) == {"users/file": "mine", "ours/mine.txt": "mine"}


def test_inside_an_unfinished_folder_nothing_is_marked_or_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with in_progress(tmp_path / "work"):
        make(tmp_path / "work" / "part")
        make(tmp_path / "work" / "part", "b")
    assert contents(tmp_path / "work" / "part") == {"index.json": "b", "images/a.png": "b"}
    assert not is_ours(tmp_path / "work" / "part")
    assert not synced
    make(tmp_path / "out")
    assert len(synced) >= 5  # two files, the marker, two folders and the parent


def test_leftovers_in_an_unfinished_folder_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".defectory.base.77.0123abcd.tmp").mkdir()
    (tmp_path / ".defectory-77-0123abcd.tmp.json").write_text("half")
    (tmp_path / ".tmpAb12cD").write_text("half")
    for name in (".keep", ".tmp", "notes.tmp"):
        (tmp_path / name).write_text("mine")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".keep", ".tmp", "notes.tmp"]


def test_a_folder_that_fills_up_is_claimed_once(tmp_path: Path) -> None:
    claim_folder(tmp_path / "a" / "run", kind="run")
    (tmp_path / "a" / "run" / "more.txt").write_text("x")
    claim_folder(tmp_path / "a" / "run", kind="run")
    claim_folder(tmp_path / "a" / "run", kind="other", also=("run",))
    (tmp_path / "link").symlink_to(tmp_path / "a" / "run")
    claim_folder(tmp_path / "link", kind="run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match=r"is a link to .*nowhere, which does not exist; make that folder"):
        claim_folder(tmp_path / "dangling", kind="run")
    assert not (tmp_path / "nowhere").exists()
    with pytest.raises(OutputError, match="not as a demo folder"):
        claim_folder(tmp_path / "a" / "run", kind="demo")
    with pytest.raises(OutputError, match=r"it holds run\); set it"):
        claim_folder(tmp_path / "a", kind="run", todo="set it")
    assert not (tmp_path / "a" / MARKER_NAME).exists()


def test_a_file_of_a_claimed_folder_is_told_apart_from_an_edited_one(tmp_path: Path) -> None:
    claim_folder(tmp_path, kind="demo")
    require_unchanged(tmp_path, "project.toml")
    (tmp_path / "project.toml").write_text("a = 1")
    with pytest.raises(OutputError, match="not made by Defectory"):
        require_unchanged(tmp_path, "project.toml")
    record_files(tmp_path, ["project.toml"])
    require_unchanged(tmp_path, "project.toml")
    (tmp_path / "project.toml").write_text("a = 2")
    with pytest.raises(OutputError, match="was changed"):
        require_unchanged(tmp_path, "project.toml")


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_picture_of_ours_may_be_replaced_and_no_other(tmp_path: Path, suffix: str) -> None:
    path, image, save = (
        tmp_path / f"sheet{suffix}",
        np.zeros((4, 6, 3), np.uint8),
        save_png if suffix == ".png" else save_jpeg,
    )
    require_new_or_ours(path)
    save(path, image)
    with pytest.raises(OutputError, match="not made by Defectory"):
        require_new_or_ours(path)
    save(path, image, software=True)
    require_new_or_ours(path)
    path.unlink()
    path.write_text("a letter")
    with pytest.raises(OutputError, match="not made by Defectory"):
        require_new_or_ours(path)
    with pytest.raises(OutputError, match="is a folder"):
        require_new_or_ours(tmp_path)


def test_long_names_leave_room_for_the_temporary_ones(tmp_path: Path) -> None:
    name = "ß" * 120
    make(tmp_path / name)
    make(tmp_path / name, "b")
    assert contents(tmp_path / name)["index.json"] == "b"
    save_png(tmp_path / ("x" * 251 + ".png"), np.zeros((4, 6, 3), np.uint8))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"kind": 3}', b"\xff\xfe", json.dumps({"kind": "a", "files": {"x": 1}}).encode()]
)
def test_a_marker_that_cannot_be_understood_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MARKER_NAME).write_bytes(content)
    assert read_marker(tmp_path) is None
    with pytest.raises(OutputError, match="cannot be read"):
        make(tmp_path)
