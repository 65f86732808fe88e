"""Every format out by its name, and the writing of an export's folder."""

from __future__ import annotations

from pathlib import Path

from defectory.files import write_text
from defectory.formats.writers.base import ExportSet, Writer, Written, synthetic_table, with_plain_names
from defectory.registry import Registry

WRITERS: Registry[Writer] = Registry(
    "export_formats",
    setting="option --format",
    builtin={
        "coco": "defectory.formats.writers.coco:COCO",
        "coco-polygons": "defectory.formats.writers.coco:COCO_POLYGONS",
        "yolo": "defectory.formats.writers.yolo:YOLO",
        "voc": "defectory.formats.writers.voc:VOC",
        "masks": "defectory.formats.writers.masks:MASKS",
        "mvtec": "defectory.formats.writers.mvtec:MVTEC",
        "labelme": "defectory.formats.writers.labelme:LABELME",
        "cvat": "defectory.formats.writers.cvat:CVAT",
        "label-studio": "defectory.formats.writers.label_studio:LABEL_STUDIO",
        "fiftyone": "defectory.formats.writers.fiftyone:FIFTYONE",
        "imagefolder": "defectory.formats.writers.imagefolder:IMAGEFOLDER",
    },
)
TABLE_NAME, README_NAME = "synthetic.csv", "README.txt"


def writer_named(name: str) -> Writer:
    """Return the writer of a format.

    Raises:
        ConfigError: there is none.
    """
    return WRITERS.get(name)


def write_export(writer: Writer, export: ExportSet, folder: Path) -> Written:
    """Write images, labels, a table of what is synthetic where the labels do not say it, and a README.

    Args:
        writer: of the format.
        export: what to write.
        folder: there, and empty.

    Raises:
        ConfigError: the format cannot hold the set.
    """
    export, remarks = with_plain_names(export)
    written = writer.write(export, folder)
    written = Written(paths=written.paths, num_instances=written.num_instances, remarks=(*remarks, *written.remarks))
    if not writer.holds_attributes:
        write_text(folder / TABLE_NAME, synthetic_table(export, written.paths))
    write_text(folder / README_NAME, _readme(writer, export, written))
    return written


def _readme(writer: Writer, export: ExportSet, written: Written) -> str:
    images = [image for image in export.images if image.name in written.paths]
    num_synthetic = sum(image.is_synthetic for image in images)
    num_free = sum(not image.instances for image in images)
    lines = [
        f"{writer.title}, written by defectory: {len(images)} images for training.",
        f"{num_synthetic} are synthetic, {len(images) - num_synthetic} real; {num_free} are free of defects.",
        f"Classes: {', '.join(category.name for category in export.categories)}. {written.num_instances} instances.",
        "",
        *writer.content,
        *(() if writer.holds_attributes else (f"{TABLE_NAME}: which images are synthetic, and their scores",)),
        "provenance.jsonl: where each image comes from",
        "",
        "To open it, in this folder:",
        writer.reader,
        *(("", *(f"Remark: {remark}." for remark in written.remarks)) if written.remarks else ()),
    ]
    return "".join(f"{line}\n" for line in lines)
