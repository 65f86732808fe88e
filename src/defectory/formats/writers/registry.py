"""Every format out by its name, and the writing of an export's folder."""

from __future__ import annotations

from pathlib import Path

from defectory.errors import ConfigError
from defectory.files import write_text
from defectory.formats.writers.base import ExportSet, Writer, Written, synthetic_table, with_plain_names
from defectory.formats.writers.coco import COCO, COCO_POLYGONS
from defectory.formats.writers.cvat import CVAT
from defectory.formats.writers.fiftyone import FIFTYONE
from defectory.formats.writers.imagefolder import IMAGEFOLDER
from defectory.formats.writers.label_studio import LABEL_STUDIO
from defectory.formats.writers.labelme import LABELME
from defectory.formats.writers.masks import MASKS
from defectory.formats.writers.mvtec import MVTEC
from defectory.formats.writers.voc import VOC
from defectory.formats.writers.yolo import YOLO

WRITERS = {
    writer.name: writer
    for writer in (COCO, COCO_POLYGONS, YOLO, VOC, MASKS, MVTEC, LABELME, CVAT, LABEL_STUDIO, FIFTYONE, IMAGEFOLDER)
}
TABLE_NAME, README_NAME = "synthetic.csv", "README.txt"


def writer_named(name: str) -> Writer:
    """Return the writer of a format.

    Raises:
        ConfigError: there is none.
    """
    if name not in WRITERS:
        raise ConfigError("option --format", f"no format out is called {name!r}", f"give one of {', '.join(WRITERS)}")
    return WRITERS[name]


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
