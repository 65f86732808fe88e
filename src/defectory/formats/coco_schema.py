"""The content of a COCO instances file as typed values; every field is checked here, and no other module sees JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from defectory.errors import AnnotationError
from defectory.formats.coco_rle import Box, rle_of_entry
from defectory.formats.fields import (
    described,
    entry_of,
    flag_of,
    group_of,
    identity_of,
    number_of,
    shortened,
    size_hw_of,
    text_of,
)
from defectory.formats.polygons import Notice, polygons_to_rle
from defectory.formats.raw import Sieve, Subset
from defectory.rle import Rle
from defectory.textfile import read_json_file

Segmentation = list[Any] | Mapping[str, Any]
"""Polygons, or an RLE object; their content is checked against the image later."""


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One entry of `images`."""

    id: str
    file_name: str
    stated_hw: tuple[int, int] | None
    group: str | None
    subset: Subset | None


@dataclass(frozen=True, kw_only=True)
class CocoAnnotation:
    """One entry of `annotations`; `name` identifies it in messages."""

    name: str
    image_id: str
    category_id: str
    segmentation: Segmentation | None
    box_xywh: Box | None
    is_crowd: bool


@dataclass(frozen=True, kw_only=True)
class CocoFile:
    """A whole file: images in its order, annotations by image id, class names by category id."""

    path: Path
    images: tuple[CocoImage, ...]
    annotations: Mapping[str, Sequence[CocoAnnotation]]
    damaged: frozenset[str]
    """Ids of images with a skipped annotation."""
    left_out_names: frozenset[str | None]
    """File names of skipped images; None for one without a usable name."""
    class_names: Mapping[str, str]


def read_coco(path: Path, sieve: Sieve) -> CocoFile:
    """Load and check a COCO instances file.

    Raises:
        AnnotationError: it is not a COCO file, or an entry is bad and `skip_bad` is off.
    """
    content = entry_of(read_json_file(path), path, "the file")
    lists: dict[str, list[Any]] = {}
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = (
                f"no list '{key}'"
                if content.get(key) is None
                else f"'{key}' is {described(content[key])}, but a list is expected"
            )
            raise AnnotationError(
                path, f"{found}, so this is not a COCO instances file", "export the annotations as COCO instances"
            )
        lists[key] = cast("list[Any]", content[key])
    images, left_out = _images(lists["images"], path, sieve)
    left_out_ids = {image_id for image_id, _ in left_out if image_id is not None} - {image.id for image in images}
    categories = _categories(lists["categories"], path)
    image_ids = {image.id for image in images}
    annotations, damaged = _annotations(lists["annotations"], image_ids, left_out_ids, categories, path, sieve)
    used = {annotation.category_id for listed in annotations.values() for annotation in listed}
    return CocoFile(
        path=path,
        images=images,
        annotations=annotations,
        damaged=damaged,
        left_out_names=frozenset(name for _, name in left_out),
        class_names=_class_names(categories, used, path, sieve),
    )


def segmentation_rle(annotation: CocoAnnotation, size_hw: tuple[int, int], where: object, notice: Notice) -> Rle:
    """Return the mask of an annotation in an image of `size_hw`.

    Raises:
        AnnotationError: it has no mask, or a bad one.
    """
    if not annotation.segmentation:
        found = "an empty segmentation" if annotation.segmentation is not None else "no segmentation"
        box = ", a box alone is not a mask" if annotation.box_xywh is not None else ""
        raise AnnotationError(where, f"{found}{box}", "export instance masks (polygons or RLE)")
    if isinstance(annotation.segmentation, Mapping):
        return rle_of_entry(annotation.segmentation, size_hw, annotation.box_xywh, where, notice)
    return polygons_to_rle(annotation.segmentation, size_hw, where, notice=notice)


def _images(
    entries: Sequence[Any], path: Path, sieve: Sieve
) -> tuple[tuple[CocoImage, ...], set[tuple[str | None, str | None]]]:
    """Return the images, and the known ids and file names of those that were skipped."""
    images: dict[str, CocoImage] = {}
    left_out: set[tuple[str | None, str | None]] = set()
    same = 0
    for number, value in enumerate(entries, start=1):
        image = sieve.attempt(
            f"image {number}", lambda value=value, number=number: _image(value, f"{path}: image {number} of the list")
        )
        if image is None:
            left_out.add((_id_in(value, "id"), _id_in(value, "file_name")))
            continue
        if image.id in images and images[image.id] != image:
            raise AnnotationError(
                path,
                f"id {shortened(image.id)} in 'images' belongs to {shortened(images[image.id].file_name)} and to "
                f"{shortened(image.file_name)}",
                "give every image its own id",
            )
        same += image.id in images
        images[image.id] = image
    if same:
        some = "1 entry of 'images' repeats" if same == 1 else f"{same} entries of 'images' repeat"
        sieve.remark(f"{some} another one; left out", path.name)
    names: dict[str, str] = {}
    for image in images.values():
        if names.setdefault(image.file_name, image.id) != image.id:
            raise AnnotationError(
                path,
                f"file_name '{shortened(image.file_name)}' appears in two images (ids {names[image.file_name]} and "
                f"{image.id})",
                "list each file once",
            )
    return tuple(images.values()), left_out


def _image(value: object, where: str) -> CocoImage:
    entry = entry_of(value, where)
    image_id = identity_of(entry, "id", where)
    file_name = text_of(entry, "file_name", where)
    if image_id is None:
        raise AnnotationError(where, "has no id", "give every image its own id")
    where = f"{where} (id {shortened(image_id)})"
    if file_name is None or not file_name.strip():
        raise AnnotationError(where, "has no file_name", "name the image's file")
    subset = entry.get("subset")
    return CocoImage(
        id=image_id,
        file_name=file_name,
        stated_hw=size_hw_of(entry, where),
        group=group_of(entry, "group", where),
        subset=subset if subset in ("train", "val", "test") else None,
    )


@dataclass(frozen=True, kw_only=True)
class _Category:
    id: str
    name: str
    parent: str | None


def _categories(entries: Sequence[Any], path: Path) -> dict[str, _Category]:
    categories: dict[str, _Category] = {}
    for number, value in enumerate(entries, start=1):
        where = f"{path}: category {number} of the list"
        entry = entry_of(value, where)
        category_id = identity_of(entry, "id", where)
        if category_id is None:
            raise AnnotationError(where, "has no id", "give every category its own id")
        name = text_of(entry, "name", where)
        parent = entry.get("supercategory")
        category = _Category(
            id=category_id,
            name=category_id if name is None else name,
            parent=parent if isinstance(parent, str) else None,
        )
        if categories.setdefault(category_id, category).name != category.name:
            raise AnnotationError(
                path,
                f"category id {shortened(category_id)} is {shortened(categories[category_id].name)!r} and "
                f"{shortened(category.name)!r}",
                "give every category its own id",
            )
    return dict(sorted(categories.items(), key=lambda item: item[0].zfill(18)))


def _class_names(categories: Mapping[str, _Category], used: set[str], path: Path, sieve: Sieve) -> dict[str, str]:
    """Return the class names by id, without unused roots of the list.

    A root is a category with the name of another class, or the parent of other categories.
    """
    parents = {
        category.parent
        for category in categories.values()
        if category.parent is not None and category.parent != category.name
    }
    names: dict[str, str] = {}
    for category in categories.values():
        twin = next((c for c in categories.values() if c.id != category.id and c.name == category.name), None)
        if category.id not in used and twin is not None and (twin.id in used or twin.id in names):
            sieve.remark(
                f"category '{shortened(category.name)}' (id {category.id}) is unused and shares its name with "
                "another; left out",
                path.name,
            )
        elif category.id not in used and category.name in parents:
            sieve.remark(
                f"category '{shortened(category.name)}' (id {category.id}) is unused and the parent of others; left "
                "out",
                path.name,
            )
        else:
            if twin is not None and twin.id in names:
                sieve.remark(
                    f"categories {twin.id} and {category.id} are both called '{shortened(category.name)}' and become "
                    "one class",
                    path.name,
                )
            names[category.id] = category.name
    return names


def _annotations(
    entries: Sequence[Any],
    image_ids: set[str],
    left_out: set[str],
    categories: Mapping[str, _Category],
    path: Path,
    sieve: Sieve,
) -> tuple[dict[str, list[CocoAnnotation]], frozenset[str]]:
    """Return the annotations of each image, and the ids of images that lost one.

    Annotations of skipped images are skipped with them.
    """
    by_image: dict[str, list[CocoAnnotation]] = {}
    damaged: set[str] = set()
    seen: set[str] = set()
    parsed: list[CocoAnnotation] = []
    repeated = 0
    for number, value in enumerate(entries, start=1):
        image_id = _id_in(value, "image_id")
        if image_id in left_out:
            continue
        stated = _id_in(value, "id")
        repeated += stated in seen
        name = f"annotation {number} of the list" if stated is None or stated in seen else f"annotation {stated}"
        seen |= {stated} if stated is not None else set()
        made = sieve.attempt(name, lambda value=value, name=name: _annotation(value, name, image_ids, categories, path))
        if made is not None:
            parsed.append(made)
            by_image.setdefault(made.image_id, []).append(made)
        else:
            damaged |= set() if image_id is None else {image_id}
    if repeated:
        some = "1 annotation repeats" if repeated == 1 else f"{repeated} annotations repeat"
        sieve.remark(f"{some} the id of another one; all are read", path.name)
    if parsed and all(not annotation.segmentation for annotation in parsed):
        kind = (
            "boxes" if any(annotation.box_xywh is not None for annotation in parsed) else "keypoints or nothing at all"
        )
        raise AnnotationError(
            path,
            f"none of {len(parsed)} annotations has a segmentation, only {kind}",
            "export instance masks (polygons or RLE)",
        )
    return by_image, frozenset(damaged)


def _id_in(value: Any, field: str) -> str | None:
    """Return the id in a field of an entry of any type; None if there is no usable one."""
    try:
        return identity_of(entry_of(value, ""), field, "") or None
    except AnnotationError:
        return None


def _annotation(
    value: object, name: str, image_ids: set[str], categories: Mapping[str, _Category], path: Path
) -> CocoAnnotation:
    where = f"{path}: {name}"
    entry = entry_of(value, where)
    identity_of(entry, "id", where)
    image_id, category_id = identity_of(entry, "image_id", where), identity_of(entry, "category_id", where)
    if image_id is None or image_id not in image_ids:
        found = "has no image_id" if image_id is None else f"names image {shortened(image_id)}, which is not listed"
        raise AnnotationError(where, found, "add the image or remove the annotation")
    if category_id is None or category_id not in categories:
        found = (
            "has no category_id"
            if category_id is None
            else f"category_id {shortened(category_id)} is not in 'categories'"
        )
        raise AnnotationError(where, found, "add the class or correct the id")
    segmentation = entry.get("segmentation")
    if segmentation is not None and not isinstance(segmentation, list | dict):
        raise AnnotationError(
            where, f"segmentation is {described(segmentation)}, but polygons or RLE are expected", "export it again"
        )
    return CocoAnnotation(
        name=name,
        image_id=image_id,
        category_id=category_id,
        segmentation=cast("Segmentation | None", segmentation),
        box_xywh=_box(entry.get("bbox")),
        is_crowd=flag_of(entry, "iscrowd", where),
    )


def _box(value: Any) -> Box | None:
    """Return a box, or None if the value is not one; only the meaning of ambiguous RLE depends on it."""
    if not isinstance(value, list) or len(value) != 4:
        return None
    try:
        x, y, width, height = (number_of({"bbox": side}, "bbox", "") for side in cast("list[Any]", value))
    except AnnotationError:
        return None
    return None if x is None or y is None or width is None or height is None else (x, y, width, height)
