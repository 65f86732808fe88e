"""Mask folders: 8-bit class-index masks, or one PNG per class, with an optional index CSV."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.formats.raw import RawDataset, RawImage, RawInstance, Sieve, checked_size_hw, components, safe_image_path
from defectory.imageio import IMAGE_SUFFIXES, load_class_mask, save_png
from defectory.rle import encode

IMAGE_COLUMNS, MASK_COLUMNS, CLASS_COLUMNS, GROUP_COLUMNS = ("image", "file", "file_name"), ("mask",), ("classes", "class"), ("group",)


def load_mask_folder(
    root: Path, *, index: Path | None = None, image_root: Path | None = None, min_area_px: int = 0, skip_bad: bool = False
) -> RawDataset:
    """Load a folder of images and masks.

    Layouts: an index CSV with columns image, mask and optionally class(es) and group (`index.csv` in the root is
    found by itself); or `images/` beside `masks/` with equal stems; or `images/` beside `masks/<class>/` with one
    PNG per class, any value above 0 being the class. Instances are 8-connected components.

    Args:
        root: the folder.
        index: CSV file; else `index.csv` in the root.
        image_root: what image names are relative to; else the root.
        min_area_px: smaller components are no instances.
        skip_bad: leave bad entries out and list them.

    Raises:
        AnnotationError: a mask is missing, of another size, or of an unknown class value.
    """
    if not root.is_dir():
        raise AnnotationError(root, "no such folder", "check the path")
    sieve = Sieve(skip_bad)
    index = index or (root / "index.csv" if (root / "index.csv").is_file() else None)
    if index is not None:
        return _load_index(root, index, image_root or root, min_area_px, sieve)
    images = root / "images"
    if not images.is_dir() or not (root / "masks").is_dir():
        raise AnnotationError(root, "no images/ and masks/ in it", "lay files out so, or name an index CSV")
    class_folders = sorted(path for path in (root / "masks").iterdir() if path.is_dir())
    loaded: list[RawImage] = []
    if class_folders:
        names = {number: folder.name for number, folder in enumerate(class_folders, start=1)}
        for path in _image_files(images):
            made = sieve.attempt(path.name, lambda path=path: _per_class(path, class_folders, min_area_px))
            if made is not None:
                loaded.append(made)
    else:
        values: set[int] = set()
        for path in _image_files(images):
            made = sieve.attempt(
                path.name, lambda path=path: _indexed(path, _mask_of(root / "masks", path), path.stem, {}, min_area_px, path.name)
            )
            if made is not None:
                loaded.append(made)
                values |= {int(instance.class_name) for instance in made.instances}
        names = {value: str(value) for value in sorted(values)}
    return RawDataset(class_names=tuple(names.values()), images=tuple(loaded), rejected=tuple(sieve.rejected))


def save_class_mask(path: Path, class_map: NDArray[np.uint8]) -> None:
    """Write a class-index mask uint8 [H,W] as 8-bit PNG."""
    save_png(path, class_map)


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _mask_of(masks: Path, image: Path) -> Path:
    path = masks / f"{image.stem}.png"
    if not path.is_file():
        raise AnnotationError(
            image,
            f"no mask {path.name} for this image",
            "add it, all zero for a defect-free image, or move the image to the defect-free folder",
        )
    return path


def _load_index(root: Path, index: Path, image_root: Path, min_area_px: int, sieve: Sieve) -> RawDataset:
    try:
        with open(index, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AnnotationError(index, f"not readable as CSV ({error})", "check the file") from None
    columns = list(rows[0]) if rows else []
    image_column, mask_column = _column(columns, IMAGE_COLUMNS), _column(columns, MASK_COLUMNS)
    class_column, group_column = _column(columns, CLASS_COLUMNS), _column(columns, GROUP_COLUMNS)
    if image_column is None or mask_column is None:
        raise AnnotationError(index, f"columns {columns}, at least image and mask expected", "name the columns so")
    names = _value_names(root, index, rows, mask_column, class_column, sieve)
    images: list[RawImage] = []
    for row in rows:

        def make(row: dict[str, str] = row) -> RawImage:
            where = f"{index}: {row[image_column]}"
            path = safe_image_path(image_root, row[image_column], where)
            mask = safe_image_path(root, row[mask_column], where)
            group = (row.get(group_column) if group_column else None) or path.stem
            return _indexed(path, mask, group, names, min_area_px, Path(row[image_column]).name)

        made = sieve.attempt(row[image_column], make)
        if made is not None:
            images.append(made)
    return RawDataset(class_names=tuple(names[value] for value in sorted(names)), images=tuple(images), rejected=tuple(sieve.rejected))


def _column(columns: Sequence[str], wanted: Sequence[str]) -> str | None:
    return next((column for column in columns if column.strip().lower() in wanted), None)


def _value_names(
    root: Path, index: Path, rows: Sequence[dict[str, str]], mask_column: str, class_column: str | None, sieve: Sieve
) -> dict[int, str]:
    """Learn which mask value is which class from rows of one class; values never told apart keep their number."""
    names: dict[int, str] = {}
    seen: set[int] = set()
    for row in rows:
        listed = (
            [name for name in (row.get(class_column) or "").replace(";", "|").replace(",", "|").split("|") if name.strip()]
            if class_column
            else []
        )
        mask_file = root / row[mask_column]
        if not mask_file.is_file():
            continue
        mask = sieve.attempt(row[mask_column], lambda mask_file=mask_file: load_class_mask(mask_file))
        if mask is None:
            continue
        values = [int(value) for value in np.unique(mask) if value > 0]
        seen |= set(values)
        if len(listed) == 1 and len(values) == 1:
            known = names.setdefault(values[0], listed[0].strip())
            if known != listed[0].strip():
                raise AnnotationError(
                    f"{index}: {row[mask_column]}",
                    f"value {values[0]} is {listed[0].strip()!r} here and {known!r} elsewhere",
                    "correct the index",
                )
    return {value: names.get(value, str(value)) for value in sorted(seen)}


def _indexed(path: Path, mask_file: Path, group: str, names: dict[int, str], min_area_px: int, file_name: str) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    if not mask_file.is_file():
        raise AnnotationError(path, f"its mask {mask_file.name} is missing", "add the mask or remove the row")
    class_map = load_class_mask(mask_file)
    if class_map.shape != size_hw:
        raise AnnotationError(
            mask_file,
            f"mask is {class_map.shape[0]}x{class_map.shape[1]}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
            "re-export the mask at image size",
        )
    instances = [
        RawInstance(class_name=names.get(int(value), str(int(value))), rle=encode(part))
        for value in np.unique(class_map[class_map > 0])
        for part in components(class_map == value, min_area_px)
    ]
    return RawImage(
        path=path, file_name=file_name, size_hw=size_hw, group=group, instances=tuple(instances), is_defect_free=not class_map.any()
    )


def _per_class(path: Path, folders: Sequence[Path], min_area_px: int) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    instances: list[RawInstance] = []
    any_pixel = False
    for folder in folders:
        mask_file = folder / f"{path.stem}.png"
        if not mask_file.is_file():
            continue
        mask = load_class_mask(mask_file) > 0
        if mask.shape != size_hw:
            raise AnnotationError(
                mask_file,
                f"mask is {mask.shape[0]}x{mask.shape[1]}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
                "re-export the mask at image size",
            )
        any_pixel |= bool(mask.any())
        instances += [RawInstance(class_name=folder.name, rle=encode(part)) for part in components(mask, min_area_px)]
    return RawImage(
        path=path, file_name=path.name, size_hw=size_hw, group=path.stem, instances=tuple(instances), is_defect_free=not any_pixel
    )
