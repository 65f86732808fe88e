"""The run folder: atomic writes, content digests and stage manifests.

A stage writes its outputs first and its manifest (`stage.json`) last. A manifest whose
`inputs_digest` equals the present one means that the stage need not run again.
Knows nothing of what any stage does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

from defectory.errors import OutputError

MANIFEST_NAME = "stage.json"
_LEFTOVER = re.compile(r"\.(.+\.tmp(\..+)?|.+\.old\.\d+|tmp[0-9A-Za-z]{6})")
"""Names of what is half-written: ours, and those of safetensors."""


def canonical_json(value: object) -> str:
    """Give the one JSON text of a value: keys sorted, no spaces, NaN refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_json(value: object) -> str:
    """Give the SHA-256 hex digest of a JSON-compatible value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path) -> str:
    """Give the SHA-256 hex digest of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest_folder(folder: Path, *, exclude: tuple[str, ...] = (MANIFEST_NAME,)) -> str:
    """Give the SHA-256 hex digest of all files under a folder, names included, order independent."""
    entries = {
        path.relative_to(folder).as_posix(): digest_file(path) for path in folder.rglob("*") if path.is_file() and path.name not in exclude
    }
    return digest_json(entries)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary file name beside `path`; on success fsync it and rename it to `path`.

    Raises:
        OutputError: the folder cannot be written or is full; nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        _fsync_folder(path.parent)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})", "free space or choose another output folder") from error
    finally:
        temporary.unlink(missing_ok=True) if temporary.parent.is_dir() else None


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a file atomically (temporary name, fsync, rename)."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a file atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON-compatible value to a file atomically, indented, keys sorted."""
    write_text(path, json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def atomic_folder(path: Path) -> Generator[Path]:
    """Yield a temporary folder beside `path`; on success replace `path` by it, else remove it.

    Raises:
        OutputError: the parent cannot be written or is full; an earlier `path` is kept.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})", "choose another output folder") from error
    temporary.chmod(0o755)
    try:
        yield temporary
        old = None
        if path.exists():
            old = path.with_name(f".{path.name}.old.{os.getpid()}")
            os.replace(path, old)
        os.replace(temporary, path)
        _fsync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise OutputError(path, f"cannot be written ({error.strerror or error})", "free space or choose another output folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left half-written anywhere in a folder, so that it ends as if never killed."""
    for path in sorted(folder.rglob(".*")):
        if _LEFTOVER.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def stage_is_done(folder: Path, inputs_digest: str) -> bool:
    """Tell whether a stage folder's manifest says it was finished for exactly these inputs."""
    manifest = read_manifest(folder)
    return manifest is not None and manifest.get("inputs_digest") == inputs_digest


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Give the manifest of a stage folder, or None where there is none."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        return None
    return json.loads(path.read_text())


def finish_stage(folder: Path, *, inputs_digest: str, info: Mapping[str, object] | None = None) -> None:
    """Write a stage's manifest, the last file of the stage."""
    write_json(folder / MANIFEST_NAME, {"inputs_digest": inputs_digest, "info": dict(info or {})})
