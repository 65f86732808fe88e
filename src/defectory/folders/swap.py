"""How a folder of ours is made, replaced and removed, so that neither a kill nor a full disk loses anything.

A new folder is made beside the old one, synced to disk and swapped in when it is complete. A user's files in the old
folder are carried over, and only files that the marker lists are removed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from defectory.errors import OutputError
from defectory.files import (
    BOOKKEEPING,
    DRAWN_NAME,
    MARKER_NAME,
    absolute,
    digest_file,
    fsync_folder,
    in_progress,
    unfinished_folder_of,
)
from defectory.folders.claims import LEFTOVER, is_empty, our_errors, require_replaceable, why_not_ours
from defectory.folders.marker import (
    Marker,
    changed_files,
    files_of,
    in_threads,
    is_ours,
    read_marker,
    sync_tree,
    write_marker,
)
from defectory.lock import is_alive, process_identity, start_of

WORK_NAME = ".work"
"""Folder of a run in which stages prepare their outputs; everything in it is ours."""


@contextlib.contextmanager
def atomic_folder(
    path: Path,
    *,
    kind: str,
    digests: Mapping[str, str] | None = None,
    sources: Iterable[Path] = (),
    addressed: bool = True,
) -> Generator[Path]:
    """Yield a temporary folder; on success it replaces `path`, otherwise it is removed and `path` is unchanged.

    In a folder that is itself unfinished (a stage's work folder), nothing needs protection: no marker is written and
    nothing is synced, because both are done once for the whole.

    Args:
        path: the folder to make: absent, empty, or ours of this kind; a user's files in it are carried over.
        kind: kind of folder.
        digests: known sha256 of files by relative name; the caller may fill it in, and other files are hashed.
        sources: as for `require_replaceable`.
        addressed: as for `require_replaceable`.

    Raises:
        OutputError: `path` is not ours, or cannot be written or is full; nothing is left behind.
    """
    if (unfinished := unfinished_folder_of(path)) is not None:
        with _inner_folder(path, unfinished) as temporary:
            yield temporary
        return
    where = absolute(path)
    recover(where)
    require_replaceable(path, kind=kind, sources=sources, addressed=addressed)
    made: list[Path] = []
    temporary: Path | None = None
    try:
        with our_errors(path, None):
            made = _make_parents(where)
            # work beside the folder, except for an empty folder, which is kept: it may be a shell's current folder or a
            # mount point
            inside = where.exists() and read_marker(where) is None
            temporary = _temporary(where if inside else where.parent, where.name)
            temporary.mkdir()
            write_marker(temporary, Marker(kind=kind, maker=process_identity()))
        with our_errors(path, temporary), in_progress(temporary):
            yield temporary
        with our_errors(path, temporary):
            publish(temporary, where, kind=kind, digests=digests, keep_changed=addressed)
            made = []
    finally:
        if temporary is not None:
            _remove_tree(temporary)
        for folder in reversed(made):
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def _inner_folder(path: Path, unfinished: Path) -> Generator[Path]:
    if absolute(path) == unfinished:
        yield path
        return
    temporary = _temporary(path.parent, path.name)
    try:
        with our_errors(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if path.is_symlink() or path.is_file():
                path.unlink()
            _remove_tree(path)
            temporary.rename(path)
    finally:
        _remove_tree(temporary)


def publish(
    work: Path, path: Path, *, kind: str, digests: Mapping[str, str] | None = None, keep_changed: bool = True
) -> None:
    """Put a complete folder in place of `path`: write its marker, sync it, swap it in, and carry over a user's files.

    Args:
        work: the new folder, beside `path` or on its file system; it no longer exists afterwards.
        path: absent, empty, or ours.
        kind: kind of folder.
        digests: known sha256 of files by relative name.
        keep_changed: keep our files that changed since we wrote them, as `kept-<name>`.
    """
    known = digests or {}
    names = [name for name in files_of(work) if Path(name).name not in BOOKKEEPING]
    hashes = dict(zip(names, in_threads(lambda name: known.get(name) or digest_file(work / name), names), strict=True))
    files: dict[str, dict[str, Any]] = {}
    for name in names:
        state = (work / name).stat()
        files[name] = {"sha256": hashes[name], "size": state.st_size, "mtime_ns": state.st_mtime_ns}
    with in_progress(work):
        write_marker(work, Marker(kind=kind, files=files))
    (work / DRAWN_NAME).unlink(missing_ok=True)
    work.chmod(0o755)
    sync_tree(work)
    if not path.exists():
        work.rename(path)
        fsync_folder(path.parent)
    elif read_marker(path) is None:
        if not is_empty(path):  # it was when we began
            raise OutputError(path, why_not_ours(path, None, kind), "give another folder")
        _move_up(work, path)
        fsync_folder(path)
    else:
        old = work
        if not _exchange(work, path):
            old = _temporary(path.parent, path.name, end="old")
            path.rename(old)
            work.rename(path)
        fsync_folder(path.parent)
        retire(old, path, keep_changed=keep_changed)


def _move_up(work: Path, path: Path) -> None:
    """Move the content of a folder into an empty one; the marker goes last and makes a complete folder ours."""
    for entry in sorted(os.scandir(work), key=lambda entry: entry.name == MARKER_NAME):
        Path(entry.path).rename(path / entry.name)
    work.rmdir()


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; return False if the system or the file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    at_cwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return renameat2(at_cwd, os.fsencode(one), at_cwd, os.fsencode(other), rename_exchange) == 0


def retire(old: Path, new: Path, *, keep_changed: bool) -> None:
    """Remove an old folder of ours after another has replaced it.

    A user's files in it, and changed files if requested, move to the new folder.
    """
    marker = read_marker(old)
    if marker is None or marker.maker is not None:
        return
    changed = set(changed_files(old, marker)) if keep_changed else set[str]()
    for name in _entries_of(old):
        if name == MARKER_NAME or (name in marker.files and name not in changed and not (old / name).is_symlink()):
            continue
        target = new / name
        if os.path.lexists(target) or any(parent.is_file() for parent in target.parents):
            number, target = 1, new / f"kept-{Path(name).name}"
            while os.path.lexists(target):
                number, target = number + 1, new / f"kept-{number + 1}-{Path(name).name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        (old / name).rename(target)
    _remove_listed(old, marker)


def _entries_of(folder: Path) -> list[str]:
    """Return the relative names of everything under a folder that is not a folder, including links."""
    found: list[str] = []
    for place, folders, files in os.walk(folder):
        names = [*files, *(name for name in folders if (Path(place) / name).is_symlink())]
        found += [(Path(place) / name).relative_to(folder).as_posix() for name in names]
    return sorted(found)


def _remove_listed(folder: Path, marker: Marker) -> None:
    for name in marker.files:
        # a listed name never leads out of its folder
        if (
            not Path(name).is_absolute()
            and ".." not in Path(name).parts
            and (folder / name).parent.resolve().is_relative_to(folder.resolve())
        ):
            with contextlib.suppress(OSError):
                (folder / name).unlink(missing_ok=True)
    places = sorted((Path(place) for place, _, _ in os.walk(folder)), key=lambda place: -len(place.parts))
    for place in places[:-1]:
        with contextlib.suppress(OSError):
            place.rmdir()
    if {entry.name for entry in os.scandir(folder)} <= {MARKER_NAME}:
        (folder / MARKER_NAME).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()


def remove_ours(path: Path) -> None:
    """Remove a folder of ours, but keep what a user put there.

    An unfinished folder, or one inside it, is removed completely; in any other folder, the files that the marker lists
    are removed. This is the only function that removes a folder with its content. A folder without our marker is left
    alone.
    """
    if path.is_symlink():
        return
    unfinished = unfinished_folder_of(path)
    inside_ours = unfinished is not None and unfinished != absolute(path)
    if inside_ours or any(
        parent.name == WORK_NAME and is_ours(parent, kind="work") for parent in absolute(path).parents
    ):
        _remove_tree(path)
        return
    marker = read_marker(path)
    if marker is None:
        return
    if marker.maker is not None:
        _remove_tree(path)
    else:
        _remove_listed(path, marker)


def _remove_tree(temporary: Path) -> None:
    """Remove a folder that only this process, or a dead process of ours, has written to."""
    shutil.rmtree(temporary, ignore_errors=True)


def _make_parents(path: Path) -> list[Path]:
    missing = [folder for folder in path.parents if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
    return list(reversed(missing))


def _temporary(parent: Path, name: str, *, end: str = "tmp") -> Path:
    # a file system allows 255 bytes, which a long name may use up
    short = name if len(name.encode()) <= 100 else f"{name[:20]}~"
    return parent / f".defectory.{short}.{os.getpid()}.{secrets.token_hex(4)}.{end}"


def recover(path: Path) -> None:
    """Finish or undo what killed processes of ours left of making `path`: remove half-made folders, complete a swap."""
    prefix = _temporary(path.parent, path.name).name.split(f".{os.getpid()}.")[0] + "."
    for place in (path.parent, path):
        if not place.is_dir() or place.is_symlink():
            continue
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(place), key=lambda entry: not entry.name.endswith(".old")):
                match = LEFTOVER.fullmatch(entry.name)
                if match and match["pid"] and entry.name.startswith(prefix) and entry.is_dir(follow_symlinks=False):
                    _recover_one(Path(entry.path), path, int(match["pid"]))


def _recover_one(leftover: Path, path: Path, pid: int) -> None:
    marker = read_marker(leftover)
    if marker is None:
        with contextlib.suppress(OSError):
            leftover.rmdir()
    elif marker.maker is not None:
        if is_alive(marker.maker) is False:
            _remove_tree(leftover)
    elif pid == os.getpid() or start_of(pid) is None:
        if not path.exists():
            leftover.rename(path)
        elif leftover.parent == path and read_marker(path) is None:
            _move_up(leftover, path)
        elif is_ours(path, kind=marker.kind):
            retire(leftover, path, keep_changed=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written in an unfinished folder of ours.

    The folder then ends up as if the process had not been killed.
    """
    for path in sorted(folder.rglob(".*")):
        if LEFTOVER.fullmatch(path.name):
            _remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
