"""The user's files that a run reads, as named by settings, and their state without reading their content."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from defectory.config.command import CommandLine
from defectory.errors import ConfigError
from defectory.folders.marker import read_marker
from defectory.formats.raw import is_litter
from defectory.images.header import IMAGE_SUFFIXES

SOURCE_KINDS = frozenset({"dataset", "export"})
"""Kinds of Defectory's own folders that may be a source or part of one."""
LABEL_SUFFIXES = frozenset({".txt", ".xml", ".json"})
Listing = list[tuple[str, int, int]]


@dataclass(frozen=True, kw_only=True)
class MissingSource:
    """Stands for a source that cannot be read now, such as an unmounted disk. It counts as unchanged."""

    path: Path


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Paths that settings name, relative to the project file.

    Attributes:
        folder: of the project file.
        command: how the project was opened, for commands that are shown to the user.
    """

    folder: Path
    command: CommandLine = field(default_factory=CommandLine)

    def path(self, name: str) -> Path:
        """Return the path that a setting names."""
        return self.folder / Path(name).expanduser()

    def listing(self, name: str | None, *, follow_links: bool = False) -> Listing | MissingSource | None:
        """Return name, size and time of each file of a source; None if the setting is off."""
        return None if name is None else source_listing(self.path(name), follow_links=follow_links)

    def folder_of(self, name: str | None, *, setting: str, fix: str) -> Path | None:
        """Return the folder that a setting names; None if the setting is off.

        Raises:
            ConfigError: the folder does not exist; `fix` says what to do.
        """
        if name is None:
            return None
        folder = self.path(name)
        if not folder.is_dir():
            raise ConfigError(f"{setting} {folder}", "no such folder", fix)
        return folder


def source_listing(path: Path, *, follow_links: bool = False) -> Listing | MissingSource:
    """Return name, size and time of the files read from a source, so that changes are noticed.

    For a folder, all files count except litter, project files and files in run folders. For a file, the file itself
    counts, the images around it, and the label files beside a YOLO file. A missing or empty source is a
    `MissingSource`, since its disk may not be mounted.
    """
    root, only = (path, None) if path.is_dir() else (path.parent, path)
    suffixes = IMAGE_SUFFIXES | (LABEL_SUFFIXES if path.suffix.lower() in (".yaml", ".yml") else frozenset())
    found: Listing = []
    pending, seen = [root], set[tuple[int, int]]()
    try:
        if only is not None and not only.is_file():
            return MissingSource(path=path)
        while pending:
            for entry in os.scandir(pending.pop()):
                if is_litter(entry.name):
                    continue
                place = Path(entry.path)
                # `Path` returns False for a loop of links; the directory entry raises
                if place.is_dir():
                    about, marker = entry.stat(), read_marker(place)
                    is_new = (about.st_dev, about.st_ino) not in seen and (follow_links or not entry.is_symlink())
                    if is_new and (marker is None or marker.kind in SOURCE_KINDS):
                        seen.add((about.st_dev, about.st_ino))
                        pending.append(place)
                    continue
                counts = (
                    place.suffix.lower() != ".toml"
                    if only is None
                    else place == only or place.suffix.lower() in suffixes
                )
                if counts and place.is_file():
                    state = entry.stat()
                    found.append((place.relative_to(root).as_posix(), state.st_size, state.st_mtime_ns))
    except OSError:
        return MissingSource(path=path)
    return sorted(found) or MissingSource(path=path)
