"""Pascal VOC: class and object masks beside XML, or XML with polygons; XML with boxes only is refused as such."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.formats.class_masks import MaskImage, by_colour, load_mask
from defectory.formats.colours import ColourTable, find_colour_table, find_value_names, load_colour_table
from defectory.formats.components import component_rles, rles_by_value
from defectory.formats.fields import number_of, shortened, size_hw_of
from defectory.formats.imagefinder import ImageFinder
from defectory.formats.lookup import IMAGE_FOLDERS, child_folder, child_folders, images_in, is_folder, shown, subset_of
from defectory.formats.placed import placed_image
from defectory.formats.polygons import polygons_to_rle
from defectory.formats.raw import (
    LoadOptions,
    RawDataset,
    RawImage,
    RawInstance,
    Sieve,
    Subset,
    checked_size_hw,
    walk_files,
)
from defectory.formats.registry import Format
from defectory.formats.shapes import notice_at, refuse_twice, with_unlabelled
from defectory.images.header import IMAGE_SUFFIXES
from defectory.textfile import read_text_file, read_xml_file, sniff_text

CLASS_FOLDERS = ("segmentationclass", "segmentationclasspng")
OBJECT_FOLDERS = ("segmentationobject", "segmentationobjectpng")
IGNORED_VALUE = 255
"""VOC's border around objects, which is neither object nor background."""
LOOKED_AT_FILES = 2000
MIN_VOTES_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """One `object` of an XML file; `rings` is empty if it has only a box."""

    name: str
    rings: tuple[tuple[float, ...], ...]
    where: str
    place: str


@dataclass(frozen=True, kw_only=True)
class VocFile:
    """One XML file, checked."""

    path: Path
    file_name: str
    stated_hw: tuple[int, int] | None
    objects: tuple[VocObject, ...]


@dataclass(kw_only=True)
class _Masks:
    """The class names of the masks: a table of colours, or values whose names are learned from lists and XML."""

    table: ColourTable | None
    listed: Mapping[int, str] | None
    votes: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    has_other_values: bool = False
    """Whether a value other than 0 and 255 was seen, so that 255 is the border."""

    def name_of(self, value: int) -> str:
        """Return the class of a mask value."""
        if self.table is not None:
            return self.table.class_names[value - 1]
        if self.listed is not None and value in self.listed:
            return self.listed[value]
        votes = self.votes.get(value)
        if votes:
            name, count = votes.most_common(1)[0]
            if count > MIN_VOTES_SHARE * votes.total():
                return name
        return str(value)


def recognise(path: Path) -> str | None:
    """Recognise a folder with VOC's mask folders."""
    base = _base(path)
    if base is None:
        return None
    both = child_folder(base, OBJECT_FOLDERS) is not None
    return "Pascal VOC (SegmentationClass" + (", SegmentationObject)" if both else ")")


def recognise_xml(path: Path) -> str | None:
    """Recognise a folder with VOC's XML files; tried last, because sets with masks often have XML with boxes, too."""
    if not is_folder(path):
        return None
    try:
        files = [file for file in islice(walk_files(path), LOOKED_AT_FILES) if file.suffix.lower() == ".xml"]
    except AnnotationError:
        return None
    return "Pascal VOC (XML)" if any(re.search(r"<annotation[\s>]", sniff_text(file)) for file in files[:20]) else None


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load a Pascal VOC data set: its masks if there are any, else the polygons of its XML files.

    Raises:
        AnnotationError: a mask or XML file is bad and `skip_bad` is off, or the XML files have only boxes.
        ImageError: an image is bad and `skip_bad` is off.
    """
    sieve = Sieve(options.skip_bad)
    base = _base(path)
    if base is None and not is_folder(path):
        raise AnnotationError(
            path, "is not a folder", "give the folder that holds SegmentationClass/, or the XML files"
        )
    images, names = _of_masks(base, options, sieve) if base is not None else _of_xml(path, options, sieve)
    return RawDataset(class_names=names, images=tuple(images), rejected=tuple(sieve.rejected), remarks=sieve.remarks)


def _base(path: Path) -> Path | None:
    """Return the folder that holds SegmentationClass: the path, or one or two folders below it (VOCdevkit/VOC2012)."""
    if not is_folder(path):
        return None
    below = [folder for folder in child_folders(path) if folder.name.upper().startswith("VOC")]
    below += [inner for folder in below for inner in child_folders(folder) if inner.name.upper().startswith("VOC")]
    return next((folder for folder in (path, *below) if child_folder(folder, CLASS_FOLDERS) is not None), None)


def _of_masks(base: Path, options: LoadOptions, sieve: Sieve) -> tuple[list[RawImage], tuple[str, ...]]:
    masks = _by_stem(child_folder(base, CLASS_FOLDERS), options, sieve)
    objects = _by_stem(child_folder(base, OBJECT_FOLDERS), options, sieve)
    xml_folder = child_folder(base, ["annotations"])
    xml_files = (
        {}
        if xml_folder is None
        else {file.stem: file for file in walk_files(xml_folder) if file.suffix.lower() == ".xml"}
    )
    root = options.image_root or child_folder(base, IMAGE_FOLDERS)
    if root is None:
        raise AnnotationError(base, "no JPEGImages/ in it", "add the images, or give their folder (--image-root)")
    table = load_colour_table(options.class_colours) if options.class_colours is not None else find_colour_table([base])
    meaning = _Masks(table=table, listed=None if table is not None else find_value_names([base]))
    subsets = _subsets(base)
    every = images_in(root, options, sieve)
    labelled = [image for image in every if image.stem in masks]
    for image in labelled:
        sieve.attempt(
            shown(masks[image.stem], base),
            lambda image=image: _survey(masks[image.stem], objects.get(image.stem), xml_files.get(image.stem), meaning),
        )
    images: list[RawImage] = []
    refused: set[Path] = set()
    for image in labelled:
        if any(entry.id == shown(masks[image.stem], base) for entry in sieve.rejected):
            refused.add(image)
            continue
        made = sieve.attempt(
            shown(image, root),
            lambda image=image: _masked_image(
                image,
                root,
                masks[image.stem],
                objects.get(image.stem),
                meaning,
                options.min_area_px,
                subsets.get(image.stem),
            ),
        )
        if made is None:
            refused.add(image)
        else:
            images.append(made)
    orphans = sorted(set(masks) - {image.stem for image in every})
    if orphans:
        sieve.attempt(shown(masks[orphans[0]], base), lambda: _raise_orphans(masks[orphans[0]], len(orphans)))
    left = [image for image in every if image not in refused]
    images = with_unlabelled(
        images,
        left,
        root,
        options,
        sieve,
        where=base,
        what="mask",
        looked_for="a file of its name in SegmentationClass/",
    )
    used = {instance.class_name for image in images for instance in image.instances}
    known = meaning.table.class_names if meaning.table is not None else tuple((meaning.listed or {}).values())
    return images, tuple(dict.fromkeys([*known, *sorted(used)]))


def _by_stem(folder: Path | None, options: LoadOptions, sieve: Sieve) -> dict[str, Path]:
    return {} if folder is None else {file.stem: file for file in images_in(folder, options, sieve)}


def _raise_orphans(mask: Path, count: int) -> None:
    more = f" ({count} such masks)" if count > 1 else ""
    raise AnnotationError(mask, f"a mask without an image{more}", "add the image or remove the mask")


def _subsets(base: Path) -> dict[str, Subset]:
    """Return the subset of each image from ImageSets/Segmentation/train.txt and so on."""
    folder = child_folder(base, ["imagesets"])
    lists = None if folder is None else child_folder(folder, ["segmentation"]) or child_folder(folder, ["main"])
    subsets: dict[str, Subset] = {}
    for file in sorted(lists.glob("*.txt")) if lists is not None else ():
        subset = subset_of(file.stem)
        if subset is not None:
            subsets |= {
                PurePosixPath(line.split()[0]).name: subset
                for line in read_text_file(file).text.split("\n")
                if line.strip()
            }
    return subsets


def _values(path: Path, meaning: _Masks) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the class value of each pixel, and which pixels to ignore."""
    mask = load_mask(path)
    if meaning.table is not None:
        values, ignored = by_colour(mask, meaning.table, path)
        return values.astype(np.int64), ignored
    return _plain_values(path, mask)


def _plain_values(path: Path, mask: MaskImage) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    if mask.kind == "colour":
        raise AnnotationError(
            path, "is a mask in colour, but no table explains its colours", "add labelmap.txt, or give --class-colours"
        )
    values = mask.values.astype(np.int64)
    return values, values == IGNORED_VALUE


def _survey(mask: Path, objects: Path | None, xml: Path | None, meaning: _Masks) -> None:
    """Learn the names of class values.

    They come from objects in the same order in mask and XML, and from images with one class.
    """
    values, ignored = _values(mask, meaning)
    inside = np.unique(values[~ignored & (values > 0)])
    meaning.has_other_values = meaning.has_other_values or len(inside) > 0
    if meaning.table is not None or xml is None:
        return
    names = [entry.name for entry in _read_xml(xml, xml.name).objects]
    if len(inside) == 1 and len(set(names)) == 1:
        meaning.votes[int(inside[0])][names[0]] += 1
    elif objects is not None:
        numbers, _ = _plain_values(objects, load_mask(objects))
        if numbers.shape == values.shape and len(names) == len(np.setdiff1d(np.unique(numbers), [0, IGNORED_VALUE])):
            for number, name in enumerate(names, start=1):
                own = values[(numbers == number) & ~ignored]
                if len(own):
                    meaning.votes[int(np.bincount(own).argmax())][name] += 1


def _masked_image(
    path: Path, root: Path, mask: Path, objects: Path | None, meaning: _Masks, min_area_px: int, subset: Subset | None
) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    values, ignored = _values(mask, meaning)
    _require_size(mask, values.shape, size_hw)
    if meaning.has_other_values or meaning.table is not None:
        values[ignored] = 0
    instances: list[RawInstance] = []
    if objects is None:
        for value in np.unique(values[values > 0]):
            rles = component_rles(values == value, min_area_px=min_area_px, where=mask)
            instances += [RawInstance(class_name=meaning.name_of(int(value)), rle=rle) for rle in rles]
    else:
        numbers = load_mask(objects).values
        _require_size(objects, numbers.shape, size_hw)
        covered = np.where(values > 0, numbers, 0).astype(np.uint16)
        class_of = _class_of_objects(covered, values)
        instances += [
            RawInstance(class_name=meaning.name_of(class_of[number]), rle=rle)
            for number, rle in rles_by_value(covered, where=objects).items()
        ]
    is_free = not (values > 0).any()
    return placed_image(path, root, size_hw=size_hw, instances=instances, is_defect_free=is_free, subset=subset)


def _class_of_objects(objects: NDArray[np.uint16], values: NDArray[np.int64]) -> dict[int, int]:
    """Return the most frequent class value of the pixels of each object."""
    inside = objects > 0
    step = int(values.max(initial=0)) + 1
    pairs, counts = np.unique(objects[inside].astype(np.int64) * step + values[inside], return_counts=True)
    # the largest count of an object comes last, and overwrites the others
    return {int(pairs[at]) // step: int(pairs[at]) % step for at in np.argsort(counts, kind="stable")}


def _require_size(mask: Path, shape: tuple[int, ...], size_hw: tuple[int, int]) -> None:
    if shape != size_hw:
        raise AnnotationError(
            mask,
            f"mask is {shape[0]}x{shape[1]}, image is {size_hw[0]}x{size_hw[1]} (height x width)",
            "re-export the mask at image size",
        )


def _of_xml(path: Path, options: LoadOptions, sieve: Sieve) -> tuple[list[RawImage], tuple[str, ...]]:
    files: list[VocFile] = []
    unread: set[str] = set()
    for file in walk_files(path, follow_links=options.follow_links):
        if file.suffix.lower() == ".xml" and re.search(r"<annotation[\s>]", sniff_text(file)):
            made = sieve.attempt(shown(file, path), lambda file=file: _read_xml(file, shown(file, path)))
            if made is None:
                unread.add(file.stem)
            else:
                files.append(made)
    objects = [entry for file in files for entry in file.objects]
    if objects and not any(entry.rings for entry in objects):
        raise AnnotationError(
            path,
            f"XML files with {len(objects)} boxes and no masks (no SegmentationClass/, no polygons)",
            "export instance masks, because boxes alone are not enough",
        )
    if not files and not sieve.rejected:
        raise AnnotationError(
            path, "no VOC XML in it", "give the folder that holds SegmentationClass/, or the XML files"
        )
    root = options.image_root or path
    finder = ImageFinder(root, sieve, follow_links=options.follow_links)
    images: list[RawImage] = []
    for file in files:
        made = sieve.attempt(shown(file.path, path), lambda file=file: _xml_image(file, path, finder, sieve))
        if made is None:
            unread.add(file.path.stem)
        else:
            images.append(made)
    refuse_twice(images, path)
    every = [image for image in images_in(root, options, sieve) if image.stem not in unread]
    images = with_unlabelled(
        images, every, root, options, sieve, where=path, what="XML file", looked_for="an XML of its name"
    )
    return images, tuple(dict.fromkeys(instance.class_name for image in images for instance in image.instances))


def _read_xml(path: Path, place: str) -> VocFile:
    root = read_xml_file(path)
    if root.tag != "annotation":
        raise AnnotationError(
            path, f"begins with <{shortened(root.tag)}>, but <annotation> is expected", "export the annotations again"
        )
    objects: list[VocObject] = []
    for number, element in enumerate(root.findall("object"), start=1):
        where = f"{path}: object {number}"
        name = element.findtext("name")
        if name is None:
            raise AnnotationError(where, "has no name", "name its class")
        rings = tuple(_ring(polygon, where) for polygon in element.findall("polygon") if len(polygon))
        objects.append(VocObject(name=name, rings=rings, where=where, place=f"{place}: object {number}"))
    size = root.find("size")
    texts = {} if size is None else {name: size.findtext(name) for name in ("height", "width")}
    # labelImg writes 0 if it could not open the image
    stated = (
        None if texts.get("height") in ("0", "0.0") or texts.get("width") in ("0", "0.0") else size_hw_of(texts, path)
    )
    return VocFile(
        path=path, file_name=(root.findtext("filename") or "").strip(), stated_hw=stated, objects=tuple(objects)
    )


def _ring(polygon: Element, where: str) -> tuple[float, ...]:
    """Return a polygon's corners, from `<x1>..<y1>..<x2>..` as Roboflow writes them, or from `<pt><x>..<y>..</pt>`."""
    points = [element for element in polygon if element.tag in ("pt", "point")]
    pairs: list[Mapping[str, str | None]] = [{"x": point.findtext("x"), "y": point.findtext("y")} for point in points]
    if not pairs:
        texts = {element.tag: element.text for element in polygon}
        numbers = sorted({int(tag[1:]) for tag in texts if re.fullmatch(r"[xy]\d{1,6}", tag)})
        pairs = [{"x": texts.get(f"x{number}"), "y": texts.get(f"y{number}")} for number in numbers]
    ring: list[float] = []
    for pair in pairs:
        x, y = number_of(pair, "x", where), number_of(pair, "y", where)
        if x is None or y is None:
            raise AnnotationError(where, "a corner of its polygon has no x or y", "export the annotations again")
        ring += [x, y]
    return tuple(ring)


def _xml_image(file: VocFile, base: Path, finder: ImageFinder, sieve: Sieve) -> RawImage:
    place = shown(file.path, base)
    beside = [file.path.with_suffix(s) for suffix in sorted(IMAGE_SUFFIXES) for s in (suffix, suffix.upper())]
    found = next((image for image in beside if image.is_relative_to(finder.root) and image.is_file()), None)
    name = file.file_name or file.path.stem
    path = finder.find(found.relative_to(finder.root).as_posix() if found is not None else name, file.path, place)
    size_hw = checked_size_hw(path, file.stated_hw, file.path)
    instances: list[RawInstance] = []
    for entry in file.objects:
        made = sieve.attempt(entry.place, lambda entry=entry: _xml_instance(entry, size_hw, sieve))
        if made is not None:
            instances.append(made)
    return placed_image(path, finder.root, size_hw=size_hw, instances=instances, is_defect_free=not file.objects)


def _xml_instance(entry: VocObject, size_hw: tuple[int, int], sieve: Sieve) -> RawInstance:
    if not entry.rings:
        raise AnnotationError(
            entry.where, "has a box but no polygon", "export instance masks, a box alone is not a mask"
        )
    rings: Sequence[Sequence[float]] = [list(ring) for ring in entry.rings]
    return RawInstance(
        class_name=entry.name, rle=polygons_to_rle(rings, size_hw, entry.where, notice=notice_at(sieve, entry.place))
    )


VOC = Format(name="voc", title="Pascal VOC (SegmentationClass/, SegmentationObject/)", recognise=recognise, load=load)
VOC_XML = Format(name="voc-xml", title="Pascal VOC XML with polygons", recognise=recognise_xml, load=load)
