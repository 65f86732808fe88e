"""Find the image of a `file_name`: as written, or by the parts of its path that exist here.

The result is never outside the image root.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from defectory.errors import AnnotationError
from defectory.formats.fields import shortened
from defectory.formats.lookup import IMAGE_FOLDERS, child_folder, child_folders, is_file, is_folder
from defectory.formats.raw import Sieve, is_litter, safe_image_path, walk_files
from defectory.images.header import IMAGE_SUFFIXES

ANNOTATION_FOLDERS = ("annotations", "annotation", "labels", "json")
MAX_SAMPLED_NAMES = 200
MAX_FOLDERS = 30
_UPLOAD = re.compile(r"[0-9a-f]{8}-(.+)")
"""The prefix of Label Studio's uploaded files."""
OTHER_PLACE = "its path does not exist here; the image was found by its file name"
OTHER_CAPITALS = "the file's name differs from the annotations in upper and lower case"


@dataclass
class ImageFinder:
    """Finds image files under one root; it lists the folder only when a name does not exist as written."""

    root: Path
    sieve: Sieve
    follow_links: bool = False
    found: set[Path] = field(default_factory=set[Path])
    """Images found so far, whether or not they could be used then."""
    _by_path: dict[str, list[PurePosixPath]] | None = None
    _by_name: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))
    _by_stem: dict[str, list[PurePosixPath]] = field(default_factory=lambda: defaultdict(list))

    def find(self, file_name: str, where: object, place: str) -> Path:
        """Return the path of an image.

        Tried in this order: the name as written (backslashes are separators); with composed letters; with different
        case; and, if its first folder does not exist here, the only file under the root with the same name and most of
        the same folders.

        Args:
            file_name: the name in the annotations.
            where: named in errors.
            place: named in remarks, relative to the source.

        Raises:
            AnnotationError: there is no such file, there are several, or a link leads out of the root.
        """
        path = self._find(file_name, where, place)
        self.found.add(path)
        return path

    def _find(self, file_name: str, where: object, place: str) -> Path:
        plain = file_name.replace("\\", "/")
        parts = [part for part in plain.split("/") if part not in ("", ".")]
        if not parts or "\0" in plain:
            raise AnnotationError(
                where,
                f"file_name '{shortened(file_name)}' does not name a file",
                "name files relative to the image root",
            )
        is_relative = _is_relative(plain)
        if is_relative and is_file(self.root.joinpath(*parts)):
            return safe_image_path(self.root, "/".join(parts), where, follow_links=self.follow_links)
        found = self._listed("/".join(parts)) if is_relative else []
        if len(found) == 1:
            if _composed("/".join(parts)) != _composed(found[0].as_posix()):
                self.sieve.remark(OTHER_CAPITALS, place)
            return self.root / found[0]
        is_here = is_relative and (
            self._has_images_of_its_own() if len(parts) == 1 else is_folder(self.root / parts[0])
        )
        found = [] if is_here else self._named_alike([unquote(part) for part in parts] if "%" in plain else parts)
        if len(found) == 1:
            self.sieve.remark(OTHER_PLACE, place)
            return self.root / found[0]
        what = f"its image '{shortened(file_name, 120)}'"
        if found:
            raise AnnotationError(
                where,
                f"{what} may be {shortened(str(found[0]))} or {shortened(str(found[1]))}",
                "write file_name relative to the image root",
            )
        raise AnnotationError(
            where,
            f"{what}: no such file under {self.root}",
            "check file_name, or give the folder of the images (--image-root)",
        )

    def _listed(self, name: str) -> list[PurePosixPath]:
        listing = self._listing().get(_key(name), [])
        exact = [path for path in listing if _composed(path.as_posix()) == _composed(name)]
        return exact or listing

    def _named_alike(self, parts: Sequence[str]) -> list[PurePosixPath]:
        self._listing()
        own = parts[-1]
        uploaded = _UPLOAD.fullmatch(own)
        found = self._by_name.get(_key(own)) or (self._by_name.get(_key(uploaded[1])) if uploaded else None) or []
        if PurePosixPath(own).suffix.lower() not in IMAGE_SUFFIXES:
            found = found or self._by_stem.get(_key(own), [])
        if len(found) < 2:
            return list(found)
        wanted = [_key(part) for part in parts[:-1]]

        def shared(path: PurePosixPath) -> int:
            folders = [_key(part) for part in path.parts[:-1]]
            return next(
                (n for n, (a, b) in enumerate(zip(reversed(folders), reversed(wanted), strict=False)) if a != b),
                min(len(folders), len(wanted)),
            )

        most = max(map(shared, found))
        return [path for path in found if shared(path) == most]

    def _has_images_of_its_own(self) -> bool:
        """Return whether images lie directly in the root, so that a bare name means one of them."""
        return any(len(path.parts) == 1 for paths in self._listing().values() for path in paths)

    def _listing(self) -> dict[str, list[PurePosixPath]]:
        if self._by_path is None:
            self._by_path = defaultdict(list)
            for path in walk_files(self.root, follow_links=self.follow_links) if is_folder(self.root) else ():
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    relative = PurePosixPath(path.relative_to(self.root).as_posix())
                    self._by_path[_key(relative.as_posix())].append(relative)
                    self._by_name[_key(relative.name)].append(relative)
                    self._by_stem[_key(relative.stem)].append(relative)
        return self._by_path


def choose_root(annotation_folder: Path, names: Sequence[str], *, hints: Sequence[str] = ()) -> Path:
    """Return the folder that names of images are relative to.

    It is the usual one under which most of them exist as written, else the only other folder beside the annotations
    under which all do. If there is none, it is the folder of the data set, in which images are then found by name:
    guessing between several folders could put labels on the wrong images.

    Args:
        annotation_folder: folder of the annotation file; the data set is its parent if it is called `annotations` or
            similar.
        names: names of images, as written.
        hints: names that the images' folder may have, for example the subset of a split.
    """
    plain = [name.replace("\\", "/") for name in names if "\0" not in name]
    sample = [
        name for name in plain[:: max(1, len(plain) // MAX_SAMPLED_NAMES)][:MAX_SAMPLED_NAMES] if _is_relative(name)
    ]
    is_own_folder = annotation_folder.name.lower() in ANNOTATION_FOLDERS
    base = annotation_folder.parent if is_own_folder else annotation_folder
    usual = [*_usual_roots(base, hints), *([annotation_folder] if is_own_folder else [])]
    for count in (_num_there, _num_alike):
        counts = {place: count(place, sample) for place in usual}
        best = max(usual, key=lambda place: counts[place])  # the first one of a tie
        if counts[best] > 0:
            return best
    others = [place for place in child_folders(base)[:MAX_FOLDERS] if all(is_file(place / name) for name in sample)]
    return others[0] if len(others) == 1 and sample else base


def _usual_roots(base: Path, hints: Sequence[str]) -> list[Path]:
    images = child_folder(base, IMAGE_FOLDERS)
    data = child_folder(base, ["data"])
    places = [place for place in (images, data) if place is not None]
    for place in (base, *([] if images is None else [images])):
        places += [place / hint for hint in hints if hint]
    return [*places, base]


def remark_unlisted(finder: ImageFinder) -> None:
    """Add a remark with the number of images beside the listed ones that are not listed."""
    left = unlisted_images(finder.found)
    if left:
        first = shortened(left[0].relative_to(finder.root).as_posix())
        some = "1 image is" if len(left) == 1 else f"{len(left)} images are"
        finder.sieve.remark(f"{some} not listed in the annotations and left out (first: {first})")


def _num_there(place: Path, names: Sequence[str]) -> int:
    return sum(is_file(place / name) for name in names)


def _num_alike(place: Path, names: Sequence[str]) -> int:
    """Count the names that exist if case and composition of letters are ignored."""
    try:
        there = {_key(entry.name) for entry in os.scandir(place)}
    except OSError:
        return 0
    return sum(_key(name) in there for name in names)


def _is_relative(name: str) -> bool:
    return not re.match(r"/|[A-Za-z]:|[A-Za-z][\w+.-]*://", name) and ".." not in name.split("/")


def unlisted_images(found: Collection[Path]) -> list[Path]:
    """Return the image files in the folders of the found images that are not found themselves, without litter."""
    known = {os.path.normpath(path) for path in found}
    result: list[Path] = []
    for folder in sorted({path.parent for path in found}):
        try:
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            path = Path(entry.path)
            if (
                path.suffix.lower() in IMAGE_SUFFIXES
                and not is_litter(entry.name)
                and os.path.normpath(path) not in known
                and path.is_file()  # an entry's own is_file raises for a loop of links
            ):
                result.append(path)
    return result


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def _key(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
