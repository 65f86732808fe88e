"""The run folder: atomic writes, content digests and stage manifests.

A stage's manifest (`stage.json`) records what the stage was made from and the digest of every file. If the manifest's
`inputs_digest` equals the current one and the files match their digests, the stage does not run again. Does not depend
on what any stage does.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from defectory.errors import OutputError

MANIFEST_NAME = "stage.json"
MARKER_NAME = ".defectory.json"
"""The file that marks a folder as made by Defectory; see `defectory.folders`."""
DRAWN_NAME = ".defectory.drawn"
"""The list of completed drafts in an unfinished folder."""
BOOKKEEPING = frozenset({MARKER_NAME, DRAWN_NAME, ".defectory.lock"})
"""Names of files that describe a folder and are not part of its content."""


def canonical_json(value: object) -> str:
    """Return the canonical JSON text of a value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: object) -> str:
    """Return the SHA-256 hex digest of a JSON-compatible value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Return the SHA-256 hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_folder(folder: Path, *, exclude: tuple[str, ...] = (MANIFEST_NAME,)) -> str:
    """Return the SHA-256 hex digest of all files under a folder and their names.

    Bookkeeping files are ignored, and the order of files does not matter.
    """
    entries = {
        path.relative_to(folder).as_posix(): digest_file(path)
        for path in folder.rglob("*")
        if path.is_file() and path.name not in exclude and path.name not in BOOKKEEPING
    }
    return digest_json(entries)


_in_progress: set[Path] = set()


@contextlib.contextmanager
def in_progress(folder: Path) -> Generator[None]:
    """Declare a folder unfinished.

    Files written in it are not fsynced one by one; the folder is synced as a whole before use.
    """
    folder = absolute(folder)
    nested = folder in _in_progress
    _in_progress.add(folder)
    try:
        yield
    finally:
        if not nested:
            _in_progress.discard(folder)


def unfinished_folder_of(path: Path) -> Path | None:
    """Return the unfinished folder that a path is or lies in; None if there is none."""
    if not _in_progress:
        return None
    path = absolute(path)
    return next((folder for folder in (path, *path.parents) if folder in _in_progress), None)


def absolute(path: Path) -> Path:
    """Return an absolute path with the links of its parent resolved and its last component unchanged."""
    path = Path(os.path.abspath(path))  # noqa: PTH100  # Path.absolute keeps `..`
    return path.parent.resolve() / path.name


def fsync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk, as far as the system and the file system support it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # some network and user-space file systems do not support fsync of folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path, *, durable: bool | None = None) -> Generator[Path]:
    """Yield a temporary file name beside `path`; on success fsync it and rename it to `path`.

    Args:
        path: the file.
        durable: wait until the file is on disk; None means yes, except in an unfinished folder (`in_progress`).

    Raises:
        OutputError: the folder cannot be written or is full; nothing is left behind.
    """
    if durable is None:
        durable = unfinished_folder_of(path) is None
    # a short name, because the file's own name may already have the maximum length
    temporary = path.with_name(f".defectory-{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix[:16]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if durable:
            with open(temporary, "rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(temporary, path)
        if durable:
            fsync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            path, f"cannot be written ({reason_of(error)})", "free space or choose another output folder"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def reason_of(error: OSError) -> str:
    """Return the system's description of an error, in lower case."""
    return (error.strerror or str(error) or type(error).__name__).lower()


def write_bytes(path: Path, data: bytes, *, durable: bool | None = None) -> None:
    """Write bytes to a file atomically (temporary name, fsync, rename); `durable` as for `atomic_path`."""
    with atomic_path(path, durable=durable) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str, *, durable: bool | None = None) -> None:
    """Write UTF-8 text to a file atomically; `durable` as for `atomic_path`."""
    write_bytes(path, text.encode(), durable=durable)


def write_json(path: Path, value: object, *, durable: bool | None = None) -> None:
    """Write a JSON-compatible value to a file atomically, indented, keys sorted; `durable` as for `atomic_path`."""
    write_text(
        path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n", durable=durable
    )


def stage_is_done(folder: Path, inputs_digest: str) -> bool:
    """Return whether a stage folder's manifest shows that the stage finished for exactly these inputs."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest["inputs_digest"] == inputs_digest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return the manifest of a stage folder; None if there is none or it is malformed.

    Its keys: `inputs_digest`; `inputs`, the digest of each thing that the stage depends on; `files`, the SHA-256 of
    each file by relative name; `info` with `summary`, `output_digest` and `seconds`.
    """
    try:
        content = json.loads((folder / MANIFEST_NAME).read_bytes())
        inputs, files, info = content["inputs"], content["files"], content["info"]
        # a manifest of before settings were kept has none
        content.setdefault("settings", {}).items()
        texts = [content["inputs_digest"], info["summary"], info["output_digest"], *inputs.values(), *files.values()]
        if not all(isinstance(text, str) for text in texts) or info["output_digest"] != digest_json(files):
            return None
        float(info["seconds"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return content


def finish_stage(
    folder: Path,
    *,
    inputs_digest: str,
    inputs: Mapping[str, str],
    settings: Mapping[str, object],
    files: Mapping[str, str],
    summary: str,
    seconds: float,
) -> None:
    """Write a stage's manifest, the last file of the stage.

    Args:
        folder: folder of the stage.
        inputs_digest: digest of everything the stage depends on.
        inputs: digest of each of these things by name.
        settings: values of short settings among them by name, so that a later run can say what changed.
        files: SHA-256 of each output file by relative name.
        summary: one line for the user.
        seconds: duration of the stage.
    """
    info = {"summary": summary, "output_digest": digest_json(dict(files)), "seconds": round(seconds, 1)}
    write_json(
        folder / MANIFEST_NAME,
        {
            "inputs_digest": inputs_digest,
            "inputs": dict(inputs),
            "settings": dict(settings),
            "files": dict(files),
            "info": info,
        },
    )
