"""The folder tree of MVTec AD and similar sets: `train/good`, `test/<defect>`, `ground_truth/<defect>`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.index_csv import find_index
from defectory.formats.lookup import (
    MaskIndex,
    child_folder,
    child_folders,
    group_of,
    images_in,
    is_folder,
    is_good,
    one_of,
    refuse_orphans,
    shown,
    stem_key,
)
from defectory.formats.mask_survey import Survey, survey_masks
from defectory.formats.mask_values import Reading, decide
from defectory.formats.masked import MaskedImage, MaskedSet, MaskFile, read_masked
from defectory.formats.raw import LoadOptions, RawDataset, Sieve
from defectory.formats.registry import Format

SUBSET_FOLDERS = ("train", "test", "validation", "val", "valid", "test_public")
MASK_FOLDERS = ("ground_truth", "groundtruth", "gt", "masks")
REMARK = "train/ and test/ of the source are not kept as a split: all of its defects are in test/"


def recognise_mvtec(path: Path) -> str | None:
    """Return the layout in words if a folder is one object of MVTec AD's tree, or contains several, else None."""
    if not is_folder(path) or find_index(path) is not None:
        return None
    if _is_object(path):
        return "MVTec AD tree"
    objects = _objects(path)
    return f"MVTec AD tree of {len(objects)} objects" if objects else None


def load_mvtec(root: Path, options: LoadOptions) -> RawDataset:
    """Load one object of MVTec AD's tree.

    Folders of `test/` are the classes; images in good folders are defect-free. Masks may be one file per image, with or
    without `_mask`, or a folder with one file per instance, as in MVTec LOCO.

    Raises:
        AnnotationError: it is not such a tree, contains several objects, or a mask has no image.
        ImageError: an image or mask is unreadable, or their sizes differ.
    """
    if not is_folder(root):
        raise AnnotationError(root, "no such folder", "check the path")
    if not _is_object(root):
        objects = _objects(root)
        if len(objects) != 1:
            listed = ", ".join(folder.name for folder in objects[:6]) + (", ..." if len(objects) > 6 else "")
            found = (
                f"holds {len(objects)} objects ({listed})"
                if objects
                else "has no train/ or test/ with a folder of good images in it"
            )
            raise AnnotationError(
                root, found, "give the folder of one object" if objects else "give the folder of an MVTec AD object"
            )
        root = objects[0]
    sieve = Sieve(options.skip_bad)
    masks_root = child_folder(root, MASK_FOLDERS)
    images: list[MaskedImage] = []
    folders = [
        (subset, kind)
        for subset in child_folders(root)
        if subset.name.lower() in SUBSET_FOLDERS
        for kind in child_folders(subset)
    ]
    claimed: set[Path] = set()
    for subset, kind in folders:
        if kind.name.lower() in MASK_FOLDERS:
            continue
        place = masks_root or child_folder(subset, MASK_FOLDERS)
        images += _of_kind(root, subset, kind, place, claimed, options, sieve)
    if masks_root is not None:
        refuse_orphans([path for path in images_in(masks_root, options, sieve) if path not in claimed], root, sieve)
    if not images:
        raise AnnotationError(root, "no image file in it", "check the folders")
    readings = _readings(images, options, sieve)
    sieve.remark(REMARK)
    found = MaskedSet(
        root=root,
        images=images,
        class_names=tuple(readings),
        readings=readings,
        looked_for="its name with and without _mask in ground_truth/<defect>/",
        layout="MVTec AD tree",
    )
    return read_masked(found, options, sieve)


def _of_kind(
    root: Path,
    subset: Path,
    kind: Path,
    masks_root: Path | None,
    claimed: set[Path],
    options: LoadOptions,
    sieve: Sieve,
) -> list[MaskedImage]:
    """Return the images of one folder, such as `test/scratch`, with their masks."""
    relatives = {PurePosixPath(path.relative_to(kind).as_posix()): path for path in images_in(kind, options, sieve)}
    good = is_good(kind.name)
    folder = None if masks_root is None else child_folder(masks_root, (kind.name.lower(),))
    masks: dict[PurePosixPath, list[MaskFile]] = {}
    faults: dict[PurePosixPath, AnnotationError] = {}
    # folders of train/ and test/ may share a name; masks belong to the images of test/
    if folder is not None and (not good or subset.name.lower().startswith("test")):
        files = images_in(folder, options, sieve)
        by_image = {
            stem_key(inner.name): [path for path in files if path.is_relative_to(inner)]
            for inner in child_folders(folder)
        }
        index = MaskIndex(folder, files)
        found = index.claim(relatives)
        for relative, path in relatives.items():
            inner = by_image.get(stem_key(relative.stem), []) if len(relative.parts) == 1 else []
            masks[relative] = [MaskFile(path=mask, class_name=kind.name, is_instance=True) for mask in inner]
            masks[relative] += [MaskFile(path=mask, class_name=kind.name) for mask in found.get(relative, [])]
            claimed.update(mask.path for mask in masks[relative])
            try:
                index.refuse_shared(found.get(relative, []), shown(path, root))
                if relative in found:
                    one_of(found[relative], shown(path, root), root)
            except AnnotationError as error:
                faults[relative] = error
    return [
        MaskedImage(
            path=path,
            name=f"{subset.name}/{kind.name}/{relative}",
            group=group_of(PurePosixPath(f"{subset.name}/{kind.name}/{relative}")),
            masks=tuple(masks.get(relative, ())),
            says_good=good,
            says_defect=not good,
            where=shown(path, root),
            fault=_raiser(faults.get(relative)),
        )
        for relative, path in relatives.items()
    ]


def _raiser(error: AnnotationError | None) -> Callable[[], None] | None:
    def raise_it() -> None:
        if error is not None:
            raise error

    return None if error is None else raise_it


def _readings(images: list[MaskedImage], options: LoadOptions, sieve: Sieve) -> dict[str, tuple[Reading, Survey]]:
    files: dict[str, list[Path]] = {}
    for image in images:
        for file in image.masks:
            files.setdefault(file.class_name, []).append(file.path)
    result: dict[str, tuple[Reading, Survey]] = {}
    for name, paths in sorted(files.items()):
        survey = survey_masks(paths, skip_bad=options.skip_bad)
        where = f"{paths[0].parent.parent.name}/{paths[0].parent.name}"
        result[name] = (
            decide(survey, names=None, default=name, colours=None, options=options, sieve=sieve, where=where),
            survey,
        )
    return result


def _is_object(folder: Path) -> bool:
    """Return whether a folder is one object.

    In an object, train/ or test/ contains a folder of good images, and there are masks or a folder of defects.
    """
    subsets = [child for child in child_folders(folder) if child.name.lower() in SUBSET_FOLDERS]
    kinds = [kind.name for subset in subsets for kind in child_folders(subset)]
    if not any(is_good(kind) for kind in kinds):
        return False
    inner = any(child_folder(subset, MASK_FOLDERS) is not None for subset in subsets)
    return child_folder(folder, MASK_FOLDERS) is not None or inner or any(not is_good(kind) for kind in kinds)


def _objects(folder: Path) -> list[Path]:
    return [child for child in child_folders(folder) if _is_object(child)]


MVTEC = Format(name="mvtec", title="MVTec AD tree", recognise=recognise_mvtec, load=load_mvtec)
