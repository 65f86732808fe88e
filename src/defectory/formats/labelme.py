"""labelme: one JSON file per image, beside it or in a folder of its own."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from defectory.errors import AnnotationError
from defectory.formats.fields import (
    Entry,
    described,
    entry_of,
    identity_of,
    list_of,
    number_of,
    shortened,
    size_hw_of,
    text_of,
)
from defectory.formats.imagefinder import ImageFinder
from defectory.formats.lookup import images_in, is_file, is_folder, shown
from defectory.formats.placed import placed_image
from defectory.formats.polygons import polygons_to_rle
from defectory.formats.raw import (
    LoadOptions,
    RawDataset,
    RawImage,
    RawInstance,
    Sieve,
    checked_size_hw,
    safe_image_path,
    walk_files,
)
from defectory.formats.registry import Format
from defectory.formats.shapes import (
    ellipse_ring,
    notice_at,
    only_unusable,
    patch_rle,
    refuse_shape,
    refuse_twice,
    with_unlabelled,
)
from defectory.images.header import IMAGE_SUFFIXES
from defectory.rle import Rle, union
from defectory.textfile import read_json_file, sniff_text

LOOKED_AT_FILES = 2000
USABLE = frozenset({"polygon", "circle", "mask", "oriented_rectangle"})


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One shape of a file; shapes with the same label and group are one instance."""

    label: str
    kind: str
    points: tuple[tuple[float, float], ...]
    group: str | None
    mask: str | None
    where: str
    place: str


@dataclass(frozen=True, kw_only=True)
class LabelmeFile:
    """One file, checked."""

    path: Path
    image_path: str
    stated_hw: tuple[int, int] | None
    shapes: tuple[Shape, ...]


def recognise(path: Path) -> str | None:
    """Recognise a labelme file, or a folder with some."""
    if not is_folder(path):
        return "labelme JSON" if path.suffix.lower() == ".json" and _is_labelme(path) else None
    try:
        files = [file for file in islice(walk_files(path), LOOKED_AT_FILES) if file.suffix.lower() == ".json"]
    except AnnotationError:
        return None
    first = next((file for file in files[:50] if _is_labelme(file)), None)
    if first is None:
        return None
    beside = any(is_file(first.with_suffix(suffix)) for suffix in (*IMAGE_SUFFIXES, *map(str.upper, IMAGE_SUFFIXES)))
    return "labelme JSON, one beside each image" if beside else f"labelme JSON, in {first.parent.name}/"


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load labelme files; a file without shapes means a defect-free image, an image without a file is unlabelled.

    Polygons, circles and masks with the same label and the same `group_id` are one instance.

    Raises:
        AnnotationError: a file is bad and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    sieve = Sieve(options.skip_bad)
    base = path if is_folder(path) else path.parent
    root = options.image_root or base
    finder = ImageFinder(root, sieve, follow_links=options.follow_links)
    files: list[LabelmeFile] = []
    unread: set[str] = set()
    for file in _json_files(path, options, sieve):
        made = sieve.attempt(shown(file, base), lambda file=file: _read(file, base))
        if made is not None:
            files.append(made)
        else:
            unread.add(file.stem)
    if not files and not sieve.rejected:
        raise AnnotationError(path, "no labelme file in it", "give the folder of the JSON files")
    only_unusable([shape.kind for file in files for shape in file.shapes], lambda kind: kind in USABLE, path, "shapes")
    images: list[RawImage] = []
    damaged: set[Path] = set()
    for file in files:
        found = sieve.attempt(shown(file.path, base), lambda file=file: _find(file, base, root, finder, options))
        if found is None:
            continue
        made = sieve.attempt(shown(file.path, base), lambda file=file, found=found: _image(file, found, root, sieve))
        if made is None:
            damaged.add(found)
        else:
            images.append(made)
    refuse_twice(images, path)
    if is_folder(path):
        every = [file for file in images_in(root, options, sieve) if file not in damaged and file.stem not in unread]
        images = with_unlabelled(
            images,
            every,
            root,
            options,
            sieve,
            where=path,
            what="labelme file",
            looked_for="a JSON of its name, and imagePath",
        )
    names = dict.fromkeys(shape.label for file in files for shape in file.shapes)
    return RawDataset(
        class_names=tuple(names), images=tuple(images), rejected=tuple(sieve.rejected), remarks=sieve.remarks
    )


def _is_labelme(path: Path) -> bool:
    text = sniff_text(path)
    return text.lstrip().startswith("{") and re.search(r'"shapes"\s*:', text) is not None and '"images"' not in text


def _json_files(path: Path, options: LoadOptions, sieve: Sieve) -> list[Path]:
    if not is_folder(path):
        return [path]
    files = [file for file in walk_files(path, follow_links=options.follow_links) if file.suffix.lower() == ".json"]
    kept = [file for file in files if _is_labelme(file)]
    if len(kept) < len(files):
        other = next(file for file in files if file not in set(kept))
        sieve.remark(
            f"{len(files) - len(kept)} JSON files are not from labelme and are skipped (first: {shown(other, path)})"
        )
    return kept


def _read(path: Path, base: Path) -> LabelmeFile:
    content = entry_of(read_json_file(path), path, "the file")
    place = shown(path, base)
    if not isinstance(content.get("shapes"), list):
        raise AnnotationError(path, "no list 'shapes', so this is not a labelme file", "save it with labelme again")
    shapes = tuple(
        _shape(value, f"{path}: shape {number}", f"{place}: shape {number}")
        for number, value in enumerate(content["shapes"], start=1)
    )
    return LabelmeFile(
        path=path,
        image_path=text_of(content, "imagePath", path) or "",
        stated_hw=size_hw_of(content, path, height="imageHeight", width="imageWidth"),
        shapes=shapes,
    )


def _shape(value: object, where: str, place: str) -> Shape:
    entry = entry_of(value, where, "the shape")
    label = text_of(entry, "label", where)
    if label is None:
        raise AnnotationError(where, "has no label", "name its class")
    mask = entry.get("mask")
    if mask is not None and not isinstance(mask, str):
        raise AnnotationError(where, f"mask is {described(mask)}, but text is expected", "save it with labelme again")
    return Shape(
        label=label,
        kind=text_of(entry, "shape_type", where) or "polygon",
        points=tuple(_point(point, where) for point in list_of(entry, "points", where)),
        group=identity_of(entry, "group_id", where),
        mask=mask,
        where=where,
        place=place,
    )


def _point(value: Any, where: str) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise AnnotationError(
            where, f"a point is {described(value)}, but x and y are expected", "save it with labelme again"
        )
    pair: Entry = {"x": value[0], "y": value[1]}
    x, y = number_of(pair, "x", where), number_of(pair, "y", where)
    if x is None or y is None:
        raise AnnotationError(where, "a point has no x or y", "save it with labelme again")
    return x, y


def _find(file: LabelmeFile, base: Path, root: Path, finder: ImageFinder, options: LoadOptions) -> Path:
    """Return the image of a file.

    It is the one that `imagePath` leads to, the one with the file's own name beside it, or one found by name.
    """
    plain = file.image_path.replace("\\", "/")
    if plain and "\0" not in plain and not plain.startswith("/"):
        path = Path(os.path.normpath(file.path.parent / plain))
        if path.is_relative_to(root) and is_file(path) and path.suffix.lower() in IMAGE_SUFFIXES:
            return safe_image_path(
                root, path.relative_to(root).as_posix(), file.path, follow_links=options.follow_links
            )
    beside = [file.path.with_suffix(suffix) for suffix in sorted(IMAGE_SUFFIXES)]
    beside += [path.with_suffix(path.suffix.upper()) for path in beside]
    for path in beside:
        if path.is_relative_to(root) and is_file(path):
            return safe_image_path(
                root, path.relative_to(root).as_posix(), file.path, follow_links=options.follow_links
            )
    if not plain:
        raise AnnotationError(file.path, "has no imagePath, and no image of its name lies beside it", "add the image")
    return finder.find(plain, file.path, shown(file.path, base))


def _image(file: LabelmeFile, path: Path, root: Path, sieve: Sieve) -> RawImage:
    size_hw = checked_size_hw(path, file.stated_hw, file.path)
    parts: dict[tuple[str, str], list[Rle]] = {}
    for number, shape in enumerate(file.shapes):
        made = sieve.attempt(shape.place, lambda shape=shape: _rle(shape, size_hw, sieve))
        if made is not None:
            # 0 is a group like any other; a shape without a group is an instance of its own
            parts.setdefault(
                (shape.label, f"shape {number}" if shape.group is None else f"group {shape.group}"), []
            ).append(made)
    instances = (RawInstance(class_name=label, rle=union(rles)) for (label, _), rles in parts.items())
    return placed_image(path, root, size_hw=size_hw, instances=instances, is_defect_free=not file.shapes)


def _rle(shape: Shape, size_hw: tuple[int, int], sieve: Sieve) -> Rle:
    notice = notice_at(sieve, shape.place)
    if shape.kind in ("polygon", "oriented_rectangle"):
        return polygons_to_rle(
            [[value for point in shape.points for value in point]], size_hw, shape.where, notice=notice
        )
    if shape.kind == "circle":
        centre, rim = _two_points(shape)
        radius = float(np.hypot(rim[0] - centre[0], rim[1] - centre[1]))
        return polygons_to_rle([ellipse_ring(centre, (radius, radius))], size_hw, shape.where, notice=notice)
    if shape.kind == "mask":
        corner, _ = _two_points(shape)
        return patch_rle(_patch(shape, size_hw), (round(corner[0]), round(corner[1])), size_hw, shape.where)
    refuse_shape(shape.kind, shape.where)
    raise AssertionError


def _two_points(shape: Shape) -> Sequence[tuple[float, float]]:
    if len(shape.points) != 2:
        raise AnnotationError(
            shape.where, f"{shape.kind} with {len(shape.points)} points, but 2 are expected", "draw it again"
        )
    return shape.points


def _patch(shape: Shape, size_hw: tuple[int, int]) -> np.ndarray:
    if shape.mask is None:
        raise AnnotationError(shape.where, "a mask without pixels", "save it with labelme again")
    try:
        with Image.open(io.BytesIO(base64.b64decode(shape.mask, validate=True)), formats=["PNG"]) as image:
            if image.height > size_hw[0] or image.width > size_hw[1]:
                raise AnnotationError(
                    shape.where,
                    f"mask is {image.height}x{image.width}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
                    "save it with labelme again",
                )
            return np.asarray(image.convert("L")) > 0
    except (binascii.Error, OSError, ValueError, SyntaxError) as error:
        raise AnnotationError(
            shape.where, f"its mask is not a PNG in base64 ({shortened(str(error))})", "save it with labelme again"
        ) from None


LABELME = Format(name="labelme", title="labelme (a JSON beside each image)", recognise=recognise, load=load)
