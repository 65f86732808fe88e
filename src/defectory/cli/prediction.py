"""What `predict` does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any


def predict_files(
    images: list[Path], *, segmenter: Path, out: Path, min_score: float | None, device: str, skip_bad: bool
) -> tuple[int, list[str]]:  # fmt: skip
    """Predict image files, write `predictions.json` (images, categories, COCO results) and overlays.

    Raises:
        InputError: no images, an image that cannot be read (unless skipped), or not a segmenter.
    """
    from defectory.errors import ImageError
    from defectory.imageio import load_rgb
    from defectory.run import write_json
    from defectory.segmentation.predict import coco_results, predict_images, write_overlay
    from defectory.segmentation.training import load_segmenter, score_threshold_of

    files = list(_files(images))
    if not files:
        raise ImageError(", ".join(str(p) for p in images), "no images here", "give image files or folders that hold some")
    model, categories, tiling = load_segmenter(segmenter, device)
    drawn_from = score_threshold_of(segmenter) if min_score is None else min_score
    records: list[dict[str, Any]] = []
    results: list[dict[str, object]] = []
    skipped: list[str] = []
    for image_id, path in enumerate(files, start=1):
        try:
            image = load_rgb(path)
        except ImageError as error:
            if not skip_bad:
                raise
            skipped.append(str(error))
            continue
        found = next(iter(predict_images(model, [(image_id, image)], tiling)))
        records.append({"id": image_id, "file_name": str(path), "height": image.shape[0], "width": image.shape[1]})
        results += coco_results(found)
        write_overlay(out / "overlays" / f"{image_id:05d}_{path.stem}.png", image, found, categories, min_score=drawn_from)
    write_json(out / "predictions.json", results)
    write_json(out / "images.json", {"images": records, "categories": [{"id": c.id, "name": c.name} for c in categories]})
    return len(records), skipped


def _files(paths: list[Path]) -> Iterator[Path]:
    from defectory.imageio import IMAGE_SUFFIXES

    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        else:
            yield path
