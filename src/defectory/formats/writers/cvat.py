"""CVAT for images 1.1 out: one XML file with masks in CVAT's run lengths."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.files import write_text
from defectory.formats.writers.base import (
    Attributes,
    ExportSet,
    Writer,
    Written,
    save_images,
    without_crowds,
    without_empty,
)
from defectory.formats.writers.voc import add, voc_colour
from defectory.rle import decode_crop


def write_cvat(export: ExportSet, folder: Path) -> Written:
    """Write images and annotations; an image without shapes is free of defects."""
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "images")
    root = Element("annotations")
    add(root, ("version", "1.1"))
    _add_meta(root, export)
    for number, image in enumerate(export.images):
        height, width = image.size_hw
        place = {"id": str(number), "name": image.name, "width": str(width), "height": str(height)}
        element = SubElement(root, "image", place)
        for instance in image.instances:
            _add_mask(element, instance, export.name_of(instance.category_id), image.attributes)
    indent(root)
    write_text(
        folder / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode") + "\n",
    )
    return Written(paths=paths, num_instances=export.num_instances, remarks=remarks)


def row_runs(mask: NDArray[np.bool_]) -> list[int]:
    """Return run lengths of a mask [H,W], row by row, False first."""
    flat = mask.reshape(-1)
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], changes, [len(flat)]])).tolist()
    return [0, *runs] if len(flat) and flat[0] else runs


def _add_meta(root: Element, export: ExportSet) -> None:
    task = SubElement(SubElement(root, "meta"), "task")
    add(task, ("name", "defectory export"), ("size", len(export.images)), ("mode", "annotation"))
    labels = SubElement(task, "labels")
    names = list(dict.fromkeys(name for image in export.images for name in image.attributes))
    for category in export.categories:
        label = SubElement(labels, "label")
        add(
            label,
            ("name", category.name),
            ("color", "#{:02x}{:02x}{:02x}".format(*voc_colour(category.id))),
            ("type", "mask"),
        )
        attributes = SubElement(label, "attributes")
        for name in names:
            is_flag = name == "synthetic"
            attribute = SubElement(attributes, "attribute")
            add(attribute, ("name", name), ("mutable", "False"), ("input_type", "checkbox" if is_flag else "text"))
            add(attribute, ("default_value", "false" if is_flag else ""), ("values", "false\ntrue" if is_flag else ""))


def _add_mask(element: Element, instance: Instance, label: str, attributes: Attributes) -> None:
    crop, (x0, y0) = decode_crop(instance.rle)
    place = {"left": str(x0), "top": str(y0), "width": str(crop.shape[1]), "height": str(crop.shape[0])}
    runs = ", ".join(map(str, row_runs(crop)))
    mask = SubElement(
        element, "mask", {"label": label, "source": "file", "occluded": "0", "rle": runs, **place, "z_order": "0"}
    )
    for name, value in attributes.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        SubElement(mask, "attribute", {"name": name}).text = text


CVAT = Writer(
    name="cvat",
    title="CVAT for images 1.1",
    content=("images/", "annotations.xml: masks, with `synthetic` and scores as attributes"),
    reader="create a task from images/, then: Upload annotations > CVAT 1.1, annotations.xml",
    holds_attributes=True,
    write=write_cvat,
)
