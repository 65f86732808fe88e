"""Records which images a stage used, for the split certificate."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from defectory.artifacts.certificate import ImagesUsed
from defectory.runs import layout


def record_images(out: Path, **image_ids: Iterable[int]) -> None:
    """Write the ids of the images that a stage used, by purpose, into the stage's folder."""
    used = {purpose: tuple(sorted(set(ids))) for purpose, ids in image_ids.items()}
    ImagesUsed(image_ids=used).save(out / layout.IMAGES_USED)
