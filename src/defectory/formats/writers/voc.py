"""Pascal VOC out: class and object masks with VOC's colours, boxes in XML, lists of images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from defectory.errors import ConfigError
from defectory.files import write_bytes, write_text
from defectory.formats.writers.base import (
    ExportImage,
    ExportSet,
    Writer,
    Written,
    listed_names,
    overlap_remark,
    paint,
    save_images,
    without_crowds,
    without_empty,
)
from defectory.images.save import encode_png
from defectory.rle import box_of

MAX_VALUE = 254
"""255 is VOC's border, which belongs to nothing."""
Rgb = tuple[int, int, int]


def write_voc(export: ExportSet, folder: Path) -> Written:
    """Write images, masks of classes and of objects, XML files with boxes, and the list of training images.

    Raises:
        ConfigError: more classes than an 8-bit mask has values.
    """
    if len(export.categories) > MAX_VALUE:
        raise ConfigError(
            "option --format", f"voc holds at most {MAX_VALUE} classes, these are {len(export.categories)}", "give coco"
        )
    export, remarks = without_crowds(without_empty(export))
    paths = save_images(export, folder, "JPEGImages")
    for name in ("SegmentationClass", "SegmentationObject", "Annotations", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    covered_px = num_covered = 0
    for image in export.images:
        objects, twice_px = paint(image.size_hw, list(enumerate(image.instances, start=1)))
        classes = np.array([0, *(instance.category_id for instance in image.instances)], np.uint16)[objects]
        write_bytes(folder / "SegmentationClass" / f"{image.stem}.png", palette_png(classes))
        write_bytes(folder / "SegmentationObject" / f"{image.stem}.png", palette_png(_dense(objects)))
        write_text(folder / "Annotations" / f"{image.stem}.xml", _xml(export, image))
        covered_px, num_covered = covered_px + twice_px, num_covered + (twice_px > 0)
    write_text(
        folder / "ImageSets" / "Segmentation" / "train.txt", "".join(f"{image.stem}\n" for image in export.images)
    )
    names, of_names = listed_names(export)
    colours = [
        "background:0,0,0::",
        *(f"{name}:{','.join(map(str, voc_colour(value)))}::" for value, name in names.items()),
    ]
    write_text(folder / "labelmap.txt", "".join(f"{line}\n" for line in ["# label:color_rgb:parts:actions", *colours]))
    return Written(
        paths=paths,
        num_instances=export.num_instances,
        remarks=(*remarks, *of_names, *overlap_remark(covered_px, num_covered)),
    )


def voc_colour(value: int) -> Rgb:
    """Return VOC's colour of a mask value: its bits go to red, green and blue by turns, the lowest to the highest
    bit.
    """
    colour = [0, 0, 0]
    for place in range(8):
        for channel in range(3):
            colour[channel] |= (value >> (3 * place + channel) & 1) << (7 - place)
    return colour[0], colour[1], colour[2]


def palette_png(values: NDArray[np.uint16]) -> bytes:
    """Return a PNG of mask values [H,W] with VOC's palette; 16-bit grey where they do not fit 8 bits."""
    if int(values.max(initial=0)) > MAX_VALUE:
        return encode_png(values)
    image = Image.fromarray(values.astype(np.uint8), "L").copy()
    image.putpalette([channel for value in range(256) for channel in voc_colour(value)])
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _dense(objects: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """Number the objects that are to be seen from 1 without gaps: covered ones leave none."""
    found = np.unique(objects[objects > 0])
    return np.where(objects > 0, np.searchsorted(found, objects) + 1, 0).astype(np.uint16)


def _xml(export: ExportSet, image: ExportImage) -> str:
    root = Element("annotation")
    add(root, ("folder", "JPEGImages"), ("filename", image.name), ("segmented", 1 if image.instances else 0))
    size = SubElement(root, "size")
    add(size, ("width", image.size_hw[1]), ("height", image.size_hw[0]), ("depth", 3))
    add(
        root,
        *((name, str(value).lower() if isinstance(value, bool) else value) for name, value in image.attributes.items()),
    )
    for instance in image.instances:
        x0, y0, x1, y1 = box_of(instance.rle)
        element = SubElement(root, "object")
        add(element, ("name", export.name_of(instance.category_id)), ("pose", "Unspecified"))
        add(element, ("truncated", 0), ("difficult", 0))
        # VOC counts pixels from 1, and both ends belong to the box
        add(SubElement(element, "bndbox"), ("xmin", x0 + 1), ("ymin", y0 + 1), ("xmax", x1), ("ymax", y1))
    indent(root)
    return tostring(root, encoding="unicode") + "\n"


def add(parent: Element, *texts: tuple[str, object]) -> Sequence[Element]:
    """Add elements with texts."""
    added: list[Element] = []
    for name, value in texts:
        element = SubElement(parent, name)
        element.text = str(value)
        added.append(element)
    return added


VOC = Writer(
    name="voc",
    title="Pascal VOC",
    content=(
        "JPEGImages/: the images, whatever their suffix",
        "SegmentationClass/, SegmentationObject/: PNG masks with VOC's palette",
        "labelmap.txt: the colours of the classes",
        "Annotations/: boxes; ImageSets/Segmentation/train.txt: the list of images",
    ),
    reader=(
        "python -c \"import supervision as sv; data = sv.DetectionDataset.from_pascal_voc('JPEGImages', "
        "'Annotations')\""
    ),
    holds_attributes=False,
    write=write_voc,
)
