"""The registry of data set formats: a name, how its layout is recognised, and its loader."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from defectory.errors import ConfigError
from defectory.formats.raw import LoadOptions, RawDataset
from defectory.registry import Registry
from defectory.textfile import read_json_file


@dataclass(frozen=True, kw_only=True)
class Format:
    """One format.

    Attributes:
        name: name for `--format`, lower case with hyphens.
        title: readable name.
        recognise: returns the layout in words if a file or folder has this format, else None; it reads only names and a
            few kilobytes, and raises nothing for other formats.
        load: loads it; raises only AnnotationError or ImageError.
    """

    name: str
    title: str
    recognise: Callable[[Path], str | None]
    load: Callable[[Path, LoadOptions], RawDataset]


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The recognised format of a file or folder.

    Attributes:
        format: the format whose loader reads it.
        layout: the layout in words.
        others: layouts of other formats that it could also be.
    """

    format: Format
    layout: str
    others: tuple[str, ...] = ()


FORMATS: Registry[Format] = Registry(
    "formats",
    setting="data.format",
    builtin={
        "defectory": "defectory.formats.coco:DEFECTORY",
        "cvat": "defectory.formats.cvat:CVAT",
        "label-studio": "defectory.formats.label_studio:LABEL_STUDIO",
        "coco": "defectory.formats.coco:COCO",
        "voc": "defectory.formats.voc:VOC",
        "labelme": "defectory.formats.labelme:LABELME",
        "mvtec": "defectory.formats.mvtec:MVTEC",
        "visa": "defectory.formats.visa:VISA",
        "severstal": "defectory.formats.severstal:SEVERSTAL",
        "kolektor": "defectory.formats.kolektor:KOLEKTOR",
        "yolo": "defectory.formats.yolo:YOLO",
        "index-csv": "defectory.formats.index_csv:INDEX_CSV",
        "masks": "defectory.formats.mask_folders:MASK_FOLDER",
        "voc-xml": "defectory.formats.voc:VOC_XML",
    },
)
"""Every format, in the order in which layouts are tried; those of other packages come after ours."""


def formats() -> tuple[Format, ...]:
    """Return every format in the order in which layouts are tried.

    Raises:
        ConfigError: that of an installed package cannot be imported.
    """
    return tuple(FORMATS.get(name) for name in FORMATS.names())


def format_named(name: str) -> Format:
    """Return the format with a name.

    Raises:
        ConfigError: there is none; the message lists the existing ones.
    """
    return FORMATS.get(name)


def recognise(path: Path) -> Recognised:
    """Recognise the format and layout of a file or folder; the first matching format in the registry wins.

    Raises:
        ConfigError: the path does not exist, cannot be opened, or has no known layout; the message lists what was
            tried.
        AnnotationError: a JSON file is not valid JSON.
    """
    _require_readable(path)
    found = [(known, layout) for known in formats() if (layout := known.recognise(path)) is not None]
    if not found:
        if path.suffix.lower() == ".json":
            read_json_file(path)  # reports where it is not JSON
        titles = "; ".join(known.title for known in formats())
        raise ConfigError(
            path, f"no known data set layout (looked for: {titles})", "check the path, or name the format (--format)"
        )
    known, layout = found[0]
    others = tuple(dict.fromkeys(other for _, other in found[1:] if other != layout))
    return Recognised(format=known, layout=layout, others=others)


def load(path: Path, options: LoadOptions, *, name: str = "auto") -> RawDataset:
    """Load a data set in the named format, or in the recognised one, which the result's `layout` reports.

    Raises:
        ConfigError: as for `recognise` and `format_named`.
        AnnotationError: the file is bad, or any entry is and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    if name == "auto":
        told = recognise(path)
    else:
        forced = format_named(name)
        _require_readable(path)
        told = Recognised(format=forced, layout=forced.recognise(path) or forced.title)
    raw = told.format.load(path, options)
    also = (
        (f"read as {raw.layout or told.layout}; it could also be {' or '.join(told.others)} (--format)",)
        if told.others
        else ()
    )
    return replace(raw, layout=raw.layout or told.layout, remarks=(*also, *raw.remarks))


def _require_readable(path: Path) -> None:
    try:
        about = path.stat()
        if path.is_dir():
            with os.scandir(path):
                pass
        elif about.st_size == 0:
            raise ConfigError(path, "the file is empty (0 bytes)", "export the annotations again")
    except FileNotFoundError:
        raise ConfigError(path, "no such file or folder", "check data.path") from None
    except (OSError, ValueError) as error:
        raise ConfigError(
            path,
            f"cannot be opened ({getattr(error, 'strerror', None) or error})",
            "check data.path and its permissions",
        ) from None
