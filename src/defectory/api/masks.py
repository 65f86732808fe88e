"""Previews the masks that synthesis may paint, and writes those of train for an expert."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.api.project import Project
from defectory.errors import OutputError
from defectory.folders.claims import is_empty, require_replaceable
from defectory.folders.marker import is_ours

REVIEW = "masks-review"
"""Kind of the folder that a review is written to."""


def preview_masks(
    project: Project, *, per_class: int = 20, seed: int = 0
) -> tuple[NDArray[np.uint8], dict[str, dict[str, int]]]:
    """Draw masks of every class from the project's sources.

    Args:
        project: run up to its tiles, and up to `learn-masks` if it has that stage.
        per_class: masks of each class.
        seed: of the masks.

    Returns:
        A sheet of the masks, RGB uint8 [H,W,3], and the number of masks per class and source.
    """
    from defectory.tools.masks import preview_masks as preview

    return preview(project.run_values, per_class=per_class, seed=seed)


def review_masks(project: Project, *, out: Path | str) -> int:
    """Write the training masks as PNG files for an expert to correct or add to; `masks.expert` reads them back.

    Args:
        project: run up to its tiles.
        out: folder: new or empty. It gets one folder per class, and a sheet.

    Returns:
        The number of masks.

    Raises:
        OutputError: `out` holds files, which may be corrections.
    """
    from defectory.tools.masks import review_masks as write

    require_review_folder(Path(out))
    return write(project.run_values, Path(out))


def require_review_folder(out: Path) -> None:
    """Check that masks may be written to a folder for review, before any work.

    Raises:
        OutputError: it holds files, which may be corrections.
    """
    if is_ours(out, kind=REVIEW) and not is_empty(out):
        raise OutputError(out, "is there already and may hold corrections", "give another folder (--out)")
    require_replaceable(out, kind=REVIEW)
