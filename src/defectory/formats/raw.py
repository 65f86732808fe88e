"""The result of every loader, before anything is copied: images with instances, rejected entries and remarks."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from PIL import Image

from defectory.errors import AnnotationError, ImageError, InputError
from defectory.files import MARKER_NAME
from defectory.images.facts import image_size_hw
from defectory.images.header import IMAGE_SUFFIXES
from defectory.rle import Rle

T = TypeVar("T")
Subset = Literal["train", "val", "test"]
Unlabelled = Literal["refuse", "defect-free", "skip"]
LITTER_NAMES = frozenset(
    {"thumbs.db", "desktop.ini", "__macosx", "@eadir", "$recycle.bin", "system volume information", "__pycache__"}
)


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One image or annotation that was left out, and the reason (one line)."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RawInstance:
    """A class name and a mask in the coordinates of its image."""

    class_name: str
    rle: Rle
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """An image file with its instances; `file_name` is its name in the data set folder."""

    path: Path
    file_name: str
    """Path relative to the source's image root, with `/`, so that equal names in two folders stay two images."""
    size_hw: tuple[int, int]
    group: str
    instances: tuple[RawInstance, ...]
    is_defect_free: bool
    """True only if the data states it or the import requests it.

    False for an image whose defects were all left out: it is neither defective nor defect-free.
    """
    subset: Subset | None = None
    """The image's subset in the source's own split, if the source has one."""


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Classes in order, images, rejected entries and remarks."""

    class_names: tuple[str, ...]
    images: tuple[RawImage, ...]
    rejected: tuple[Rejected, ...]
    remarks: tuple[str, ...] = ()
    """One line each; they name files relative to the source, never by an absolute path."""
    layout: str = ""
    """The recognised layout, for the user, for example `COCO instances (Label Studio export)`."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options that an import passes to a loader."""

    image_root: Path | None = None
    index: Path | None = None
    """CSV file, for mask folders."""
    min_area_px: int = 0
    skip_bad: bool = False
    follow_links: bool = False
    """Follow links that lead outside the data set."""
    unlabelled: Unlabelled = "skip"
    """How to treat an image without a mask, label file or row.

    It is left out with a remark, refused, or taken as defect-free because the import requests it. If no image has one,
    the set is refused, except with `defect-free`.
    """
    mask_threshold: int | None = None
    """Lowest mask value that counts as defect; for masks of one class that were saved as JPEG or smoothed."""
    class_colours: Path | None = None
    """Table of colours and class names, for RGB masks."""


@dataclass
class Sieve:
    """Collects rejections if bad entries are skipped, raises at once otherwise, and groups remarks by kind."""

    skip_bad: bool
    rejected: list[Rejected] = field(default_factory=list)
    _noticed: dict[str, tuple[int, str]] = field(default_factory=dict)

    def attempt(self, entry_id: str, make: Callable[[], T]) -> T | None:
        """Return the result of `make`, or None if it raised an input error that is to be skipped."""
        try:
            return make()
        except InputError as error:
            if not self.skip_bad:
                if type(error) is ImageError:
                    raise ImageError(
                        error.where, error.found, f"{error.todo}, or give --skip-bad (data.skip_bad)"
                    ) from None
                raise
            self.rejected.append(Rejected(id=entry_id, reason=str(error)))
            return None

    def remark(self, what: str, where: object = "") -> None:
        """Add a remark on something that is read anyway; equal remarks are counted, and the first place is kept."""
        count, first = self._noticed.get(what, (0, str(where)))
        self._noticed[what] = (count + 1, first)

    @property
    def remarks(self) -> tuple[str, ...]:
        """Return one line per kind of remark."""

        def line(what: str, count: int, first: str) -> str:
            if not first:
                return what if count == 1 else f"{what} ({count} times)"
            return f"{first}: {what}" if count == 1 else f"{what} ({count} times, first {first})"

        return tuple(line(what, count, first) for what, (count, first) in self._noticed.items())


def is_litter(name: str) -> bool:
    """Return whether a file or folder name is left by a system or an editor.

    Examples are hidden files, `._x`, `Thumbs.db`, `@eaDir` and `.ipynb_checkpoints`.
    """
    return name.startswith(".") or name.endswith("~") or name.lower() in LITTER_NAMES


def walk_files(folder: Path, *, follow_links: bool = False) -> Iterator[Path]:
    """Yield the regular files under a folder in the order of their relative names.

    Links are followed only on request, and loops never. Litter and folders that Defectory made are skipped: a run
    beside the images is not part of the data.

    Raises:
        AnnotationError: a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()

    def inside(place: Path) -> Iterator[Path]:
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise AnnotationError(
                place, f"cannot be read ({error.strerror or error})", "make the folder readable"
            ) from None
        for entry in entries:
            if is_litter(entry.name):
                continue
            try:
                about = entry.stat(follow_symlinks=True)
            except OSError:
                continue
            if entry.is_symlink() and not follow_links:
                continue
            if stat.S_ISDIR(about.st_mode):
                is_ours = os.path.lexists(f"{entry.path}{os.sep}{MARKER_NAME}")
                if (about.st_dev, about.st_ino) in seen or is_ours:
                    continue
                seen.add((about.st_dev, about.st_ino))
                yield from inside(Path(entry.path))
            elif stat.S_ISREG(about.st_mode):
                yield Path(entry.path)

    yield from inside(folder)


def image_files(folder: Path, *, follow_links: bool = False) -> list[Path]:
    """Return the image files under a folder, with image suffixes in any case, without litter."""
    return [path for path in walk_files(folder, follow_links=follow_links) if path.suffix.lower() in IMAGE_SUFFIXES]


def safe_image_path(root: Path, file_name: str, where: object, *, follow_links: bool = False) -> Path:
    """Return the path of a file named by annotations; refuse paths that leave the image root.

    Backslashes are separators.

    Raises:
        AnnotationError: an absolute path, `..`, a zero byte, or a link that leads outside and is not to be followed.
    """
    plain = file_name.replace("\\", "/")
    name = Path(plain)
    if (
        not plain.strip()
        or "\0" in plain
        or name.is_absolute()
        or ".." in name.parts
        or (len(plain) > 1 and plain[1] == ":")
    ):
        raise AnnotationError(
            where,
            f"file_name {file_name!r} is not a plain relative path",
            "name files relative to the image root, without '..'",
        )
    path = root / name
    try:
        inside = follow_links or path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        raise AnnotationError(
            where, f"file_name {file_name[:80]!r} cannot be looked up", "give files shorter names"
        ) from None
    if not inside:
        raise AnnotationError(
            where,
            f"file_name {file_name!r} leads outside {root.name}/ through a link",
            "copy the image into the image root, or follow links (--follow-links)",
        )
    return path


def checked_size_hw(path: Path, stated_hw: tuple[int, int] | None, where: object) -> tuple[int, int]:
    """Return the true size of an image file; refuse annotations made for another size."""
    size = image_size_hw(path)
    if stated_hw is not None and stated_hw != size:
        turned = " after the rotation in its EXIF data" if stated_hw == size[::-1] and _has_quarter_turn(path) else ""
        raise AnnotationError(
            where,
            f"annotated as {stated_hw[0]}x{stated_hw[1]}, but the image is {size[0]}x{size[1]} (height x "
            f"width){turned}",
            "re-export annotations at image size"
            if not turned
            else "remove the EXIF orientation, or annotate the rotated image",
        )
    return size


def _has_quarter_turn(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    except (OSError, ValueError, SyntaxError):
        return False
