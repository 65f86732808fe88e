"""Masks that an expert adds or corrects, as PNG files or COCO annotations."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import MaskBank
from defectory.errors import AnnotationError
from defectory.filenames import file_names_of, text_of
from defectory.folders.swap import atomic_folder
from defectory.formats.raw import is_litter
from defectory.geometry import resize_mask
from defectory.images.load import load_class_mask
from defectory.images.save import save_png
from defectory.masks.perturb import cropped
from defectory.masks.sources import ExpertMask
from defectory.rle import decode, encode

Mask = NDArray[np.bool_]
SHEET = "sheet.png"


def read_folder(
    folder: Path, *, bank: MaskBank, categories: Sequence[Category], scale: float, tile_px: int
) -> tuple[tuple[ExpertMask, ...], MaskBank]:
    """Load an expert's masks from `<class>/<name>.png`; any value above 0 is the defect.

    The result is the new masks, and the bank with corrected masks in place of its own. Class folders are named as by
    `write_review` or like the class itself; hidden files and system files are skipped. A file with the name of a bank
    entry corrects it and has its tile's size; any other file is a new mask at the scale of the images.

    Args:
        folder: the expert's folder.
        bank: mask bank of the training masks.
        categories: classes of the data set.
        scale: tile pixels per image pixel.
        tile_px: side of a tile.

    Raises:
        AnnotationError: train has no such class; a mask is empty, covers everything or is larger than a tile; or a
            correction does not have its tile's size.
    """
    if not folder.is_dir():
        raise AnnotationError(
            folder, "no such folder", "give a folder with one folder of PNG masks per class (masks.expert)"
        )
    ids = _trained(bank, categories)
    entries = {entry.id: entry for entry in bank.entries}
    found: list[ExpertMask] = []
    class_of = class_names_of_folders(folder, list(ids))
    for class_folder, class_name in class_of.items():
        category_id = _id_of(class_name, ids, class_folder)
        for path in mask_files(class_folder):
            mask = load_class_mask(path) > 0
            if not mask.any():
                raise AnnotationError(path, "is empty", "draw the defect with any value above 0, or delete the file")
            if mask.all():
                raise AnnotationError(path, "covers everything", "set the background to 0")
            entry = entries.get(path.stem)
            if entry is None:
                found.append(_supplied(path.stem, category_id, mask, path, scale, tile_px))
                continue
            size_hw = entry.mask.rle.size_hw
            if mask.shape != size_hw:
                raise AnnotationError(
                    path,
                    f"is {mask.shape[0]}x{mask.shape[1]}, its tile is {size_hw[0]}x{size_hw[1]} (height x width)",
                    "correct it at its own size, or give it a new name",
                )
            entries[entry.id] = entry.model_copy(
                update={"category_id": category_id, "mask": Instance(category_id=category_id, rle=encode(mask))}
            )
    return tuple(found), bank.model_copy(update={"entries": tuple(entries.values())})


def from_instances(
    named: Sequence[tuple[str, str, Mask]],
    *,
    where: Path,
    bank: MaskBank,
    categories: Sequence[Category],
    scale: float,
    tile_px: int,
) -> tuple[ExpertMask, ...]:
    """Return new masks from annotations, given as id, class name and mask bool [H,W].

    Raises:
        AnnotationError: as for `read_folder`.
    """
    ids = _trained(bank, categories)
    found: list[ExpertMask] = []
    for name, class_name, mask in named:
        category_id = _id_of(class_name, ids, where)
        if mask.all():
            raise AnnotationError(where, f"mask {name} covers its whole image", "do not label the background")
        found.append(_supplied(name, category_id, mask, where, scale, tile_px))
    return tuple(found)


def write_review(bank: MaskBank, categories: Sequence[Category], sheet: NDArray[np.uint8], out: Path) -> int:
    """Write every mask of the bank as `<class>/<id>.png`, and a contact sheet; corrected masks can be loaded back.

    Masks have values 0 and 255 and their tile's size. Folders are named by `file_names_of`, so that no class name can
    leave `out`.

    Args:
        bank: mask bank of the training masks.
        categories: classes of the data set.
        sheet: contact sheet, RGB uint8 [H,W,3].
        out: folder; an earlier review in it is replaced as a whole.

    Returns:
        Number of masks written.

    Raises:
        OutputError: `out` contains something other than a review, or cannot be written.
    """
    folder_of = file_names_of(category.name for category in categories)
    names = {category.id: folder_of[category.name] for category in categories}
    with atomic_folder(out, kind="masks-review") as folder:
        for entry in bank.entries:
            save_png(
                folder / names[entry.category_id] / f"{entry.id}.png", decode(entry.mask.rle).astype(np.uint8) * 255
            )
        save_png(folder / SHEET, sheet)
    return len(bank.entries)


def class_names_of_folders(folder: Path, names: Sequence[str]) -> dict[Path, str]:
    """Return the class of each folder in an expert's folder, in order of their names.

    Args:
        folder: the expert's folder.
        names: class names of the data set; a folder that matches none of them keeps its own name.
    """
    written = {name: text for text, name in file_names_of(names).items()}
    folded = {name.casefold(): text for name, text in written.items()}

    def class_of(name: str) -> str | None:
        for found in (
            written.get(name),
            name if name in names else None,
            folded.get(name.casefold()),
            text_of(name, names),
        ):
            if found is not None and found in names:
                return found
        return None

    found: dict[Path, str] = {}
    for path in sorted(folder.iterdir()):
        # some systems store letters and their accents separately
        name = unicodedata.normalize("NFC", path.name)
        known = class_of(name)
        if path.is_dir() and (known is not None or not is_litter(name)):
            found[path] = name if known is None else known
    return found


def mask_files(folder: Path) -> list[Path]:
    """Return the PNG files of a class's folder, with the suffix in any case, in order of their names."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() == ".png" and path.is_file() and not is_litter(path.name)
    )


def _trained(bank: MaskBank, categories: Sequence[Category]) -> dict[str, int | None]:
    """Return category ids by name; None for classes without a training mask, which phase 2 has never seen."""
    seen = {entry.category_id for entry in bank.entries}
    return {category.name: category.id if category.id in seen else None for category in categories}


def _id_of(name: str, ids: Mapping[str, int | None], where: Path) -> int:
    if name not in ids:
        raise AnnotationError(where, f"class {name!r} is not in the data set", f"use one of {', '.join(ids)}")
    category_id = ids[name]
    if category_id is None:
        raise AnnotationError(
            where,
            f"class {name!r} has no training example",
            "annotate some images of it; the control network has not been trained on this class",
        )
    return category_id


def _supplied(name: str, category_id: int, mask: Mask, where: Path, scale: float, tile_px: int) -> ExpertMask:
    crop = cropped(mask)
    crop = resize_mask(crop, (max(1, round(crop.shape[0] * scale)), max(1, round(crop.shape[1] * scale))))
    if max(crop.shape) > tile_px:
        raise AnnotationError(
            where,
            f"mask {name} is {crop.shape[0]}x{crop.shape[1]} tile pixels (height x width), a tile has {tile_px}",
            "crop it, or leave it out",
        )
    return ExpertMask(id=name, category_id=category_id, mask=crop)
