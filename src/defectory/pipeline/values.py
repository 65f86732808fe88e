"""Reads stage outcomes back as values and turns them into what the rooms take."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import TileSet
from defectory.drivers.extract import extract_driver
from defectory.errors import ConfigError
from defectory.folders import read_marker
from defectory.formats.raw import is_litter
from defectory.imageio import IMAGE_SUFFIXES
from defectory.pipeline.stage import MissingSource, Project
from defectory.pipeline.verify import checked
from defectory.rle import decode

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
T = TypeVar("T")
SOURCE_KINDS = frozenset({"dataset", "export"})
"""Kinds of folders of ours that may be a source, or a part of one."""
LABEL_SUFFIXES = frozenset({".txt", ".xml", ".json"})


def dataset_of(project: Project) -> Dataset:
    """Read the data set."""
    return Dataset.load(checked(project, "data", MANIFEST))


def split_of(project: Project) -> Split:
    """Read the split and check it against the data set.

    Raises:
        InputError: there is none, it was edited, or the data set is not the one it was made from.
    """
    path = checked(project, "split", "split.json")
    split = Split.load(path)
    split.require_dataset(dataset_of(project), where=path)
    return split


def tileset_of(project: Project, name: str = "tiles") -> TileSet:
    """Read a tile set: `tiles` (train, pool, val) or `test_tiles`."""
    return TileSet.load(checked(project, name, "tileset.json"))


def spread(items: Sequence[T], limit: int) -> list[T]:
    """Give at most `limit` items, evenly over all of them; neighbours in a tile set come from one image."""
    if len(items) <= limit:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, limit).round()]


def masks_of(instances: Sequence[Instance]) -> tuple[tuple[int, Mask], ...]:
    """Decode instances to (category id, mask bool [H,W])."""
    return tuple((i.category_id, decode(i.rle)) for i in instances)


def driver_maker(project: Project, num_classes: int) -> Callable[..., Image]:
    """Give the function that extracts drivers of annotated tiles from image, instances, valid size and, where not the
    instances, `blind`.
    """
    config = project.config.drivers

    def make(
        image: Image,
        instances: Sequence[tuple[int, Mask]],
        valid_hw: tuple[int, int],
        blind: Sequence[Mask] | None = None,
    ) -> Image:
        return extract_driver(image, instances, num_classes=num_classes, config=config, blind=blind, valid_hw=valid_hw)

    return make


def users_folder(project: Project, name: str | None, *, setting: str, fix: str) -> Path | None:
    """Give a folder that a setting names, relative to the project file; None where it names none.

    Raises:
        ConfigError: there is no such folder; `fix` says what to give.
    """
    if name is None:
        return None
    folder = project.source_folder / Path(name).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"{setting} {folder}", "no such folder", fix)
    return folder


def source_listing(path: Path, *, follow_links: bool = False) -> list[tuple[str, int, int]] | MissingSource:
    """Return name, size and time of the files that are read from a source, so that a changed source is noticed.

    Of a folder, all files count but litter, project files and what lies in run folders of ours and the like; of a file,
    it and the
    images around it, and label files beside a YOLO file. A source that is not there, or holds nothing, is missing: its
    disk may not be mounted.
    """
    root, only = (path, None) if path.is_dir() else (path.parent, path)
    suffixes = IMAGE_SUFFIXES | (LABEL_SUFFIXES if path.suffix.lower() in (".yaml", ".yml") else frozenset())
    found: list[tuple[str, int, int]] = []
    pending, seen = [root], set[tuple[int, int]]()
    try:
        if only is not None and not only.is_file():
            return MissingSource(path=path)
        while pending:
            for entry in os.scandir(pending.pop()):
                if is_litter(entry.name):
                    continue
                place = Path(entry.path)
                # a loop of links is no file: the path says so, where the entry raises
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
