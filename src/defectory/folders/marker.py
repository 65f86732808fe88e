"""The marker file that makes a folder ours and lists the files in it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from defectory.errors import OutputError
from defectory.files import MARKER_NAME, canonical_json, digest_file, fsync_folder, write_json

VERSION = 1
NUM_THREADS = 8
"""Number of threads that hash and sync; both wait for the disk and release the interpreter lock."""


@dataclass(frozen=True, kw_only=True)
class Marker:
    """The content of a marker file.

    Attributes:
        kind: kind of folder.
        files: sha256, size in bytes and modification time in ns of each file that we wrote, by relative name.
        maker: identity of the process that is making the folder; None if the folder is complete.
    """

    kind: str
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=lambda: dict[str, Mapping[str, Any]]())
    maker: Mapping[str, Any] | None = None


def read_marker(folder: Path) -> Marker | None:
    """Return the marker of a folder; None if there is none or it is malformed."""
    try:
        content = json.loads((folder / MARKER_NAME).read_bytes())
        files = {str(name): dict(about) for name, about in content["files"].items()}
        for about in files.values():
            if not all(
                isinstance(about[key], kind) for key, kind in (("size", int), ("mtime_ns", int), ("sha256", str))
            ):
                return None
        return Marker(kind=str(content["kind"]), files=files, maker=content.get("maker"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def write_marker(folder: Path, marker: Marker) -> None:
    """Write a folder's marker."""
    content = {
        "kind": marker.kind,
        "version": VERSION,
        "files": {name: dict(about) for name, about in marker.files.items()},
    }
    write_json(folder / MARKER_NAME, content if marker.maker is None else {**content, "maker": dict(marker.maker)})


def is_ours(path: Path, *, kind: str | None = None) -> bool:
    """Return whether a folder carries our marker, with the given kind if any."""
    marker = read_marker(path)
    return marker is not None and kind in (None, marker.kind)


def changed_files(folder: Path, marker: Marker) -> Iterator[str]:
    """Yield the existing files of ours whose content has changed since we wrote them.

    Files with the recorded size and time are not read.
    """
    for name, about in marker.files.items():
        path = folder / name
        with contextlib.suppress(OSError):
            if path.is_symlink():
                yield name
                continue
            if not path.is_file():
                continue
            state = path.stat()
            if (state.st_size, state.st_mtime_ns) == (about["size"], about["mtime_ns"]):
                continue
            if state.st_size != about["size"] or digest_file(path) != about["sha256"]:
                yield name


def folder_is_whole(folder: Path, *, kind: str) -> bool:
    """Return whether a folder is ours, of this kind, and contains every file with the bytes that we wrote."""
    marker = read_marker(folder)
    if marker is None or marker.kind != kind or marker.maker is not None:
        return False
    try:
        return all(digest_file(folder / name) == about["sha256"] for name, about in marker.files.items())
    except OSError:
        return False


def files_of(folder: Path) -> list[str]:
    """Return the relative names of all files under a folder, sorted; links are not followed and not counted."""
    found: list[str] = []
    pending = [folder]
    while pending:
        for entry in os.scandir(pending.pop()):
            if entry.is_dir(follow_symlinks=False):
                pending.append(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path).relative_to(folder).as_posix())
    return sorted(found)


def in_threads(work: Callable[[Any], Any], items: Collection[Any]) -> list[Any]:
    """Call a function that waits for the disk on each item in threads; return the results in order."""
    if len(items) < 4:
        return [work(item) for item in items]
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        return list(pool.map(work, items))


def sync_tree(folder: Path) -> None:
    """Wait until every file and folder under a folder, and the folder itself, is on disk."""

    def sync(path: Path) -> None:
        # Windows syncs only what is open for writing
        with open(path, "rb+" if os.name == "nt" else "rb") as stream:
            os.fsync(stream.fileno())

    names = files_of(folder)
    in_threads(sync, [folder / name for name in names])
    folders = {folder} | {
        parent for name in names for parent in (folder / name).parents if parent.is_relative_to(folder)
    }
    in_threads(fsync_folder, sorted(folders, key=lambda f: -len(f.parts)))


def record_files(folder: Path, names: Iterable[str], *, digests: Mapping[str, str] | None = None) -> None:
    """Add files just written to the marker of a claimed folder, so that later changes to them are noticed.

    Args:
        folder: a folder of ours.
        names: relative names.
        digests: known sha256 of files by name.
    """
    marker = read_marker(folder)
    if marker is None:
        raise OutputError(folder, "was not made by Defectory", "give another folder")
    files = dict(marker.files)
    for name in names:
        state = (folder / name).stat()
        sha256 = (digests or {}).get(name) or digest_file(folder / name)
        files[name] = {"sha256": sha256, "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    if canonical_json(files) != canonical_json({name: dict(about) for name, about in marker.files.items()}):
        write_marker(folder, Marker(kind=marker.kind, files=files, maker=marker.maker))


def require_unchanged(folder: Path, name: str) -> None:
    """Check that a file of a claimed folder is absent, or as we wrote it.

    Raises:
        OutputError: the file exists and we did not write it, or it was changed since.
    """
    path, marker = folder / name, read_marker(folder)
    if not os.path.lexists(path):
        return
    if marker is None or name not in marker.files:
        raise OutputError(path, "exists and was not made by Defectory", "move it, or give another folder")
    only = Marker(kind=marker.kind, files={name: marker.files[name]})
    if next(changed_files(folder, only), None) is not None:
        raise OutputError(path, "was changed since Defectory wrote it", "move it, or give another folder")
