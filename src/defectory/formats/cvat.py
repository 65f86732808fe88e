"""CVAT for images 1.1: one XML file with polygons, masks and ellipses in pixels."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np

from defectory.errors import AnnotationError
from defectory.formats.fields import length_px_of, number_of, shortened, size_hw_of
from defectory.formats.imagefinder import ImageFinder, choose_root, remark_unlisted
from defectory.formats.lookup import is_file, is_folder, subset_of
from defectory.formats.placed import placed_image
from defectory.formats.polygons import polygons_to_rle
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Sieve, checked_size_hw, is_litter
from defectory.formats.registry import Format
from defectory.formats.shapes import (
    NO_MASKS,
    ellipse_ring,
    notice_at,
    only_unusable,
    patch_rle,
    refuse_shape,
    refuse_twice,
)
from defectory.rle import Rle, checked_runs, union
from defectory.textfile import read_xml_file, sniff_text

USABLE = frozenset({"polygon", "mask", "ellipse"})
SHAPES = USABLE | NO_MASKS.keys()
MAX_FILES = 200


@dataclass(frozen=True, kw_only=True)
class CvatImage:
    """One `image` element; `shapes` are the drawn elements in it."""

    name: str
    stated_hw: tuple[int, int] | None
    subset: str
    shapes: tuple[Element, ...]
    where: str
    place: str


def recognise(path: Path) -> str | None:
    """Recognise a CVAT XML file, or a folder with one."""
    return "CVAT for images (XML)" if _files(path) else None


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load CVAT's XML; an image without shapes is defect-free.

    Shapes with the same label and the same `group_id` other than 0 are one instance: CVAT numbers groups from 1, and 0
    means no group.

    Raises:
        AnnotationError: a file or shape is bad and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    sieve = Sieve(options.skip_bad)
    files = _files(path)
    if not files:
        raise AnnotationError(path, "no XML of 'CVAT for images' in it", "export the task as 'CVAT for images 1.1'")
    images: list[RawImage] = []
    names: dict[str, None] = {}
    for file in files:
        root_element = read_xml_file(file)
        entries = _entries(file, root_element, sieve)
        only_unusable(
            [shape.tag for entry in entries for shape in entry.shapes], lambda kind: kind in USABLE, file, "shapes"
        )
        listed = [entry.name for entry in entries]
        root = options.image_root or choose_root(file.parent, listed)
        finder = ImageFinder(root, sieve, follow_links=options.follow_links)
        names |= dict.fromkeys(
            label for element in root_element.iterfind(".//labels/label/name") if (label := element.text) is not None
        )
        for entry in entries:
            made = sieve.attempt(
                f"image {shortened(entry.name)}", lambda entry=entry, finder=finder: _image(entry, finder, sieve)
            )
            if made is not None:
                images.append(made)
        if not sieve.rejected:
            remark_unlisted(finder)
    refuse_twice(images, path)
    drawn = dict.fromkeys(instance.class_name for image in images for instance in image.instances)
    return RawDataset(
        class_names=tuple(names | drawn), images=tuple(images), rejected=tuple(sieve.rejected), remarks=sieve.remarks
    )


def _files(path: Path) -> list[Path]:
    if not is_folder(path):
        return [path] if path.suffix.lower() == ".xml" and _is_cvat(path) else []
    if is_file(path / "annotations.xml") and _is_cvat(path / "annotations.xml"):
        return [path / "annotations.xml"]
    try:
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".xml" and not is_litter(p.name) and is_file(p))
    except OSError:
        return []
    return [file for file in files if _is_cvat(file)] if len(files) <= MAX_FILES else []


def _is_cvat(path: Path) -> bool:
    return re.search(r"<annotations[\s>]", sniff_text(path)) is not None


def _entries(path: Path, root: Element, sieve: Sieve) -> list[CvatImage]:
    if root.tag != "annotations":
        raise AnnotationError(
            path,
            f"begins with <{shortened(root.tag)}>, but <annotations> is expected",
            "export as 'CVAT for images 1.1'",
        )
    elements = root.findall("image")
    if not elements:
        what = "tracks of a video, which name no image files" if root.find("track") is not None else "no image in it"
        raise AnnotationError(path, what, "export as 'CVAT for images 1.1'")
    entries: list[CvatImage] = []
    for number, element in enumerate(elements, start=1):
        made = sieve.attempt(
            f"image {number}", lambda element=element, number=number: _entry(path, element, number, sieve)
        )
        if made is not None:
            entries.append(made)
    return entries


def _entry(path: Path, element: Element, number: int, sieve: Sieve) -> CvatImage:
    name = element.get("name")
    if name is None or not name.strip():
        raise AnnotationError(f"{path}: image {number}", "has no name", "export the annotations again")
    where = f"{path}: image {shortened(name)}"
    for child in element:
        if child.tag not in SHAPES:
            sieve.remark(
                f"<{shortened(child.tag)}> is not a shape and is skipped", f"{path.name}: image {shortened(name)}"
            )
    return CvatImage(
        name=name,
        stated_hw=size_hw_of(element.attrib, where),
        subset=element.get("subset") or "",
        shapes=tuple(child for child in element if child.tag in SHAPES),
        where=where,
        place=f"{path.name}: image {shortened(name)}",
    )


def _image(entry: CvatImage, finder: ImageFinder, sieve: Sieve) -> RawImage:
    path = finder.find(entry.name, entry.where, entry.place)
    size_hw = checked_size_hw(path, entry.stated_hw, entry.where)
    parts: dict[tuple[str, str], list[Rle]] = {}
    for number, shape in enumerate(entry.shapes, start=1):
        made = sieve.attempt(
            f"{entry.place}, shape {number}",
            lambda shape=shape, number=number: _shape(entry, shape, number, size_hw, sieve),
        )
        if made is not None:
            label, rle = made
            group = (shape.get("group_id") or "0").strip()
            parts.setdefault((label, f"shape {number}" if group == "0" else f"group {group}"), []).append(rle)
    return placed_image(
        path,
        finder.root,
        size_hw=size_hw,
        instances=(RawInstance(class_name=label, rle=union(rles)) for (label, _), rles in parts.items()),
        is_defect_free=not entry.shapes,
        subset=subset_of(entry.subset),
    )


def _shape(entry: CvatImage, shape: Element, number: int, size_hw: tuple[int, int], sieve: Sieve) -> tuple[str, Rle]:
    where = f"{entry.where}: {shape.tag} {number}"
    label = shape.get("label")
    if label is None:
        raise AnnotationError(where, "has no label", "name its class")
    notice = notice_at(sieve, f"{entry.place}: {shape.tag} {number}")
    if shape.tag == "polygon":
        return label, polygons_to_rle([_points(shape.get("points") or "", where)], size_hw, where, notice=notice)
    if shape.tag == "ellipse":
        cx, cy, rx, ry = (_number(shape.attrib, name, where) for name in ("cx", "cy", "rx", "ry"))
        turn = number_of(shape.attrib, "rotation", where) or 0.0
        return label, polygons_to_rle(
            [ellipse_ring((cx, cy), (rx, ry), turn_degrees=turn)], size_hw, where, notice=notice
        )
    if shape.tag == "mask":
        return label, _mask(shape.attrib, size_hw, where)
    refuse_shape(shape.tag, where)
    raise AssertionError


def _points(text: str, where: str) -> list[str]:
    """Split `x,y;x,y`; the numbers are checked with the outline."""
    pairs = [pair.split(",") for pair in text.strip().strip(";").split(";")]
    if any(len(pair) != 2 for pair in pairs):
        raise AnnotationError(
            where, f"points are '{shortened(text)}', but x,y;x,y;... is expected", "export the annotations again"
        )
    return [number.strip() for pair in pairs for number in pair]


def _number(attributes: Mapping[str, str], name: str, where: str) -> float:
    number = number_of(attributes, name, where)
    if number is None:
        raise AnnotationError(where, f"has no {name}", "export the annotations again")
    return number


def _mask(attributes: Mapping[str, str], size_hw: tuple[int, int], where: str) -> Rle:
    """Decode CVAT's run lengths: row by row within a box, background first."""
    height, width = length_px_of(attributes, "height", where), length_px_of(attributes, "width", where)
    left, top = _number(attributes, "left", where), _number(attributes, "top", where)
    if height is None or width is None or height > size_hw[0] or width > size_hw[1]:
        raise AnnotationError(
            where,
            f"mask is {height}x{width}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
            "export the annotations again",
        )
    runs = _runs(attributes.get("rle") or "", where)
    try:
        checked_runs(runs, height * width, may_end_early=True)
    except ValueError as error:
        raise AnnotationError(where, f"malformed RLE: {error}", "export the annotations again") from None
    values = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    patch = np.zeros(height * width, bool)
    patch[: len(values)] = values
    return patch_rle(patch.reshape(height, width), (int(left), int(top)), size_hw, where)


def _runs(text: str, where: str) -> np.ndarray:
    numbers: Sequence[str] = text.split(",")
    if not all(re.fullmatch(r"\s*\d{1,9}\s*", number) for number in numbers):
        raise AnnotationError(
            where, f"rle is '{shortened(text)}', but numbers and commas are expected", "export the annotations again"
        )
    return np.array([int(number) for number in numbers], np.int64)


CVAT = Format(name="cvat", title="CVAT for images 1.1 (XML)", recognise=recognise, load=load)
