"""What every writer takes and gives: images that save themselves, instances as run lengths, attributes and scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.filenames import file_names_of
from defectory.formats.colours import BACKGROUND_NAMES, IGNORE_NAMES
from defectory.rle import area_px, decode, edges_of, runs_of_text, union
from defectory.terminal import printable

Attributes = dict[str, bool | float | str]


@dataclass(frozen=True, kw_only=True)
class ExportImage:
    """One image of an export.

    Attributes:
        name: file name, plain ASCII, with suffix; no other image has it, nor its stem, whatever the capitals.
        size_hw: height and width.
        instances: none where it is free of defects.
        is_synthetic: drawn, not taken by a camera.
        save: writes the file.
        source: name of the image of the data set that it shows or is drawn on.
        group: of that image; images of one group, one part for example, belong on one side of a split.
        fidelity: counterfactual fidelity, 0 to 1; None for real images.
        checks: figures of curation by name; empty for real images.
    """

    name: str
    size_hw: tuple[int, int]
    instances: tuple[Instance, ...]
    is_synthetic: bool
    save: Callable[[Path], None]
    source: str = ""
    group: str = ""
    fidelity: float | None = None
    checks: Mapping[str, float] = field(default_factory=lambda: dict[str, float]())

    @property
    def stem(self) -> str:
        """Return the name without its suffix."""
        return Path(self.name).stem

    @property
    def attributes(self) -> Attributes:
        """Return what is known of the image beside its labels, flat; what is unknown is not there."""
        known: Attributes = {"synthetic": self.is_synthetic}
        if self.fidelity is not None:
            known["fidelity"] = round(self.fidelity, 4)
        return known | {f"check_{name}": round(value, 4) for name, value in self.checks.items()}

    @property
    def origin(self) -> dict[str, str]:
        """Return source and group, where they are known."""
        return {name: text for name, text in (("source", self.source), ("group", self.group)) if text}


@dataclass(frozen=True, kw_only=True)
class ExportSet:
    """Classes, their ids dense from 1, and images; every one is for training."""

    categories: tuple[Category, ...]
    images: tuple[ExportImage, ...]

    @property
    def num_instances(self) -> int:
        """Return the number of instances, crowds included."""
        return sum(len(image.instances) for image in self.images)

    def name_of(self, category_id: int) -> str:
        """Return the name of a class."""
        return self.categories[category_id - 1].name


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a writer wrote.

    Attributes:
        paths: of the image files by image name, relative to the folder, with `/`.
        num_instances: that the labels hold.
        remarks: one line each on what the format could not hold.
    """

    paths: Mapping[str, str]
    num_instances: int
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Writer:
    """One format out.

    Attributes:
        name: for `--format`.
        title: for people.
        content: what lies where, one line each.
        reader: one line that opens the folder with the common tool, run in it.
        holds_attributes: the labels say what is synthetic; else a table `synthetic.csv` says it.
        write: writes images and labels into a folder that is there and empty.
    """

    name: str
    title: str
    content: tuple[str, ...]
    reader: str
    holds_attributes: bool
    write: Callable[[ExportSet, Path], Written]


def with_plain_names(export: ExportSet) -> tuple[ExportSet, tuple[str, ...]]:
    """Return the set with class names that every format can hold (one line, distinct, not empty), and remarks."""
    taken: dict[str, None] = {}
    remarks: list[str] = []
    for category in export.categories:
        # a list of classes is a text file of one name per line, in which `#` begins a remark
        plain = (
            " ".join("".join(c if c.isprintable() else " " for c in category.name).split()).lstrip("#")
            or f"class {category.id}"
        )
        name, number = plain, 2
        while name in taken:
            name, number = f"{plain} {number}", number + 1
        taken[name] = None
        if name != category.name:
            remarks.append(f"class '{printable(category.name)}' is written as '{name}'")
    categories = tuple(Category(id=c.id, name=name) for c, name in zip(export.categories, taken, strict=True))
    return replace(export, categories=categories), tuple(remarks)


def without_crowds(export: ExportSet) -> tuple[ExportSet, tuple[str, ...]]:
    """Return the set without crowd regions, for formats that have none, and remarks.

    An image that holds crowd regions alone is left out: without them it would pass for free of defects.
    """
    images: list[ExportImage] = []
    num_crowds = num_images = 0
    for image in export.images:
        kept = tuple(instance for instance in image.instances if not instance.is_crowd)
        num_crowds += len(image.instances) - len(kept)
        if image.instances and not kept:
            num_images += 1
        else:
            images.append(replace(image, instances=kept))
    remarks: list[str] = []
    if num_crowds:
        remarks.append(f"{num_crowds} crowd regions are left out, since the format has none")
    if num_images:
        remarks.append(f"{num_images} images that hold crowd regions alone are left out")
    return replace(export, images=tuple(images)), tuple(remarks)


def save_images(export: ExportSet, folder: Path, place: str) -> dict[str, str]:
    """Write every image into one folder, given relative to the export; return the paths by name."""
    (folder / place).mkdir(parents=True, exist_ok=True)
    paths: dict[str, str] = {}
    for image in export.images:
        paths[image.name] = f"{place}/{image.name}"
        image.save(folder / place / image.name)
    return paths


def folder_names(export: ExportSet) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return a folder name for each class, and remarks where it is not the class's own name."""
    names = file_names_of([category.name for category in export.categories])
    remarks = [f"class '{text}' lies in folders called '{name}'" for text, name in names.items() if name != text]
    return {category.id: names[category.name] for category in export.categories}, tuple(remarks)


def listed_names(export: ExportSet) -> tuple[dict[int, str], tuple[str, ...]]:
    """Return the name of each class in a list of mask values, and remarks: in such lists `background` and the like mean
    no class.
    """
    names: dict[int, str] = {}
    for category in export.categories:
        has_meaning = category.name.lower() in BACKGROUND_NAMES | IGNORE_NAMES
        names[category.id] = f"class {category.name}" if has_meaning else category.name
    told = (f"class '{c.name}' is called '{names[c.id]}'" for c in export.categories if names[c.id] != c.name)
    return names, tuple(told)


def paint(size_hw: tuple[int, int], layers: Iterable[tuple[int, Instance]]) -> tuple[NDArray[np.uint16], int]:
    """Paint instances with their values into one map uint16 [H,W], the smallest on top.

    Returns:
        The map, and how many pixels are covered more than once.
    """
    canvas = np.zeros(size_hw, np.uint16)
    total = 0
    for value, instance in sorted(layers, key=lambda layer: -area_px(layer[1].rle)):
        mask = decode(instance.rle)
        total += int(mask.sum())
        canvas[mask] = value
    return canvas, total - int((canvas > 0).sum())


def joined(instances: Sequence[Instance]) -> NDArray[np.bool_]:
    """Return what any of several instances covers, bool [H,W]."""
    return decode(union([instance.rle for instance in instances]))


def overlap_remark(num_px: int, num_images: int) -> tuple[str, ...]:
    """Return the remark on instances that overlap in a format that has one value per pixel."""
    if not num_px:
        return ()
    return (
        f"instances overlap in {num_images} images ({num_px} pixels): a pixel has one value, and the smaller "
        "instance has it",
    )


def synthetic_table(export: ExportSet, paths: Mapping[str, str]) -> str:
    """Return the text of `synthetic.csv`: file, synthetic, source and scores of each image that was written."""
    images = [image for image in export.images if image.name in paths]
    columns = list(dict.fromkeys(name for image in images for name in image.attributes))
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["file_name", "source", "group", *columns])
    for image in images:
        known = image.attributes
        origin = (printable(image.source), printable(image.group))
        table.writerow([paths[image.name], *origin, *(_cell(known.get(name, "")) for name in columns)])
    return buffer.getvalue()


def _cell(value: bool | float | str) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def column_runs(instance: Instance) -> list[int]:
    """Return COCO's uncompressed run lengths, column by column, False first."""
    height, width = instance.rle.size_hw
    return runs_of_text(instance.rle.counts, height * width).tolist()


def is_empty(instance: Instance) -> bool:
    """Check whether an instance covers no pixel."""
    return not len(edges_of(instance.rle))


def without_empty(export: ExportSet) -> ExportSet:
    """Return the set without instances that cover no pixel."""
    images = (replace(i, instances=tuple(n for n in i.instances if not is_empty(n))) for i in export.images)
    return replace(export, images=tuple(images))
