"""Index CSV: a table with image, mask and optionally class, group and subset in each row."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.colours import ColourTable, find_colour_table, find_value_names, load_colour_table
from defectory.formats.imagefinder import ImageFinder
from defectory.formats.lookup import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    child_folder,
    group_of,
    is_file,
    is_folder,
    is_good,
    subset_of,
)
from defectory.formats.mask_survey import Survey, survey_masks
from defectory.formats.mask_values import DEFAULT_CLASS, Reading, decide
from defectory.formats.masked import EVERY, MaskedImage, MaskedSet, MaskFile, read_masked
from defectory.formats.raw import LoadOptions, RawDataset, Sieve, Subset
from defectory.formats.registry import Format
from defectory.formats.tables import Row, Table, read_header, read_table
from defectory.images.header import IMAGE_SUFFIXES

TABLE_SUFFIXES = (".csv", ".tsv")
ROLES = {
    "image": (
        "image",
        "image_path",
        "image_file",
        "img",
        "img_path",
        "file",
        "filename",
        "file_name",
        "path",
        "image_name",
        "image_id",
    ),
    "mask": (
        "mask",
        "mask_path",
        "mask_file",
        "mask_name",
        "mask_filename",
        "label_path",
        "annotation",
        "ground_truth",
        "gt",
        "segmentation",
    ),
    "class": ("class", "class_name", "label", "category", "defect", "defect_type", "type", "object"),
    "classes": ("classes", "labels", "categories"),
    "group": ("group", "part_id", "part", "group_id", "serial", "id"),
    "split": ("split", "subset", "set", "phase"),
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One row, parsed."""

    row: Row
    image: str
    mask: str
    classes: tuple[str, ...]
    says_good: bool
    """Whether the row says that the image is free of defects."""
    group: str
    subset: Subset | None


@dataclass
class _Files:
    """The files in the rows of one image."""

    path: Path
    entries: list[Entry] = field(default_factory=list)
    masks: dict[Path, tuple[str, ...]] = field(default_factory=dict)
    """Masks, each with the classes that its rows list."""
    fault: AnnotationError | None = None


def find_index(path: Path) -> Path | None:
    """Return the index CSV that a path names, or that lies in a folder.

    In a folder, it is `index.csv`, or else the only CSV that lists images and masks.
    """
    if path.suffix.lower() in TABLE_SUFFIXES and not is_folder(path):
        return path
    if not is_folder(path):
        return None
    if is_file(path / "index.csv"):
        return path / "index.csv"
    try:
        tables = [
            file for file in sorted(path.iterdir()) if file.suffix.lower() in TABLE_SUFFIXES and _names_masks(file)
        ]
    except OSError:
        return None
    return tables[0] if len(tables) == 1 else None


def recognise_index(path: Path) -> str | None:
    """Return the layout in words if a path is, or a folder contains, a table of images and masks, else None."""
    index = find_index(path)
    if index is None or {"object", "label", "image", "mask"} <= set(read_header(index)):  # VisA's table
        return None
    if not (_names_masks(index) or index.name == "index.csv"):
        return None
    return f"index CSV ({', '.join(read_header(index)[:6])})"


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load the data set of an index CSV, given as a file or in a folder.

    Raises:
        AnnotationError, ImageError: as for `load_index`.
    """
    index = options.index or find_index(path)
    if index is None:
        raise AnnotationError(path, "no index CSV in it", "give the CSV file, with the columns image and mask")
    return load_index(path if is_folder(path) else path.parent, index, options)


def load_index(root: Path, index: Path, options: LoadOptions) -> RawDataset:
    """Load the images and masks that a table lists.

    If masks have one value, a row's class applies to everything its mask shows; otherwise, rows with one class teach
    the meaning of a value. An empty mask cell means defect-free only if the row says so: with a class of `good` or
    `normal`, or an empty class cell.

    Args:
        root: folder that names are relative to; its parents and the table's folder are tried if images are not found
            there.
        index: the table.
        options: `image_root` replaces `root` for images.

    Raises:
        AnnotationError: the table or one of its rows is bad, or mask values do not match classes.
        ImageError: an image or mask is unreadable, or their sizes differ.
    """
    table = read_table(index, _roles(index), required=("image", "mask"), keep_faulty=options.skip_bad)
    return load_rows(
        root, table, [_entry(row, table) for row in table.rows], options, layout=f"index CSV ({index.name})"
    )


def load_rows(
    root: Path,
    table: Table,
    entries: Sequence[Entry],
    options: LoadOptions,
    *,
    layout: str,
    by_row: bool = False,
    remarks: Sequence[str] = (),
) -> RawDataset:
    """Load the images and masks of the parsed rows of a table.

    Args:
        root: as for `load_index`.
        table: the table that the rows come from.
        entries: the rows.
        options: as for `load_index`.
        layout: name of the layout, for the user.
        by_row: a row's class applies to everything its mask shows, whatever the values.
        remarks: remarks so far.

    Raises:
        AnnotationError, ImageError: as for `load_index`.
    """
    if not entries:
        raise AnnotationError(table.path, "the CSV file has no rows below the header", "export the table again")
    sieve = Sieve(options.skip_bad)
    for remark in remarks:
        sieve.remark(remark)
    base = _base(root, table.path, entries)
    images_base = options.image_root or base
    files = _files(images_base, base, entries, options, sieve)
    known = [mask for found in files.values() for mask in found.masks if is_file(mask)]
    survey = survey_masks(dict.fromkeys(known), skip_bad=options.skip_bad)
    colours = load_colour_table(options.class_colours) if options.class_colours else find_colour_table([root, base])
    class_of, reading = _meanings(table, files, survey, colours, options, sieve, by_row)
    _refuse_shared(files, survey)
    stated_of_all = {entry.classes for entry in entries}
    empty_may_be_good = len(stated_of_all) == 1
    images = [_image(name, found, class_of, empty_may_be_good) for name, found in files.items()]
    stated = [class_of[mask] for found in files.values() for mask in found.masks if class_of.get(mask)]
    raw_set = MaskedSet(
        root=table.path,
        images=images,
        class_names=tuple(dict.fromkeys([*stated, *reading.class_names])),
        readings={EVERY: (reading, survey)},
        looked_for=f"a name in the column {table.columns['mask']!r}",
        layout=layout,
    )
    return read_masked(raw_set, options, sieve)


def _names_masks(path: Path) -> bool:
    header = [name.replace(" ", "_") for name in read_header(path)]
    return any(name in header for name in ROLES["image"]) and any(name in header for name in (*ROLES["mask"], "label"))


def _roles(index: Path) -> dict[str, Sequence[str]]:
    """Return the roles of columns; `label` is the mask if no other column is."""
    header = [name.replace(" ", "_") for name in read_header(index)]
    if any(name in header for name in ROLES["mask"]) or "label" not in header:
        return dict(ROLES)
    return {**ROLES, "mask": ("label",), "class": tuple(name for name in ROLES["class"] if name != "label")}


def _entry(row: Row, table: Table) -> Entry:
    several = table.has("classes")
    text = row.get("classes") if several else row.get("class")
    names = [name.strip() for name in text.replace(";", "|").split("|")] if several else [text]
    names = [name for name in names if name]
    good = bool(names) and all(is_good(name) for name in names)
    says_good = good or (not names and not row.get("mask") and (several or table.has("class")))
    return Entry(
        row=row,
        image=row.get("image"),
        mask=row.get("mask"),
        classes=() if good else tuple(dict.fromkeys(name for name in names if not is_good(name))),
        says_good=says_good,
        group=row.get("group"),
        subset=subset_of(row.get("split")),
    )


def _base(root: Path, index: Path, entries: Sequence[Entry]) -> Path:
    """Return the folder that names are relative to.

    It is the first of root, the table's folder and two parents that contains some of the images.
    """
    names = [PurePosixPath(entry.image.replace("\\", "/")) for entry in entries[:50] if entry.image]
    for base in dict.fromkeys([root, index.parent, root.parent, root.parent.parent]):
        if any(not name.is_absolute() and ".." not in name.parts and is_file(base / name) for name in names):
            return base
    return root


def _files(
    images_base: Path, base: Path, entries: Sequence[Entry], options: LoadOptions, sieve: Sieve
) -> dict[str, _Files]:
    """Return the rows by image, with their files; a row's error is kept until its image is processed."""
    files: dict[str, _Files] = {}
    images = _Finder(images_base, IMAGE_FOLDERS, options, sieve, "image")
    masks = _Finder(base, MASK_FOLDERS, options, sieve, "mask")
    named_as_masks = {base / _plain(entry.mask) for entry in entries if entry.mask}
    for entry in entries:
        path, mask, fault = images_base / "unknown", None, entry.row.fault
        try:
            if fault is None:
                path = images.find(entry.image, entry.row.where, not_among=named_as_masks)
        except AnnotationError as error:
            fault = error
        name = _plain(entry.image) or entry.row.where
        if fault is None:
            name = path.relative_to(images_base).as_posix()
        try:
            if fault is None and entry.mask:
                mask = masks.find(entry.mask, entry.row.where, not_among=frozenset((path,)))
        except AnnotationError as error:
            fault = error
        found = files.setdefault(name, _Files(path=path))
        found.entries.append(entry)
        found.fault = found.fault or fault
        if mask is not None:
            found.masks[mask] = tuple(dict.fromkeys([*found.masks.get(mask, ()), *entry.classes]))
    _check_rows(files)
    return files


class _Finder:
    """Finds the files that a column names.

    A name is tried as written, in a folder of a usual name, without suffix, and by the last folders of a foreign path.
    """

    def __init__(self, base: Path, folders: Sequence[str], options: LoadOptions, sieve: Sieve, what: str) -> None:
        self._places = [base, *(folder for folder in [child_folder(base, folders)] if folder is not None)]
        self._finder = ImageFinder(base, sieve, options.follow_links)
        self._what = what

    def find(self, text: str, where: str, *, not_among: AbstractSet[Path]) -> Path:
        """Return the file; never one of `not_among`, which has another role.

        Raises:
            AnnotationError: there is none, or a link leads out of the set.
        """
        name = _plain(text)
        plain = bool(name) and not name.startswith("/") and ".." not in name.split("/") and ":" not in name
        bare = PurePosixPath(name).suffix.lower() not in IMAGE_SUFFIXES
        for place in self._places if plain and "\0" not in name else ():
            for suffix in ("", *sorted(IMAGE_SUFFIXES)) if bare else ("",):
                if is_file(place / f"{name}{suffix}") and place / f"{name}{suffix}" not in not_among:
                    inner = (place / f"{name}{suffix}").relative_to(self._finder.root).as_posix()
                    return self._finder.find(inner, where, where.rsplit(": ", 1)[-1])
        try:
            found = self._finder.find(text, where, where.rsplit(": ", 1)[-1])
        except AnnotationError as error:
            raise AnnotationError(where, error.found.replace("its image", f"its {self._what}", 1), error.todo) from None
        if found in not_among:
            raise AnnotationError(
                where, f"its {self._what} {name[:200]!r}: no such file", "correct the row or add the file"
            )
        return found


def _plain(text: str) -> str:
    """Return a name with `/` as separator and without a leading `./`."""
    return PurePosixPath(text.replace("\\", "/")).as_posix() if text else ""


def _check_rows(files: dict[str, _Files]) -> None:
    """Record a fault for images whose rows contradict each other."""
    for name, found in files.items():
        where = found.entries[-1].row.where
        if len({entry.group for entry in found.entries if entry.group}) > 1:
            found.fault = found.fault or AnnotationError(
                where, f"{name[:200]} is in another group in an earlier row", "correct the rows"
            )
        elif len({entry.subset for entry in found.entries}) > 1:
            found.fault = found.fault or AnnotationError(
                where, f"{name[:200]} is in another subset of the split in an earlier row", "correct the rows"
            )
        elif len({entry.says_good for entry in found.entries}) > 1:
            found.fault = found.fault or AnnotationError(
                where, f"{name[:200]} is good in one row and not in another", "correct the rows"
            )


def _meanings(
    table: Table,
    files: dict[str, _Files],
    survey: Survey,
    colours: ColourTable | None,
    options: LoadOptions,
    sieve: Sieve,
    by_row: bool,
) -> tuple[dict[Path, str], Reading]:
    """Return the class of each mask that its row determines, and how to read the values of the others."""
    listed = {mask: classes for found in files.values() for mask, classes in found.masks.items() if classes}
    where = table.path.name
    names = find_value_names([table.path.parent]) if not listed else None
    single = by_row or options.mask_threshold is not None or (colours is None and len(survey.values()) <= 1)
    if single and listed:
        several = next((mask for mask, classes in listed.items() if len(classes) > 1), None)
        if several is not None:
            raise AnnotationError(
                f"{table.path}: {several.name}",
                f"the row lists {len(listed[several])} classes, but its mask has one value",
                "give one mask per class, each in a row of its own, or one value per class",
            )
        distinct = {classes[0] for classes in listed.values()}
        default = next(iter(distinct)) if len(distinct) == 1 else DEFAULT_CLASS
        reading = decide(
            survey,
            names=None,
            default=default if by_row else None,
            colours=None,
            options=options,
            sieve=sieve,
            where=where,
        )
        return {mask: classes[0] for mask, classes in listed.items()}, replace(
            reading, default=default, names=dict.fromkeys(reading.names, default)
        )
    learned = _learned(table, listed, survey) if colours is None else {}
    if learned and set(learned) >= set(survey.values()) - {255}:
        names = {value: learned[value] for value in sorted(learned)}
    reading = decide(survey, names=names, default=None, colours=colours, options=options, sieve=sieve, where=where)
    return {}, replace(reading, names={value: learned.get(value, name) for value, name in reading.names.items()})


def _learned(table: Table, listed: dict[Path, tuple[str, ...]], survey: Survey) -> dict[int, str]:
    """Learn the class of each mask value from rows with one class whose masks have one value."""
    learned: dict[int, str] = {}
    for mask, classes in listed.items():
        found = survey.files.get(mask)
        values = (
            [value for value in found.pixels if value != 255 or len(found.pixels) == 1] if found is not None else []
        )
        if len(classes) == 1 and len(values) == 1:
            known = learned.setdefault(values[0], classes[0])
            if known != classes[0]:
                raise AnnotationError(
                    f"{table.path}: {mask.name}",
                    f"value {values[0]} is {classes[0]!r} here and {known!r} elsewhere",
                    "correct the table",
                )
    return learned


def _refuse_shared(files: dict[str, _Files], survey: Survey) -> None:
    """Record a fault if a mask that shows something is listed for two images."""
    owners: dict[Path, str] = {}
    for name, found in files.items():
        for mask in found.masks:
            first = owners.setdefault(mask, name)
            if first != name and mask in survey.files and survey.files[mask].pixels:
                found.fault = found.fault or AnnotationError(
                    found.entries[0].row.where, f"lists the mask of {first[:200]}", "list each image's own mask"
                )


def _image(name: str, found: _Files, class_of: dict[Path, str], empty_may_be_good: bool) -> MaskedImage:
    """Return an image of the table.

    A class in every row comes from the table, so it does not make an empty mask suspicious.
    """
    entry = found.entries[0]
    error = found.fault

    def fault() -> None:
        if error is not None:
            raise error

    return MaskedImage(
        path=found.path,
        name=name,
        group=next((row.group for row in found.entries if row.group), "") or group_of(PurePosixPath(name)),
        masks=tuple(MaskFile(path=mask, class_name=class_of.get(mask, "")) for mask in found.masks),
        subset=entry.subset,
        says_good=all(row.says_good for row in found.entries),
        says_defect=any(row.classes for row in found.entries) and not empty_may_be_good,
        where=entry.row.where,
        fault=fault if error is not None else None,
    )


INDEX_CSV = Format(name="index-csv", title="a CSV that lists images and masks", recognise=recognise_index, load=load)
