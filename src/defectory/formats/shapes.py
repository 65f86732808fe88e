"""Outlines of shapes that annotation tools draw beside polygons, and image handling shared by shape formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from defectory.errors import AnnotationError
from defectory.formats.fields import shortened
from defectory.formats.lookup import settle_unlabelled
from defectory.formats.placed import placed_image
from defectory.formats.polygons import Notice
from defectory.formats.raw import LoadOptions, RawImage, Sieve, checked_size_hw
from defectory.rle import Rle, encode_crop

NO_MASKS = {
    "rectangle": "a box",
    "box": "a box",
    "line": "a line",
    "linestrip": "a line",
    "polyline": "a line",
    "point": "a point",
    "points": "points",
    "cuboid": "a cuboid",
    "skeleton": "a skeleton",
}
"""Descriptions of shapes that enclose no region and so cannot be masks."""


def ellipse_ring(
    centre_xy: tuple[float, float], radii_xy: tuple[float, float], *, turn_degrees: float = 0.0
) -> list[float]:
    """Return an ellipse as a flat ring with about one corner per pixel, at least 16."""
    count = int(np.clip(2 * math.pi * max(radii_xy), 16, 4096))
    angles = np.linspace(0, 2 * math.pi, count, endpoint=False)
    x, y = radii_xy[0] * np.cos(angles), radii_xy[1] * np.sin(angles)
    turn = math.radians(turn_degrees)
    points = np.stack(
        [
            centre_xy[0] + x * math.cos(turn) - y * math.sin(turn),
            centre_xy[1] + x * math.sin(turn) + y * math.cos(turn),
        ],
        axis=1,
    )
    return [float(value) for value in points.reshape(-1)]


def refuse_shape(kind: str, where: object) -> None:
    """Raise the error for a shape that is not a region.

    Raises:
        AnnotationError: always.
    """
    what = NO_MASKS.get(kind)
    found = f"'{shortened(kind)}' is {what}, not a mask" if what else f"shape '{shortened(kind)}' is not known"
    raise AnnotationError(where, found, "draw a polygon, a mask or an ellipse instead")


def patch_rle(patch: np.ndarray, corner_xy: tuple[int, int], size_hw: tuple[int, int], where: object) -> Rle:
    """Return the RLE of a bool [h,w] patch at a corner position of an image.

    Raises:
        AnnotationError: the patch extends beyond the image, or is empty.
    """
    x, y = corner_xy
    if x < 0 or y < 0 or x + patch.shape[1] > size_hw[1] or y + patch.shape[0] > size_hw[0]:
        raise AnnotationError(
            where,
            f"mask of {patch.shape[0]}x{patch.shape[1]} at row {y}, column {x} extends beyond the image of "
            f"{size_hw[0]}x{size_hw[1]} (height x width)",
            "export the mask again",
        )
    if not patch.any():
        raise AnnotationError(where, "mask covers no pixel", "draw it or remove it")
    return encode_crop(patch.astype(bool), corner_xy, size_hw)


def notice_at(sieve: Sieve, place: str) -> Notice:
    """Return a function that passes remarks on one shape to a sieve."""

    def tell(what: str, detail: str) -> None:
        sieve.remark(what, f"{place} ({detail})" if detail else place)

    return tell


def refuse_twice(images: Sequence[RawImage], where: object) -> None:
    """Check that no image file has two entries.

    Raises:
        AnnotationError: there are two.
    """
    seen: set[str] = set()
    for image in images:
        if image.file_name in seen:
            raise AnnotationError(
                where, f"{shortened(image.file_name)} is annotated twice", "keep one of the annotations of each image"
            )
        seen.add(image.file_name)


def with_unlabelled(
    images: Sequence[RawImage],
    files: Sequence[Path],
    root: Path,
    options: LoadOptions,
    sieve: Sieve,
    *,
    where: object,
    what: str,
    looked_for: str,
) -> list[RawImage]:
    """Return the images, plus the remaining files that the import takes as defect-free.

    Args:
        images: annotated images.
        files: every image file of the data set.
        root: folder that names are relative to.
        options: options of the import.
        sieve: receives what is left out.
        where: named in errors.
        what: what the files lack.
        looked_for: names that were tried, for the user.

    Raises:
        AnnotationError: as for `settle_unlabelled`.
        ImageError: a file is damaged.
    """
    known = {image.path for image in images}
    left = [path for path in files if path not in known]
    names = [path.relative_to(root).as_posix() for path in left]
    settle_unlabelled(
        [shortened(name) for name in names], len(images), options, sieve, where=where, what=what, looked_for=looked_for
    )
    added: list[RawImage] = []
    for path, name in zip(left, names, strict=True) if options.unlabelled == "defect-free" else ():
        size_hw = sieve.attempt(name, lambda path=path: checked_size_hw(path, None, path))
        if size_hw is not None:
            added.append(placed_image(path, root, size_hw=size_hw, instances=(), is_defect_free=True))
    return [*images, *added]


def only_unusable(kinds: Sequence[str], usable: Callable[[str], bool], where: object, what: str) -> None:
    """Refuse a set in which no shape is a mask, before its first shape is reported alone.

    Raises:
        AnnotationError: there are shapes, and none is usable.
    """
    if kinds and not any(map(usable, kinds)):
        listed = ", ".join(sorted({shortened(kind, 30) for kind in kinds})[:5])
        raise AnnotationError(
            where, f"none of {len(kinds)} {what} is a mask, only {listed}", "annotate instance masks or polygons"
        )
