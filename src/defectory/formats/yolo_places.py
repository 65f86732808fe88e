"""The places of a YOLO data set's images and label files.

They are as `data.yaml` says, as tools lay them out, or moved from another machine.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.lookup import (
    IMAGE_FOLDERS,
    child_folder,
    child_folders,
    images_in,
    is_file,
    is_folder,
    subset_of,
    subset_of_path,
)
from defectory.formats.raw import LoadOptions, Sieve, Subset
from defectory.formats.yolo_yaml import DataYaml
from defectory.images.header import IMAGE_SUFFIXES
from defectory.textfile import read_text_file


@dataclass
class FoundImages:
    """The images of a data set, and the subsets that list each one."""

    subsets: dict[Path, set[Subset]] = field(default_factory=dict)

    def add(self, paths: Iterable[Path], subset: Subset | None) -> None:
        """Add images of a subset, or without a subset."""
        for path in paths:
            self.subsets.setdefault(path, set()).update(() if subset is None else (subset,))

    def names(self, root: Path) -> Mapping[Path, str]:
        """Return a distinct name for each image, relative to the root, without `images/` if all images lie in it."""
        paths = list(self.subsets)
        if not all(path.is_relative_to(root) for path in paths):
            root = Path(os.path.commonpath([path.parent for path in paths]))
        relatives = {path: PurePosixPath(path.relative_to(root).as_posix()) for path in paths}
        if all(
            len(relative.parts) > 1 and relative.parts[0].lower() in IMAGE_FOLDERS for relative in relatives.values()
        ):
            shorter = {path: PurePosixPath(*relative.parts[1:]) for path, relative in relatives.items()}
            relatives = shorter if len(set(shorter.values())) == len(shorter) else relatives
        return {path: relative.as_posix() for path, relative in relatives.items()}


def find_root(data: DataYaml, folder: Path, sieve: Sieve) -> Path:
    """Return the folder that entries are relative to: `path`, or the folder of the file if `path` does not exist."""
    stated = data.root.strip().replace("\\", "/")
    folder = _plain(folder)
    if not stated or "\0" in stated:
        return folder
    for place in (folder / stated, folder / PurePosixPath(stated).name):
        if is_folder(place):
            return _plain(place)
    if PurePosixPath(stated).name != folder.name:
        sieve.remark(
            f"path {data.root[:80]!r} does not exist; folders are relative to {data.path.name}", data.path.name
        )
    return folder


def find_images(data: DataYaml, root: Path, options: LoadOptions, sieve: Sieve) -> FoundImages:
    """Return the images that `train`, `val` and `test` list; without these entries, those in the usual folders.

    Raises:
        AnnotationError: `train`, or the only entry, does not exist, or a list contains something that is not an image
            of the set.
    """
    found = FoundImages()
    if options.image_root is not None:
        found.add(images_in(options.image_root, options, sieve), None)
        return found
    if not data.subsets:
        _add_usual(found, root, options, sieve)
        return found
    for key, entries in data.subsets.items():
        for entry in entries:
            place = _find(root, data.path.parent, entry)
            if place is not None:
                paths = images_in(place, options, sieve) if is_folder(place) else _listed(place, root, options, sieve)
                found.add(paths, subset_of(key))
            elif key == "train" or len(data.subsets) == 1:
                raise AnnotationError(data.path, f"{key}: {entry[:120]!r} does not exist", "correct the entry, or path")
            else:
                sieve.remark(f"{key}: {entry[:80]!r} does not exist and is skipped", data.path.name)
    return found


def find_labels(image: Path, root: Path, options: LoadOptions) -> Sequence[Path]:
    """Return the label files of an image: in the mirrored path under `labels/`, or beside it.

    A further file counts only if it differs from the first.
    """
    places: list[Path] = []
    parts = image.parts
    for at in range(len(parts) - 2, max(len(root.parts) - 2, 0), -1):
        if parts[at].lower() in IMAGE_FOLDERS:
            places.append(_labels_in(Path(*parts[:at])).joinpath(*parts[at + 1 :]).with_suffix(".txt"))
            break
    for base in (options.image_root, root):
        if base is not None and image.is_relative_to(base):
            places.append((_labels_in(root) / image.relative_to(base)).with_suffix(".txt"))
            break
    places.append(image.with_suffix(".txt"))
    found = [
        place
        for place in dict.fromkeys(_spelled(places, (".txt", ".TXT")))
        if is_file(place) and (options.follow_links or not place.is_symlink())
    ]
    if len(found) < 2:
        return found
    first = _content(found[0])
    return [found[0], *(place for place in found[1:] if _content(place) != first)]


def image_of_label(label: Path, root: Path) -> Path | None:
    """Return the image file that a label file belongs to, in `images/` or beside it, or None."""
    parts = label.parts
    places = [label]
    for at in range(len(parts) - 2, max(len(root.parts) - 2, 0), -1):
        if parts[at].lower() in ("labels", "label"):
            places += [Path(*parts[:at], name, *parts[at + 1 :]) for name in IMAGE_FOLDERS]
            break
    tries = _spelled(places, (*IMAGE_SUFFIXES, *(suffix.upper() for suffix in IMAGE_SUFFIXES)))
    return next((path for path in tries if is_file(path)), None)


def _labels_in(folder: Path) -> Path:
    """Return the folder of labels in a folder, in any case."""
    plain = folder / "labels"
    return plain if is_folder(plain) else child_folder(folder, ("labels", "label")) or plain


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _spelled(places: Iterable[Path], suffixes: Iterable[str]) -> Iterator[Path]:
    """Yield each path with each suffix, with its name as it is and with composed and decomposed letters."""
    for place in places:
        for suffix in suffixes:
            name = f"{place.stem}{suffix}"
            for form in dict.fromkeys((name, unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name))):
                yield place.with_name(form)


def _add_usual(found: FoundImages, root: Path, options: LoadOptions, sieve: Sieve) -> None:
    """Add images/, or train/images, valid/images and so on, or all images under the root."""
    images = child_folder(root, IMAGE_FOLDERS)
    inner = [child_folder(folder, IMAGE_FOLDERS) for folder in child_folders(root) if subset_of(folder.name)]
    folders = [images] if images is not None else [folder for folder in inner if folder is not None]
    for folder in folders or [root]:
        for path in images_in(folder, options, sieve):
            found.add([path], subset_of_path(PurePosixPath(path.relative_to(root).as_posix())))


def _find(root: Path, beside: Path, entry: str) -> Path | None:
    """Return the folder or list of an entry: relative to the root, as Roboflow writes it (`../train/images`), or moved.

    A moved path is found by its last folders.
    """
    text = entry.strip().replace("\\", "/")
    if not text or "\0" in text:
        return None
    name = PurePosixPath(text)
    tries = [root / text, beside / text]
    while text.startswith("../"):
        text = text[3:]
        tries.append(root / text)
    tries += _by_last_folders(root, name)
    return next(
        (_plain(path) for path in tries if is_folder(path) or (is_file(path) and path.suffix.lower() == ".txt")), None
    )


def _by_last_folders(root: Path, name: PurePosixPath) -> list[Path]:
    """Return where the last folders of a path from another machine may be here."""
    return [root.joinpath(*name.parts[at:]) for at in range(1, len(name.parts)) if ".." not in name.parts[at:]]


def _listed(path: Path, root: Path, options: LoadOptions, sieve: Sieve) -> list[Path]:
    """Return the images that a list file names, all of them inside the data set."""
    found: list[Path | None] = []
    for number, line in enumerate(read_text_file(path).text.split("\n"), start=1):
        where = f"{path.name}:{number}"
        if line.strip():
            found.append(sieve.attempt(where, partial(_listed_image, line.strip(), path, root, where, options)))
    return [image for image in found if image is not None]


def _listed_image(line: str, path: Path, root: Path, where: str, options: LoadOptions) -> Path:
    name = PurePosixPath(line.replace("\\", "/"))
    bounds = [Path(os.path.realpath(folder)) for folder in (root, path.parent)]
    for place in [path.parent / name, root / name, *_by_last_folders(root, name)] if "\0" not in line else []:
        if is_file(place) and place.suffix.lower() in IMAGE_SUFFIXES:
            plain = _plain(place)
            target = Path(os.path.realpath(plain.parent if options.follow_links else plain))
            if any(target.is_relative_to(bound) for bound in bounds):
                return plain
    raise AnnotationError(where, f"no image file {line[:120]!r} in the data set", "correct the list")


def _plain(path: Path) -> Path:
    """Return a path with `..` resolved."""
    return Path(os.path.normpath(path)) if ".." in path.parts else path
