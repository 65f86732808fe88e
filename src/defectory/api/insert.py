"""Inserts defects of a trained project into a user's images."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path

from defectory.api.project import Project
from defectory.events import Event
from defectory.folders.claims import require_replaceable


def insert(
    project: Project,
    images: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    count: int = 1,
    class_name: str | None = None,
    mask: Path | str | None = None,
    region: Path | str | None = None,
    drawing: Path | str | None = None,
    seed: int = 0,
) -> Generator[Event, None, None]:
    """Draw defects of a trained project into images, which stay as they are around them.

    `out` is checked now. The work is done while its events are read: loop over them, or use `finish`.

    Args:
        project: run up to `calibrate`.
        images: defect-free images of any size, or folders of them; grey or RGB, with or without alpha, 8 bit, 16 bit or
            float. Results keep size and depth.
        out: folder that gets `images/`, `annotations.json` and `sheet.jpg`: new, empty, or an earlier insertion, which
            is replaced as a whole.
        count: how many images of each, each with one defect.
        class_name: of the defects; None draws classes as often as they occur in train.
        mask: mask of the image's size; the defect is drawn exactly where it is not black.
        region: image of the same size, white where defects may lie; None allows the whole part.
        drawing: drawing of the image, if the project takes geometry from drawings. With several images, each of these
            three is a folder with one file per image name.
        seed: of places, masks and noise.

    Raises:
        ConfigError: an unknown class, no place for a defect, or a missing or superfluous drawing.
        ImageError: an image or a companion file cannot be used, or an image belongs to val or test.
        OutputError: `out` holds files that no insertion made, or is or contains an input.
        StageError: an input stage of the run is damaged.
    """
    frames = [Path(image) for image in ([images] if isinstance(images, Path | str) else images)]
    companions = [None if path is None else Path(path) for path in (mask, region, drawing)]
    given = [*frames, project.file, *(path for path in companions if path is not None)]
    require_replaceable(Path(out), kind="insert", sources=given)
    mask_file, region_file, drawing_file = companions
    from defectory.tools.insert import insert_into

    return insert_into(
        project.run_values,
        frames,
        out=Path(out),
        count=count,
        class_name=class_name,
        mask_file=mask_file,
        region_file=region_file,
        drawing_file=drawing_file,
        seed=seed,
    )
