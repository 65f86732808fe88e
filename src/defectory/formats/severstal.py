"""Severstal and similar sets: column-wise run lengths, counted from 1, in a CSV beside a folder of images."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from defectory.errors import AnnotationError
from defectory.formats.components import component_rles
from defectory.formats.lookup import child_folder, find_images_by_name, is_file, is_folder, settle_unlabelled
from defectory.formats.mask_values import DEFAULT_CLASS
from defectory.formats.placed import placed_image
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Sieve, checked_size_hw
from defectory.formats.registry import Format
from defectory.formats.tables import Row, Table, read_header, read_table
from defectory.rle import Rle, decode, rle_of_edges

ROLES = {
    "image": ("imageid", "image_id", "image", "img_id", "filename", "file_name", "id"),
    "both": ("imageid_classid", "image_id_class_id", "image_label"),
    "class": ("classid", "class_id", "class", "label"),
    "runs": ("encodedpixels", "encoded_pixels", "rle", "rle_mask", "rle_mask_encoding"),
}
IMAGE_FOLDERS = ("train_images", "images", "train", "train_v2", "imgs", "img")
NO_RUNS = frozenset({"", "nan", "none", "null", "-1"})


@dataclass(frozen=True, kw_only=True)
class _Runs:
    row: Row
    class_name: str
    text: str


def recognise_severstal(path: Path) -> str | None:
    """Return the layout in words if a path is, or a folder contains, a CSV of run lengths, else None."""
    table = _table_of(path)
    return None if table is None else f"run lengths in a CSV ({table.name}), as Severstal's"


def load_severstal(path: Path, options: LoadOptions) -> RawDataset:
    """Load masks from `ImageId,ClassId,EncodedPixels` or `ImageId_ClassId,EncodedPixels`.

    A row without run lengths means no defect. If an image has one row per class, its connected parts are the instances;
    if it has several, each row is one.

    Raises:
        AnnotationError: a row is bad, or its image is missing.
        ImageError: an image is unreadable.
    """
    index = options.index or _table_of(path)
    if index is None:
        raise AnnotationError(path, "no CSV with the columns ImageId and EncodedPixels", "give the CSV file")
    table = read_table(index, _roles(index), required=("runs",), keep_faulty=options.skip_bad)
    if not table.has("image") and not table.has("both"):
        raise AnnotationError(index, "has neither a column ImageId nor a column ImageId_ClassId", "rename the columns")
    if not table.rows:
        raise AnnotationError(index, "the CSV file has no rows below the header", "export the table again")
    sieve = Sieve(options.skip_bad)
    root = path if is_folder(path) else path.parent
    images_root = (
        options.image_root
        or child_folder(root, IMAGE_FOLDERS)
        or child_folder(index.parent, IMAGE_FOLDERS)
        or index.parent
    )
    files = find_images_by_name(images_root, options, sieve)
    rows = _by_image(table, sieve)
    repeated = any(
        len({entry.class_name for entry in entries if entry.text}) < sum(bool(entry.text) for entry in entries)
        for entries in rows.values()
    )
    images: list[RawImage] = []
    seen: set[Path] = set()
    for name, entries in rows.items():
        found = files.get(name) or files.get(
            PurePosixPath(name).with_suffix("").as_posix() if PurePosixPath(name).suffix else name
        )
        if found is not None:
            seen.add(found)
        made = sieve.attempt(name, lambda: _image(name, found, entries, images_root, repeated, options))  # noqa: B023
        if made is not None:
            images.append(made)
    without = [path for path in dict.fromkeys(files.values()) if path not in seen]
    names = [path.relative_to(images_root).as_posix() for path in without]
    settle_unlabelled(
        names, len(rows), options, sieve, where=index, what="row", looked_for=f"its file name in {index.name}"
    )
    for path, name in zip(without, names, strict=True) if options.unlabelled == "defect-free" else ():
        made = sieve.attempt(name, lambda path=path: _free(path, images_root))
        if made is not None:
            images.append(made)
    classes = {instance.class_name for image in images for instance in image.instances}
    return RawDataset(
        class_names=tuple(
            sorted(classes, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
        ),
        images=tuple(images),
        rejected=tuple(sieve.rejected),
        remarks=sieve.remarks,
        layout=f"run lengths in a CSV ({index.name}), as Severstal's",
    )


def rle_of_row(text: str, size_hw: tuple[int, int], where: object) -> Rle:
    """Return the RLE of run lengths as text: pairs of first pixel and pixel count, column-wise, counted from 1.

    Raises:
        AnnotationError: there is something other than whole numbers, an odd count, or runs that overlap or leave the
            image.
    """
    fix = "export the run lengths again"
    words = text.split()
    if len(words) % 2:
        raise AnnotationError(
            where, f"run lengths of {len(words)} numbers, but pairs of first pixel and count are expected", fix
        )
    if any(len(word) > 12 or not word.isascii() or not word.isdigit() for word in words):
        wrong = next(word for word in words if len(word) > 12 or not word.isascii() or not word.isdigit())
        raise AnnotationError(where, f"{wrong[:20]!r} among run lengths, but whole numbers are expected", fix)
    pairs: NDArray[np.int64] = np.array(words, np.int64).reshape(-1, 2)
    starts, ends = pairs[:, 0] - 1, pairs[:, 0] - 1 + pairs[:, 1]
    if not len(pairs) or starts.min() < 0 or pairs[:, 1].min() < 1:
        raise AnnotationError(where, "a run begins before pixel 1 or has no pixel", fix)
    if int(ends.max()) > size_hw[0] * size_hw[1]:
        found = f"a run ends at pixel {int(ends.max())}, image is {size_hw[0]}x{size_hw[1]} (height x width)"
        raise AnnotationError(where, found, "give run lengths of this image, column by column")
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], ends[order]
    if (starts[1:] < ends[:-1]).any():
        raise AnnotationError(where, "runs overlap", fix)
    edges = np.stack([starts, ends], axis=1).reshape(-1)
    places, times = np.unique(edges, return_counts=True)
    return rle_of_edges(places[times == 1], size_hw)


def _image(
    name: str, path: Path | None, entries: Sequence[_Runs], root: Path, each_row: bool, options: LoadOptions
) -> RawImage:
    if path is None:
        raise AnnotationError(
            entries[0].row.where, f"no image file {name[:200]!r} in {root.name}/", "correct the row or add the file"
        )
    size_hw = checked_size_hw(path, None, entries[0].row.where)
    instances: list[RawInstance] = []
    for entry in entries:
        if entry.row.fault is not None:
            raise entry.row.fault
        if not entry.text:
            continue
        if not entry.class_name:
            raise AnnotationError(entry.row.where, "has run lengths but no class", "complete the row")
        rle = rle_of_row(entry.text, size_hw, entry.row.where)
        parts = (
            [rle] if each_row else component_rles(decode(rle), min_area_px=options.min_area_px, where=entry.row.where)
        )
        instances += [RawInstance(class_name=entry.class_name, rle=part) for part in parts]
    is_free = not any(entry.text for entry in entries)
    return placed_image(path, root, size_hw=size_hw, instances=instances, is_defect_free=is_free)


def _free(path: Path, root: Path) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    return placed_image(path, root, size_hw=size_hw, instances=(), is_defect_free=True)


def _by_image(table: Table, sieve: Sieve) -> dict[str, list[_Runs]]:
    rows: dict[str, list[_Runs]] = {}
    for row in table.rows:
        entry = sieve.attempt(row.where, lambda row=row: _entry(row, table))
        if entry is not None:
            rows.setdefault(entry[0], []).append(entry[1])
    return rows


def _entry(row: Row, table: Table) -> tuple[str, _Runs]:
    if row.fault is not None and not row.get("image") and not row.get("both"):
        raise row.fault
    runs = row.get("runs")
    text = "" if runs.lower() in NO_RUNS else runs
    if table.has("both"):
        name, _, class_name = row.get("both").rpartition("_")
    else:
        name, class_name = row.get("image"), row.get("class")
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    if not name:
        raise AnnotationError(row.where, "names no image", "complete the row or remove it")
    if not table.has("class") and not table.has("both"):
        class_name = DEFAULT_CLASS
    # spreadsheets and pandas turn class numbers into 1.0
    class_name = class_name[:-2] if class_name.endswith(".0") and class_name[:-2].isdigit() else class_name
    return name, _Runs(row=row, class_name=class_name, text=text)


def _table_of(path: Path) -> Path | None:
    if not is_folder(path):
        return path if path.suffix.lower() == ".csv" and _is_table(path) else None
    if is_file(path / "train.csv") and _is_table(path / "train.csv"):
        return path / "train.csv"
    try:
        tables = [file for file in sorted(path.iterdir()) if file.suffix.lower() == ".csv" and _is_table(file)]
    except OSError:
        return None
    return tables[0] if len(tables) == 1 else None


def _is_table(path: Path) -> bool:
    header = {name.replace(" ", "_") for name in read_header(path)}
    return bool(header & set(ROLES["runs"])) and bool(header & {*ROLES["image"], *ROLES["both"]})


def _roles(index: Path) -> dict[str, Sequence[str]]:
    header = set(read_header(index))
    return {**ROLES, "image": ()} if header & set(ROLES["both"]) else dict(ROLES)


SEVERSTAL = Format(
    name="severstal", title="run lengths in a CSV, as Severstal's", recognise=recognise_severstal, load=load_severstal
)
