"""COCO instances: polygons, compressed and uncompressed RLE, crowd."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defectory.artifacts.annotation import Category, Instance
from defectory.errors import AnnotationError
from defectory.formats.polygons import polygons_to_rle, rle_to_polygons
from defectory.formats.raw import RawDataset, RawImage, RawInstance, Sieve, checked_size_hw, safe_image_path
from defectory.rle import Rle, box_xyxy, decode, encode
from defectory.run import write_json


def load_coco(path: Path, *, image_root: Path | None = None, skip_bad: bool = False) -> RawDataset:
    """Load a COCO instances file; an image without annotations is defect-free.

    Args:
        path: JSON file.
        image_root: where files lie; else the file's folder, or `images/` beside it.
        skip_bad: leave bad entries out and list them.

    Raises:
        AnnotationError: the file, or without `skip_bad` any entry, is bad.
        ImageError: without `skip_bad`, an image is bad.
    """
    content = _read(path)
    root = image_root or (path.parent / "images" if (path.parent / "images").is_dir() else path.parent)
    sieve = Sieve(skip_bad)
    names = _class_names(content["categories"], path)
    for kind in ("images", "annotations"):
        _refuse_duplicates(content[kind], kind, path)
    image_ids = {entry["id"] for entry in content["images"]}
    by_image: dict[Any, list[Mapping[str, Any]]] = {}
    for entry in content["annotations"]:
        image_id = entry.get("image_id")
        if image_id not in image_ids:
            sieve.attempt(f"annotation {entry['id']}", lambda entry=entry: _raise_orphan(path, entry))
        else:
            by_image.setdefault(image_id, []).append(entry)
    images: list[RawImage] = []
    for entry in content["images"]:
        made = sieve.attempt(
            f"image {entry['id']}", lambda entry=entry: _image(path, root, entry, by_image.get(entry["id"], []), names, sieve)
        )
        if made is not None:
            images.append(made)
    _refuse_same_files(images, path)
    return RawDataset(class_names=tuple(names.values()), images=tuple(images), rejected=tuple(sieve.rejected))


def save_coco(
    path: Path,
    categories: Sequence[Category],
    images: Sequence[tuple[int, str, tuple[int, int], Mapping[str, object]]],
    instances: Sequence[tuple[int, Instance]],
    *,
    polygons: bool = False,
) -> None:
    """Write a COCO instances file.

    Args:
        path: JSON file.
        categories: classes.
        images: id, file name, size_hw and extra keys of each image.
        instances: image id and instance.
        polygons: write rings instead of RLE (approximate for thin parts).
    """
    annotations: list[dict[str, object]] = []
    for number, (image_id, instance) in enumerate(instances, start=1):
        mask = decode(instance.rle)
        x0, y0, x1, y1 = box_xyxy(mask)
        rle = {"size": list(instance.rle.size_hw), "counts": instance.rle.counts}
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": instance.category_id,
                "segmentation": rle_to_polygons(instance.rle) if polygons and not instance.is_crowd else rle,
                "area": int(mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(instance.is_crowd),
            }
        )
    write_json(
        path,
        {
            "info": {"description": "written by defectory"},
            "images": [{"id": i, "file_name": name, "height": hw[0], "width": hw[1], **extra} for i, name, hw, extra in images],
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in categories],
        },
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AnnotationError(path, "no such file", "check the path") from None
    except (OSError, ValueError) as error:
        raise AnnotationError(path, f"not readable as JSON ({str(error).splitlines()[0]})", "export the annotations again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(path, f"no list '{key}', so not a COCO instances file", "export the annotations as COCO instances")
        if not all(isinstance(entry, dict) and "id" in entry for entry in content[key]):
            raise AnnotationError(path, f"an entry of '{key}' has no id", "export the annotations again")
    return content


def _class_names(entries: Sequence[Mapping[str, Any]], path: Path) -> dict[Any, str]:
    _refuse_duplicates(entries, "categories", path)
    names = {entry["id"]: str(entry.get("name", entry["id"])) for entry in sorted(entries, key=lambda entry: str(entry["id"]).zfill(9))}
    repeated = [name for name, count in Counter(names.values()).items() if count > 1]
    if repeated:
        raise AnnotationError(path, f"two categories are called {repeated[0]!r}", "give each class its own name")
    return names


def _refuse_duplicates(entries: Sequence[Mapping[str, Any]], kind: str, path: Path) -> None:
    repeated = [value for value, count in Counter(str(entry["id"]) for entry in entries).items() if count > 1]
    if repeated:
        raise AnnotationError(path, f"id {repeated[0]} appears more than once in '{kind}'", "give every entry its own id")


def _refuse_same_files(images: Sequence[RawImage], path: Path) -> None:
    repeated = [name for name, count in Counter(image.file_name for image in images).items() if count > 1]
    if repeated:
        raise AnnotationError(path, f"file_name {repeated[0]!r} appears in two images", "list each file once")


def _raise_orphan(path: Path, entry: Mapping[str, Any]) -> None:
    raise AnnotationError(
        path, f"annotation {entry['id']} names image {entry.get('image_id')}, which is not listed", "add the image or remove the annotation"
    )


def _image(
    path: Path, root: Path, entry: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]], names: Mapping[Any, str], sieve: Sieve
) -> RawImage:
    where = f"{path}: image {entry['id']}"
    file_name = str(entry.get("file_name", ""))
    image_file = safe_image_path(root, file_name, where)
    stated = (int(entry["height"]), int(entry["width"])) if "height" in entry and "width" in entry else None
    size_hw = checked_size_hw(image_file, stated, where)
    instances: list[RawInstance] = []
    for annotation in annotations:
        made = sieve.attempt(f"annotation {annotation['id']}", lambda annotation=annotation: _instance(path, annotation, size_hw, names))
        if made is not None:
            instances.append(made)
    group = str(entry.get("group") or Path(file_name).with_suffix("").as_posix())
    return RawImage(
        path=image_file, file_name=file_name, size_hw=size_hw, group=group, instances=tuple(instances), is_defect_free=not annotations
    )


def _instance(path: Path, entry: Mapping[str, Any], size_hw: tuple[int, int], names: Mapping[Any, str]) -> RawInstance:
    where = f"{path}: annotation {entry['id']}"
    if entry.get("category_id") not in names:
        raise AnnotationError(where, f"category_id {entry.get('category_id')} is not in 'categories'", "add the class or correct the id")
    segmentation = entry.get("segmentation")
    if isinstance(segmentation, list):
        rle = polygons_to_rle(segmentation, size_hw, where)
    elif isinstance(segmentation, dict):
        rle = _rle(segmentation, size_hw, where)
    else:
        raise AnnotationError(where, "no segmentation", "export instance masks, boxes alone do not do")
    return RawInstance(class_name=names[entry["category_id"]], rle=rle, is_crowd=bool(entry.get("iscrowd", 0)))


def _rle(segmentation: Mapping[str, Any], size_hw: tuple[int, int], where: object) -> Rle:
    import numpy as np

    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size is None or [int(v) for v in size] != list(size_hw):
        raise AnnotationError(
            where, f"mask size {size}, image is {size_hw[0]}x{size_hw[1]} (height x width)", "re-export the mask at image size"
        )
    try:
        if isinstance(counts, str):
            rle = Rle(size_hw=size_hw, counts=counts)
            runs_total = sum(_string_runs(counts))
            if runs_total != size_hw[0] * size_hw[1]:
                raise ValueError(f"runs add up to {runs_total}, not {size_hw[0] * size_hw[1]}")
            mask = decode(rle)
        else:
            runs = np.asarray(counts, np.int64)
            if runs.ndim != 1 or (runs < 0).any() or int(runs.sum()) != size_hw[0] * size_hw[1]:
                raise ValueError(f"runs add up to {int(runs.sum())}, not {size_hw[0] * size_hw[1]}")
            values = np.arange(len(runs)) % 2 == 1
            mask = np.repeat(values, runs).reshape(size_hw[1], size_hw[0]).T
    except (ValueError, TypeError, OverflowError) as error:
        raise AnnotationError(where, f"malformed RLE ({str(error).splitlines()[0]})", "export the mask again") from None
    if not mask.any():
        raise AnnotationError(where, "mask covers no pixel", "draw it or remove the annotation")
    return encode(mask)


def _string_runs(counts: str) -> list[int]:
    """Decode COCO's compressed run lengths without trusting them."""
    runs: list[int] = []
    position = 0
    codes = counts.encode("ascii")
    while position < len(codes):
        value, shift, more = 0, 0, True
        while more:
            if position >= len(codes) or shift > 60:
                raise ValueError("the text ends inside a number")
            code = codes[position] - 48
            if not 0 <= code < 64:
                raise ValueError("a character outside the code")
            value |= (code & 0x1F) << shift
            more = bool(code & 0x20)
            position += 1
            shift += 5
            if not more and code & 0x10:
                value |= -1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            raise ValueError("a run is negative")
        runs.append(value)
    return runs
