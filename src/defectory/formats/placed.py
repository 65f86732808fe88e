"""Names an image by its place below the image root: file name, group, and subset."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from defectory.formats.lookup import group_of, subset_of_path
from defectory.formats.raw import RawImage, RawInstance, Subset


def placed_image(
    path: Path,
    root: Path,
    *,
    size_hw: tuple[int, int],
    instances: Iterable[RawInstance],
    is_defect_free: bool,
    subset: Subset | None = None,
) -> RawImage:
    """Return the image of a file whose group and subset are nowhere stated but in its path.

    Args:
        path: of the image, below `root`.
        root: of the images.
        size_hw: of the image.
        instances: on it.
        is_defect_free: whether the source says that it has no defect.
        subset: that the source states; None takes the first folder that is named like one.
    """
    relative = PurePosixPath(path.relative_to(root).as_posix())
    return RawImage(
        path=path,
        file_name=relative.as_posix(),
        size_hw=size_hw,
        group=group_of(relative),
        instances=tuple(instances),
        is_defect_free=is_defect_free,
        subset=subset or subset_of_path(relative),
    )
