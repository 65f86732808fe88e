"""VisA: a table or the folders of one object.

The table is `image_anno.csv` or `split_csv/1cls.csv`; the folders are `Data/Images/Normal`, `Data/Images/Anomaly` and
`Data/Masks/Anomaly`.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.index_csv import Entry, load_rows
from defectory.formats.lookup import (
    MaskIndex,
    child_folder,
    child_folders,
    group_of,
    images_in,
    is_file,
    is_folder,
    is_good,
    one_of,
    refuse_orphans,
    shown,
    subset_of,
)
from defectory.formats.mask_survey import survey_masks
from defectory.formats.mask_values import decide
from defectory.formats.masked import EVERY, MaskedImage, MaskedSet, MaskFile, read_masked
from defectory.formats.raw import LoadOptions, RawDataset, Sieve
from defectory.formats.registry import Format
from defectory.formats.tables import Row, read_header, read_table

ANOMALY = "anomaly"
ROLES = {"image": ("image",), "mask": ("mask",), "label": ("label",), "object": ("object",), "split": ("split",)}
TABLES = ("image_anno.csv", "split_csv/1cls.csv", "1cls.csv")


def recognise_visa(path: Path) -> str | None:
    """Return the layout in words if a path is, or a folder contains, VisA's table or its folders, else None."""
    table = _table_of(path)
    if table is not None:
        return f"VisA CSV ({table.name})"
    if is_folder(path) and _data_folders(path) is not None:
        return "VisA folders (Data/Images, Data/Masks)"
    objects = _objects(path)
    return f"VisA folders of {len(objects)} objects" if objects else None


def load_visa(path: Path, options: LoadOptions) -> RawDataset:
    """Load one object of VisA; a row's label is the class.

    Rows labelled `normal` are defect-free and need no mask; all others have one.

    Raises:
        AnnotationError: there are several objects, a bad row, or a mask is missing or has no image.
        ImageError: an image or mask is unreadable, or their sizes differ.
    """
    table = options.index or _table_of(path)
    if table is not None:
        return _of_table(path if is_folder(path) else path.parent, table, options)
    if not is_folder(path):
        raise AnnotationError(
            path, "no VisA table and no VisA folders", "give image_anno.csv or the folder of one object"
        )
    if _data_folders(path) is None:
        objects = _objects(path)
        if len(objects) != 1:
            found = (
                f"holds {len(objects)} objects ({_listed([folder.name for folder in objects])})"
                if objects
                else "has no Data/Images and Data/Masks"
            )
            raise AnnotationError(path, found, "give the folder of one object")
        path = objects[0]
    return _of_folders(path, options)


def _of_table(root: Path, path: Path, options: LoadOptions) -> RawDataset:
    table = read_table(path, ROLES, required=("image", "mask", "label"), keep_faulty=options.skip_bad)
    objects = list(dict.fromkeys(row.get("object") for row in table.rows if row.get("object")))
    if len(objects) > 1:
        raise AnnotationError(
            path,
            f"lists {len(objects)} objects ({_listed(objects)})",
            "give the folder of one object, or a CSV with only its rows",
        )
    kinds = {
        row.where: tuple(name.strip() for name in row.get("label").split(",") if name.strip()) for row in table.rows
    }
    several = any(len(names) > 1 for names in kinds.values())
    remarks = [f"rows list several kinds of anomaly for one mask, so every class is {ANOMALY!r}"] if several else []

    def entry(row: Row) -> Entry:
        names = kinds[row.where]
        good = bool(names) and all(is_good(name) for name in names)
        return Entry(
            row=row,
            image=row.get("image"),
            mask=row.get("mask"),
            classes=() if good or not names else (ANOMALY,) if several else names,
            says_good=good,
            group="",
            subset=subset_of(row.get("split")),
        )

    return load_rows(
        root,
        table,
        [entry(row) for row in table.rows],
        options,
        layout=f"VisA CSV ({path.name})",
        by_row=True,
        remarks=remarks,
    )


def _of_folders(root: Path, options: LoadOptions) -> RawDataset:
    folders = _data_folders(root)
    assert folders is not None
    images_root, masks_root = folders
    sieve = Sieve(options.skip_bad)
    index = MaskIndex(masks_root, images_in(masks_root, options, sieve))
    paths = {
        PurePosixPath(path.relative_to(images_root).as_posix()): path for path in images_in(images_root, options, sieve)
    }
    if not paths:
        raise AnnotationError(images_root, "no image file in it", "check the folder")
    claimed = index.claim(relative for relative in paths if not is_good(relative.parts[0]))
    refuse_orphans(index.orphans, root, sieve)
    survey = survey_masks([mask for masks in claimed.values() for mask in masks], skip_bad=options.skip_bad)
    reading = decide(
        survey, names=None, default=ANOMALY, colours=None, options=options, sieve=sieve, where=shown(masks_root, root)
    )

    def image(relative: PurePosixPath, path: Path) -> MaskedImage:
        masks = claimed.get(relative, [])

        def fault() -> None:
            index.refuse_shared(masks, shown(path, root))
            one_of(masks, shown(path, root), root)

        return MaskedImage(
            path=path,
            name=relative.as_posix(),
            group=group_of(relative),
            masks=tuple(MaskFile(path=mask, class_name=ANOMALY) for mask in masks),
            says_good=is_good(relative.parts[0]),
            says_defect=not is_good(relative.parts[0]),
            where=shown(path, root),
            fault=fault if masks else None,
        )

    found = MaskedSet(
        root=root,
        images=[image(relative, path) for relative, path in paths.items()],
        class_names=(ANOMALY,),
        readings={EVERY: (reading, survey)},
        looked_for="its name in Data/Masks/Anomaly/",
        layout="VisA folders (Data/Images, Data/Masks)",
    )
    return read_masked(found, options, sieve)


def _table_of(path: Path) -> Path | None:
    if not is_folder(path):
        return path if path.suffix.lower() == ".csv" and _is_table(path) else None
    found = next((path / name for name in TABLES if is_file(path / name)), None)
    return found if found is not None and _is_table(found) else None


def _is_table(path: Path) -> bool:
    header = read_header(path)
    return {"image", "mask", "label"} <= set(header) and ("object" in header or path.name == "image_anno.csv")


def _data_folders(path: Path) -> tuple[Path, Path] | None:
    """Return the folders of images and masks of one object."""
    data = child_folder(path, ("data",))
    if data is None:
        return None
    images, masks = child_folder(data, ("images",)), child_folder(data, ("masks",))
    if images is None or masks is None or not any(is_good(folder.name) for folder in child_folders(images)):
        return None
    return images, masks


def _objects(path: Path) -> list[Path]:
    return [folder for folder in child_folders(path) if _data_folders(folder) is not None]


def _listed(names: list[str]) -> str:
    return ", ".join(name[:40] for name in names[:6]) + (", ..." if len(names) > 6 else "")


VISA = Format(name="visa", title="VisA (CSV or folders)", recognise=recognise_visa, load=load_visa)
