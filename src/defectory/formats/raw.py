"""What every loader gives: images with instances, and what was rejected, before anything is copied."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError, InputError
from defectory.imageio import image_size_hw
from defectory.rle import Rle

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """One image or annotation that was left out, and why (one line)."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class RawInstance:
    """A class name and a mask in the frame of its image."""

    class_name: str
    rle: Rle
    is_crowd: bool = False


@dataclass(frozen=True, kw_only=True)
class RawImage:
    """An image file with its instances; `file_name` is what it will be called in the data set folder."""

    path: Path
    file_name: str
    size_hw: tuple[int, int]
    group: str
    instances: tuple[RawInstance, ...]
    is_defect_free: bool
    """False for an image whose defects were all left out: it is neither."""


@dataclass(frozen=True, kw_only=True)
class RawDataset:
    """Classes in order, images, and what was rejected."""

    class_names: tuple[str, ...]
    images: tuple[RawImage, ...]
    rejected: tuple[Rejected, ...]


@dataclass
class Sieve:
    """Collects rejections where bad entries are to be skipped, raises at once where they are not."""

    skip_bad: bool
    rejected: list[Rejected] = field(default_factory=list)

    def attempt(self, entry_id: str, make: Callable[[], T]) -> T | None:
        """Give what `make` gives, or None where it raised an input error that is to be skipped."""
        try:
            return make()
        except InputError as error:
            if not self.skip_bad:
                raise
            self.rejected.append(Rejected(id=entry_id, reason=str(error)))
            return None


def safe_image_path(root: Path, file_name: str, where: object) -> Path:
    """Give the path of a file named by annotations, refusing what leaves the image root.

    Raises:
        AnnotationError: an absolute path, `..`, or a link that leads outside.
    """
    name = Path(file_name)
    if not file_name or name.is_absolute() or ".." in name.parts or "\\" in file_name:
        raise AnnotationError(
            where, f"file_name {file_name!r} is not a plain relative path", "name files relative to the image root, without '..'"
        )
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise AnnotationError(
            where, f"file_name {file_name!r} leads outside {root.name}/ through a link", "copy the image into the image root"
        )
    return path


def checked_size_hw(path: Path, stated_hw: tuple[int, int] | None, where: object) -> tuple[int, int]:
    """Give the true size of an image file and refuse annotations made for another size."""
    size = image_size_hw(path)
    if stated_hw is not None and stated_hw != size:
        raise AnnotationError(
            where,
            f"annotated as {stated_hw[0]}x{stated_hw[1]}, but the image is {size[0]}x{size[1]} (height x width)",
            "re-export annotations at image size",
        )
    return size


def components(mask: NDArray[np.bool_], min_area_px: int) -> list[NDArray[np.bool_]]:
    """Give the 8-connected components of a mask with at least `min_area_px` pixels."""
    import cv2

    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return [labels == index for index in range(1, count) if stats[index, cv2.CC_STAT_AREA] >= max(1, min_area_px)]
