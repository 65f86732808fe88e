"""Imports, loads and checks data sets."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from defectory.artifacts.dataset import MANIFEST, Dataset
from defectory.dataset.config import DataConfig
from defectory.errors import ConfigError, InputError
from defectory.folders.claims import require_new_or_ours, require_replaceable
from defectory.runs.layout import CONTACT_SHEET, DATA
from defectory.runs.stored import DataFolder

if TYPE_CHECKING:
    from defectory.dataset.check import CheckReport
    from defectory.dataset.importer import ImportResult
    from defectory.images.valuerange import ValueRange

PATHS = ("image_root", "defect_free", "index", "class_colours")
SUBSETS = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """Counts of a data set.

    Attributes:
        num_images: all images.
        num_defect_free: images without a defect.
        num_instances: annotated defects.
        class_names: in the order of their numbers.
        images_per_subset: number of images of train, val and test, where the source has a split of its own.
    """

    num_images: int
    num_defect_free: int
    num_instances: int
    class_names: tuple[str, ...]
    images_per_subset: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class DataCheck:
    """What `check_data` found.

    Attributes:
        folder: the data set folder, or the source, if it was not imported.
        is_imported: whether it is a data set folder; a source is only counted.
        layout: of the source, in words; empty if unknown.
        images_per_subset: number of images of train, val and test, where an imported source had a split of its own.
        value_range: grey levels that become 0 to 255; None if images have 8 bit, or are not imported.
        report: counts, remarks of the import, and problems.
        contact_sheet: the picture that was written; None if none was.
        no_sheet: why no picture was written; empty if one was.
    """

    folder: Path
    is_imported: bool
    layout: str
    images_per_subset: Mapping[str, int]
    value_range: ValueRange | None
    report: CheckReport
    contact_sheet: Path | None
    no_sheet: str


def import_data(source: Path | str, *, out: Path | str, **options: Any) -> ImportResult:
    """Copy annotated images into one data set folder; image files stay byte for byte what they were.

    Args:
        source: annotation file or folder of any known layout.
        out: data set folder to write: new, empty, or an earlier import, which is replaced as a whole.
        options: further settings of the `data` section, for example `defect_free="good/"` or `skip_bad=True`. Paths are
            relative to the current folder.

    Returns:
        The data set as `.dataset`, and the entries that were left out as `.rejected`.

    Raises:
        ConfigError: an option is unknown or wrong.
        InputError: the source cannot be read, or has an error and `skip_bad` is off.
        OutputError: `out` holds files that no import wrote, or is or contains a source.
    """
    from defectory.dataset.importer import import_dataset

    config, out = _config_of(source, options), Path(out)
    named = (config.path, *(getattr(config, key) for key in PATHS))
    require_replaceable(out, kind="dataset", sources=[Path(path) for path in named if path is not None])
    return import_dataset(config, out)


def _config_of(source: Path | str, options: Mapping[str, Any]) -> DataConfig:
    from defectory.formats.registry import format_named

    if (name := options.get("format", "auto")) != "auto":
        format_named(name)
    for key in PATHS:
        # a format that does not use the path would not check it
        if (path := options.get(key)) is not None and not os.path.lexists(path):
            raise ConfigError(f"data.{key}", f"{path}: no such file or folder", "check the path")
    values = {"path": source, **options}
    try:
        return DataConfig.model_validate(
            {key: str(value) if isinstance(value, Path) else value for key, value in values.items()}
        )
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise ConfigError(f"data.{first['loc'][0]}", found, "see `defectory import --help`") from None


def load_dataset(source: Path | str, *, out: Path | str | None = None, **options: Any) -> DataFolder:
    """Load a data set together with access to its images.

    Args:
        source: folder made by `defectory import` or, with `out`, an annotation file or folder of any known layout.
        out: folder to import into: new, empty, or an earlier import.
        options: further settings of the `data` section, for example `defect_free="good/"`.

    Returns:
        The data set as `.dataset`; `.image(record)` loads pixels.

    Raises:
        ConfigError: `source` has another layout and `out` is not given, or an option is unknown or wrong.
        InputError: it cannot be read.
    """
    source = Path(source)
    if out is None:
        if not (source / MANIFEST).is_file():
            raise ConfigError(source, "is not a Defectory data set folder", "give `out`, a folder to import it into")
        return DataFolder(dataset=Dataset.load(source / MANIFEST), folder=source)
    return DataFolder(dataset=import_data(source, out=out, **options).dataset, folder=Path(out))


def summary_of(dataset: Dataset) -> DataSummary:
    """Count the images, instances and classes of a data set."""
    subsets = Counter(record.subset for record in dataset.images if record.subset is not None)
    return DataSummary(
        num_images=len(dataset.images),
        num_defect_free=sum(record.is_defect_free for record in dataset.images),
        num_instances=sum(len(record.instances) for record in dataset.images),
        class_names=tuple(category.name for category in dataset.categories),
        images_per_subset={subset: subsets[subset] for subset in SUBSETS if subsets[subset]},
    )


def check_data(folder: Path | str, *, sheet: Path | str | None = None) -> DataCheck:
    """Count what a data set holds, list every problem, and write a contact sheet.

    A source that was not imported is only counted, and nothing is written.

    Args:
        folder: data set folder, run folder, or any data set that `import_data` reads.
        sheet: contact sheet to write (PNG). None: `contact_sheet.png` in the data set folder, if that can be written.

    Raises:
        ConfigError: `sheet` is given for a source that was not imported.
        InputError: the data set cannot be read.
        OutputError: `sheet` exists and was not made by Defectory, or cannot be written.
    """
    from defectory.dataset.check import check_dataset, write_contact_sheet

    folder, sheet = Path(folder), None if sheet is None else Path(sheet)
    if sheet is not None:
        require_new_or_ours(sheet)
    home = next((place for place in (folder, folder / DATA) if (place / MANIFEST).is_file()), None)
    if home is None:
        return _check_source(folder, sheet=sheet)
    dataset = Dataset.load(home / MANIFEST)
    report = check_dataset(home, dataset)
    path, reason = sheet or home / CONTACT_SHEET, ""
    try:
        require_new_or_ours(path)
        write_contact_sheet(home, dataset, path)
    except InputError as error:
        if sheet is not None:
            raise
        # a data set on a read-only medium is still checked
        reason = f"{error.where}: {error.found}"
    return DataCheck(
        folder=home,
        is_imported=True,
        layout=dataset.layout,
        images_per_subset=summary_of(dataset).images_per_subset,
        value_range=dataset.value_range,
        report=report,
        contact_sheet=None if reason else path,
        no_sheet=reason,
    )


def _check_source(path: Path, *, sheet: Path | None) -> DataCheck:
    """Count the content of a data set that was never imported, without copying or writing anything."""
    from defectory.dataset.check import count_source
    from defectory.formats.raw import LoadOptions
    from defectory.formats.registry import load

    if sheet is not None:
        raise ConfigError(
            "option --sheet",
            f"{path} was not imported yet",
            f"run `defectory import {path} --out FOLDER` and check that folder",
        )
    raw = load(path, LoadOptions(skip_bad=True))
    return DataCheck(
        folder=path,
        is_imported=False,
        layout=raw.layout,
        images_per_subset={},
        value_range=None,
        report=count_source(raw),
        contact_sheet=None,
        no_sheet="not imported yet",
    )
