"""Predicts image files with a trained segmenter, for the verb `predict`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Number of predicted images, reasons for skipped ones, and remarks on how images were read."""

    num_images: int
    skipped: tuple[str, ...]
    remarks: tuple[str, ...]


def predict_files(
    images: list[Path], *, segmenter: Path, out: Path, min_score: float | None, device: str, skip_bad: bool
) -> Predicted:
    """Predict image files; write `predictions.json` (COCO results), `images.json` (images, categories) and overlays.

    Images are read like the training images, with the value range of their data set.

    Args:
        images: files of any name, and folders, in which files with an image suffix or no suffix count. A file named
            twice counts once.
        segmenter: folder of a trained segmenter.
        out: folder, replaced as a whole if an earlier prediction made it.
        min_score: weaker detections are not drawn; None takes the segmenter's own.
        device: where to predict.
        skip_bad: skip images that cannot be read.

    Raises:
        InputError: no images, an unreadable image (with `skip_bad`: no readable image), or not a segmenter.
        OutputError: `out` holds files that no prediction made.
    """
    from defectory.errors import ImageError
    from defectory.filenames import file_name_of
    from defectory.files import write_json
    from defectory.folders.claims import require_replaceable
    from defectory.folders.swap import atomic_folder
    from defectory.formats.raw import Sieve
    from defectory.images.load import load_image
    from defectory.segmentation.predict import coco_results, predict_images, write_overlay
    from defectory.segmentation.training import load_segmenter, score_threshold_of, value_range_of

    files = _once(images)
    if not files:
        raise ImageError(
            ", ".join(str(p) for p in images), "no images here", "give image files or folders that hold some"
        )
    require_replaceable(out, kind="predictions")
    model, categories, sizing = load_segmenter(segmenter, device)
    value_range = value_range_of(segmenter)
    drawn_from = score_threshold_of(segmenter) if min_score is None else min_score
    records: list[dict[str, Any]] = []
    results: list[dict[str, object]] = []
    sieve = Sieve(skip_bad)
    with atomic_folder(out, kind="predictions") as folder:
        for image_id, path in enumerate(files, start=1):
            loaded = sieve.attempt(str(path), lambda path=path: load_image(path, value_range))
            if loaded is None:
                continue
            for remark in loaded.remarks:
                sieve.remark(remark, path)
            image = loaded.rgb
            found = next(iter(predict_images(model, [(image_id, image)], scale=sizing.scale)))
            records.append(
                {"id": image_id, "file_name": _as_text(path), "height": image.shape[0], "width": image.shape[1]}
            )
            results += coco_results(found)
            write_overlay(
                folder / "overlays" / f"{image_id:05d}_{file_name_of(path.stem)}.png",
                image,
                found,
                categories,
                min_score=drawn_from,
            )
        if not records:
            raise ImageError(
                f"none of {len(files)} images",
                f"can be read; the first: {sieve.rejected[0].reason}",
                "give other images",
            )
        write_json(folder / "predictions.json", results)
        write_json(
            folder / "images.json",
            {"images": records, "categories": [{"id": c.id, "name": c.name} for c in categories]},
        )
    return Predicted(
        num_images=len(records), skipped=tuple(bad.reason for bad in sieve.rejected), remarks=sieve.remarks
    )


def _once(paths: list[Path]) -> list[Path]:
    """Return the files to predict in order, without duplicates, however they are named."""
    seen: set[str] = set()
    files: list[Path] = []
    for path in _files(paths):
        try:
            same = str(path.resolve())
        except (OSError, RuntimeError, ValueError):
            # reading it later reports what is wrong
            same = str(path)
        if same not in seen:
            seen.add(same)
            files.append(path)
    return files


def _files(paths: list[Path]) -> Iterator[Path]:
    from defectory.formats.raw import walk_files
    from defectory.images.header import IMAGE_SUFFIXES, looks_like_image

    for path in paths:
        if not _is_folder(path):
            yield path
            continue
        for file in walk_files(path):
            if file.suffix.lower() in IMAGE_SUFFIXES or (not file.suffix and looks_like_image(file)):
                yield file


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _as_text(path: Path) -> str:
    """Return a path as text; bytes outside the file system's encoding become escapes, since JSON cannot hold them."""
    return str(path).encode("utf-8", "backslashreplace").decode()
