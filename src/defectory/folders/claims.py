"""What may be written: checks of an output before anything is made, their wording, and claims of folders that fill up.

A folder is ours if it carries our marker (`.defectory.json`) with the expected kind. Any other folder that is not empty
is refused.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Collection, Generator, Iterable
from pathlib import Path

from defectory.errors import InputError, OutputError
from defectory.files import MARKER_NAME, absolute, reason_of, unfinished_folder_of
from defectory.folders.marker import Marker, changed_files, read_marker, write_marker

FULL = frozenset({"ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO"})
SYSTEM_LITTER = frozenset(
    {".ds_store", "thumbs.db", "desktop.ini", "ehthumbs.db", ".directory", "@eadir", "lost+found", ".nfs"}
)
"""Lower-case names of files that operating systems create; a folder with nothing else counts as empty."""
LEFTOVER = re.compile(
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
        raise OutputError(path, why_not_ours(where, marker, kind), todo)
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


def why_not_ours(folder: Path, marker: Marker | None, kind: str) -> str:
    """Return what a folder is instead of ours of this kind, for an error."""
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
        if n.lower() not in SYSTEM_LITTER and not n.startswith(("._", ".nfs")) and not LEFTOVER.fullmatch(n)
    ]


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
        with our_errors(path, None):
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
        raise OutputError(path, why_not_ours(place, marker, kind), todo)
    if place.is_dir() and not is_empty(place):
        raise OutputError(path, why_not_ours(place, None, kind), todo)
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

    from defectory.images.save import SOFTWARE

    try:
        with Image.open(path) as image:
            told = image.info.get("Software", image.info.get("comment", b""))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        told = ""
    if (told.decode("latin-1") if isinstance(told, bytes) else str(told)) not in (SOFTWARE, f"Software: {SOFTWARE}"):
        raise OutputError(path, "exists and was not made by Defectory", "give another file name")


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


@contextlib.contextmanager
def our_errors(path: Path, temporary: Path | None) -> Generator[None]:
    """Turn the system's errors into ours, for the output and for the files that are read to make it."""
    try:
        yield
    except OSError as error:
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
