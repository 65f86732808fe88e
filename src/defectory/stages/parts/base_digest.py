"""Computes the digest of a base, for the stages that depend on it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from defectory.errors import WeightsError
from defectory.files import digest_folder
from defectory.runs.sources import MissingSource


def base_digest(base: str) -> str | MissingSource:
    """Return the digest of a base's files, or `MissingSource` if its disk is not mounted.

    Args:
        base: `embedded`, or the path of a folder.
    """
    from defectory.engine.backbones.known import resolve_base

    try:
        folder = resolve_base(base)
    except WeightsError:
        # the stage that needs it reports this
        return MissingSource(path=Path(base))
    return cached_digest(folder)


def cached_digest(folder: Path) -> str:
    """Return the digest of a folder's files, which are read once per process while they keep their sizes and times."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return _digest_of(folder, tuple((path, about.st_size, about.st_mtime_ns) for path, about in files))


@lru_cache(maxsize=16)
def _digest_of(folder: Path, _state: tuple[tuple[Path, int, int], ...]) -> str:
    """Return the digest of a folder, cached while its files keep their sizes and times."""
    return digest_folder(folder)
