"""Reads the files of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defectory.errors import StageError
from defectory.files import MANIFEST_NAME, digest_file, read_manifest


def state_of(manifest: Path) -> tuple[int, int] | None:
    """Return what changes whenever a manifest is written; None if there is none."""
    try:
        about = manifest.stat()
    except OSError:
        return None
    return about.st_mtime_ns, about.st_ino


def digest_or_none(path: Path) -> str | None:
    """Return the digest of a file; None if it cannot be read."""
    try:
        return digest_file(path)
    except OSError:
        return None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        StageError: the file cannot be read, or is damaged.
    """
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StageError(f"{path}: cannot be read ({error}); `defectory run` makes it anew") from None
    if not isinstance(content, dict):
        raise StageError(f"{path}: is damaged; `defectory run` makes it anew")
    return content


def read_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects."""
    return json.loads(path.read_bytes())


def read_lines(path: Path) -> list[dict[str, float]]:
    """Read a file with a JSON object on each line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def manifests_of(run: Path) -> dict[str, Mapping[str, Any]]:
    """Read the manifests of finished stages by folder, in order of completion."""
    found = [path for depth in ("*", "*/*") for path in run.glob(f"{depth}/{MANIFEST_NAME}")]
    manifests: dict[str, Mapping[str, Any]] = {}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns):
        name, manifest = path.parent.relative_to(run).as_posix(), read_manifest(path.parent)
        if manifest is not None and not name.startswith(".") and ".damaged" not in name:
            manifests[name] = manifest
    return manifests


def origins_in(path: Path) -> dict[str, str]:
    """Read the origin of each setting by dotted key; empty if the file is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
        return {str(key): str(origin) for key, origin in content["origins"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
