"""Folders made by Defectory: recognised by a marker file, replaced as a whole, never confused with a user's own.

A folder is ours if it carries our marker (`.defectory.json`) with the expected kind. Any other folder that is not empty
is refused, and only files that the marker lists are removed. A new folder is made beside the old one, synced to disk
(`sync_tree`) and swapped in when it is complete.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
from collections.abc import Collection, Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from defectory.errors import InputError, OutputError
from defectory.files import (
    BOOKKEEPING,
    DRAWN_NAME,
    MARKER_NAME,
    absolute,
    digest_file,
    fsync_folder,
    in_progress,
    reason_of,
    unfinished_folder_of,
)
from defectory.lock import is_alive, process_identity, start_of
from defectory.marker import (
    Marker,
    changed_files,
    files_of,
    folder_is_whole,
    in_threads,
    is_ours,
    read_marker,
    record_files,
    require_unchanged,
    sync_tree,
    write_marker,
)

WORK_NAME = ".work"
"""Folder of a run in which stages prepare their outputs; everything in it is ours."""
FULL = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"})
SYSTEM_LITTER = frozenset(
    {".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", ".directory", "@eadir", "lost+found", ".nfs"}
)
"""Lower-case names of files that operating systems create; a folder with nothing else counts as empty."""
_LEFTOVER = re.compile(
    r"\.defectory-\d+-[0-9a-f]{8}\.tmp(\..*)?|\.defectory\..+\.(?P<pid>\d+)\.[0-9a-f]{8}\.(tmp|old)|\.tmp[0-9A-Za-z]{6}"
)
"""Names of half-written files and folders of ours, and of half-written safetensors files."""


def is_empty(folder: Path) -> bool:
    """Return whether a folder contains nothing but files that the system creates."""
    return not _users_names(folder)


def require_replaceable(path: Path, *, kind: str, sources: Iterable[Path] = (), addressed: bool = True) -> None:
    """Check that a folder may be made at `path`: it is absent, empty, or ours of this kind.

    Args:
        path: the folder to make.
        kind: kind of folder.
        sources: files and folders that it is made from; they must not lie in it.
        addressed: whether a user named the folder. If not, files that changed since we wrote them do not matter (they
            count as damaged and are made again), nor does the folder in which the command runs.

    Raises:
        OutputError: the folder may not be made; nothing was written.
    """
    todo = "give another folder"
    where = absolute(path)
    if path.is_symlink():
        raise OutputError(path, "is a link", "give the folder itself, or another folder")
    if where == where.parent:
        raise OutputError(path, "is the root of the file system", todo)
    for place in (where, *where.parents):
        if place.exists():
            if not place.is_dir():
                raise OutputError(place, "is a file, not a folder", todo)
            # an unwritable parent does not matter if the folder exists and is empty
            if not os.access(place, os.W_OK | os.X_OK) and (place == where or not where.exists()):
                raise OutputError(
                    place, "cannot be written (permission denied)", "give another folder, or make it writable"
                )
            break
    if not where.exists():
        return
    if unfinished_folder_of(where) is not None or is_empty(where):
        return
    marker = read_marker(where)
    if marker is None or marker.kind != kind:
        raise OutputError(path, _found(where, marker, kind), todo)
    if not os.access(where.parent, os.W_OK | os.X_OK) or where.is_mount():
        raise OutputError(
            path, "cannot be replaced, because its parent folder cannot be written", "give a new folder below it"
        )
    for source in sources:
        if absolute(source).resolve().is_relative_to(where.resolve()):
            raise OutputError(path, f"contains {source}, which it would be made from", todo)
    if not addressed:
        return
    if Path.cwd().resolve().is_relative_to(where.resolve()):
        raise OutputError(
            path, "is or contains the current folder, which cannot be replaced", "run the command from another folder"
        )
    changed = next(changed_files(where, marker), None)
    if changed is not None:
        raise OutputError(path, f"{changed} was changed since Defectory wrote it", todo)


def _found(folder: Path, marker: Marker | None, kind: str) -> str:
    if marker is not None:
        return f"was made by Defectory as {_named(marker.kind)}, not as {_named(kind)}"
    if (folder / MARKER_NAME).is_file():
        return f"has a marker {MARKER_NAME} that cannot be read, so Defectory cannot tell whether it made the folder"
    return f"was not made by Defectory and is not empty (it holds {_listed(_users_names(folder))})"


def _named(kind: str) -> str:
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind} folder"


def _listed(names: list[str]) -> str:
    more = len(names) - 3
    return ", ".join(name[:60] for name in names[:3]) + (f" and {more} more" if more > 0 else "")


def _users_names(folder: Path) -> list[str]:
    """Return the names in a folder, without system files and leftovers of our dead processes."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise OutputError(folder, f"cannot be read ({reason_of(error)})", "give another folder") from None
    return [
        n
        for n in names
        if n.lower() not in SYSTEM_LITTER and not n.startswith(("._", ".nfs")) and not _LEFTOVER.fullmatch(n)
    ]


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
        with _our_errors(path, None):
            made = _make_parents(where)
            # work beside the folder, except for an empty folder, which is kept: it may be a shell's current folder or a
            # mount point
            inside = where.exists() and read_marker(where) is None
            temporary = _temporary(where if inside else where.parent, where.name)
            temporary.mkdir()
            write_marker(temporary, Marker(kind=kind, maker=process_identity()))
        with _our_errors(path, temporary), in_progress(temporary):
            yield temporary
        with _our_errors(path, temporary):
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
        with _our_errors(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if path.is_symlink() or path.is_file():
                path.unlink()
            _remove_tree(path)
            temporary.rename(path)
    finally:
        _remove_tree(temporary)


@contextlib.contextmanager
def _our_errors(path: Path, temporary: Path | None) -> Generator[None]:
    """Turn the system's errors into ours, for the output and for the files that are read to make it."""
    try:
        yield
    except OSError as error:
        import errno

        name = error.filename
        is_full = errno.errorcode.get(error.errno or 0) in FULL
        if (
            name is not None
            and not is_full
            and temporary is not None
            and error.filename2 is None
            and not isinstance(name, int)
        ):
            other = absolute(Path(os.fsdecode(name)))
            if not other.is_relative_to(absolute(temporary)) and not other.is_relative_to(absolute(path)):
                raise InputError(
                    other, f"cannot be read ({reason_of(error)})", "check the file and its permissions"
                ) from error
        todo = "free space or choose another output folder" if is_full else "choose another output folder"
        raise OutputError(path, f"cannot be written ({reason_of(error)})", todo) from error


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
            raise OutputError(path, _found(path, None, kind), "give another folder")
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


def require_space(folder: Path, needed_bytes: int, *, beside: str) -> None:
    """Check that the disk has at least half of the needed bytes free; the estimate may be too high.

    Args:
        folder: an existing folder.
        needed_bytes: bytes about to be written.
        beside: what stays on disk until then, for the message.

    Raises:
        OutputError: the disk has clearly less.
    """
    free = shutil.disk_usage(folder).free
    if 2 * free < needed_bytes:
        found = (
            f"the disk has {free / 1e6:,.0f} MB free, but about {needed_bytes / 1e6:,.0f} MB are needed beside {beside}"
        )
        raise OutputError(folder, found, "free space; nothing was changed")


def recover(path: Path) -> None:
    """Finish or undo what killed processes of ours left of making `path`: remove half-made folders, complete a swap."""
    prefix = _temporary(path.parent, path.name).name.split(f".{os.getpid()}.")[0] + "."
    for place in (path.parent, path):
        if not place.is_dir() or place.is_symlink():
            continue
        with contextlib.suppress(OSError):
            for entry in sorted(os.scandir(place), key=lambda entry: not entry.name.endswith(".old")):
                match = _LEFTOVER.fullmatch(entry.name)
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
        if _LEFTOVER.fullmatch(path.name):
            _remove_tree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def claim_folder(path: Path, *, kind: str, also: Collection[str] = (), todo: str = "give another folder") -> Path:
    """Claim a folder that fills up over time, and return it; a link is followed.

    The folder must be absent, empty, or already ours of this kind.

    Args:
        path: the folder.
        kind: kind that it gets.
        also: other kinds that are accepted.
        todo: what the user can do if it is refused.

    Raises:
        OutputError: it is not empty and not ours, or cannot be written.
    """
    require_claimable(path, kind=kind, also=also, todo=todo)
    place = path.resolve()
    marker = read_marker(place)
    if marker is None:
        with _our_errors(path, None):
            place.mkdir(parents=True, exist_ok=True)
            write_marker(place, Marker(kind=kind))
    return path


def require_claimable(path: Path, *, kind: str, also: Collection[str] = (), todo: str = "give another folder") -> None:
    """Check that `claim_folder` would succeed, without writing anything.

    Raises:
        OutputError: it would not.
    """
    place = path.resolve()
    if path.is_symlink() and not place.exists():
        raise OutputError(path, f"is a link to {place}, which does not exist", f"make that folder, or {todo}")
    marker = read_marker(place)
    if marker is not None and marker.kind in (kind, *also):
        if not os.access(place, os.W_OK | os.X_OK):
            raise OutputError(path, "cannot be written (permission denied)", "give another folder, or make it writable")
        return
    if marker is not None and place.is_dir():
        raise OutputError(path, _found(place, marker, kind), todo)
    if place.is_dir() and not is_empty(place):
        raise OutputError(path, _found(place, None, kind), todo)
    require_replaceable(place, kind=kind, addressed=False)


def require_new_or_ours(path: Path) -> None:
    """Check that a picture may be written to a file that a user named.

    The file must be absent, or a picture whose metadata says that Defectory made it.

    Raises:
        OutputError: the file exists and was not made by Defectory, or cannot be written.
    """
    if path.is_symlink() or path.is_dir():
        raise OutputError(
            path, "is a link" if path.is_symlink() else "is a folder, not a file", "give another file name"
        )
    if not path.exists():
        require_replaceable(path.parent / f"{path.name}.", kind="picture") if not path.parent.is_dir() else None
        return
    from PIL import Image

    from defectory.imageio import SOFTWARE

    try:
        with Image.open(path) as image:
            told = image.info.get("Software", image.info.get("comment", b""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        told = ""
    if (told.decode("latin-1") if isinstance(told, bytes) else str(told)) not in (SOFTWARE, f"Software: {SOFTWARE}"):
        raise OutputError(path, "exists and was not made by Defectory", "give another file name")


__all__ = [
    "Marker",
    "atomic_folder",
    "changed_files",
    "claim_folder",
    "files_of",
    "folder_is_whole",
    "is_empty",
    "is_ours",
    "publish",
    "read_marker",
    "record_files",
    "recover",
    "remove_leftovers",
    "remove_ours",
    "require_claimable",
    "require_new_or_ours",
    "require_replaceable",
    "require_space",
    "require_unchanged",
    "retire",
    "sync_tree",
    "write_marker",
]
