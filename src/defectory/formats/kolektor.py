"""Masks beside their images in one folder.

Examples are KolektorSDD (`Part0.jpg`, `Part0_label.bmp`), KolektorSDD2 (`10000.png`, `10000_GT.png`) and Roboflow
(`_mask`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.colours import find_colour_table, find_value_names, load_colour_table
from defectory.formats.lookup import (
    bare_stems,
    group_of,
    images_in,
    is_folder,
    one_of,
    refuse_orphans,
    shown,
    stem_key,
    subset_of_path,
)
from defectory.formats.mask_folders import find_pairs
from defectory.formats.mask_survey import survey_masks
from defectory.formats.mask_values import decide
from defectory.formats.masked import EVERY, MaskedImage, MaskedSet, MaskFile, read_masked
from defectory.formats.raw import LoadOptions, RawDataset, Sieve, walk_files
from defectory.formats.registry import Format
from defectory.images.header import IMAGE_SUFFIXES

LOOKED_AT_FILES = 20_000
LOOKED_FOR = "its name with _mask, -mask, _label, _GT or _seg, beside it"


def recognise_kolektor(path: Path) -> str | None:
    """Return the layout in words if a folder contains images with their masks beside them, else None."""
    if not is_folder(path) or find_pairs(path, LoadOptions()):
        return None
    try:
        files = [
            file
            for file in islice(walk_files(path, follow_links=True), LOOKED_AT_FILES)
            if file.suffix.lower() in IMAGE_SUFFIXES
        ]
    except AnnotationError:
        return None
    _, masks = _images_and_masks(files)
    if not masks or 3 * sum(len(paths) for paths in masks.values()) < len(files):
        return None
    return _layout(masks)


def load_kolektor(root: Path, options: LoadOptions) -> RawDataset:
    """Load a folder and its subfolders of images with their masks beside them.

    Each of KolektorSDD's folders shows one part, so its images form one group. Folders called train, val and test are
    the data set's own split.

    Raises:
        AnnotationError: no image has a mask beside it, a mask has no image, or mask values do not match classes.
        ImageError: an image or mask is unreadable, or their sizes differ.
    """
    if not is_folder(root):
        raise AnnotationError(root, "no such folder", "check the path")
    sieve = Sieve(options.skip_bad)
    images, masks = _images_and_masks(images_in(root, options, sieve))
    if not images:
        raise AnnotationError(root, "no image file in it", "check the path")
    paths = [path for found in masks.values() for path in found]
    survey = survey_masks(paths, skip_bad=options.skip_bad)
    folders = list(dict.fromkeys([root, *(path.parent for path in paths)]))
    colours = (
        load_colour_table(options.class_colours) if options.class_colours is not None else find_colour_table(folders)
    )
    reading = decide(
        survey,
        names=find_value_names(folders),
        default=None,
        colours=colours,
        options=options,
        sieve=sieve,
        where=root.name,
    )
    by_part = any(path.name.lower().endswith("_label.bmp") for path in paths)
    left = [path for path in images if not masks.get(path) and bare_stems(stem_key(path.stem))]
    refuse_orphans(
        [path for path in left if stem_key(path.stem).endswith(("_mask", "-mask", "_gt", "_label"))], root, sieve
    )
    found = MaskedSet(
        root=root,
        images=[_image(path, root, masks.get(path, []), by_part) for path in images if path not in left],
        class_names=reading.class_names,
        readings={EVERY: (reading, survey)},
        looked_for=LOOKED_FOR,
        layout=_layout(masks),
    )
    return read_masked(found, options, sieve)


def _image(path: Path, root: Path, masks: Sequence[Path], by_part: bool) -> MaskedImage:
    relative = PurePosixPath(path.relative_to(root).as_posix())

    def refuse() -> None:
        one_of(masks, shown(path, root), root)

    return MaskedImage(
        path=path,
        name=relative.as_posix(),
        group=relative.parent.as_posix() if by_part and len(relative.parts) > 1 else group_of(relative),
        masks=tuple(MaskFile(path=mask) for mask in masks),
        subset=subset_of_path(relative),
        fault=refuse if len(masks) > 1 else None,
    )


def _images_and_masks(files: Iterable[Path]) -> tuple[list[Path], dict[Path, list[Path]]]:
    """Separate images from masks; return the images and the masks of each.

    A mask is a file whose stem is that of an image beside it plus a usual suffix.
    """
    by_stem: dict[tuple[Path, str], list[Path]] = {}
    files = list(files)
    for path in files:
        by_stem.setdefault((path.parent, stem_key(path.stem)), []).append(path)
    masks: dict[Path, list[Path]] = {}
    taken: set[Path] = set()
    for path in files:
        for stem in bare_stems(stem_key(path.stem)):
            owners = [owner for owner in by_stem.get((path.parent, stem), []) if owner != path]
            if owners:
                masks.setdefault(owners[0], []).append(path)
                taken.add(path)
                break
    return [path for path in files if path not in taken], masks


def _layout(masks: dict[Path, list[Path]]) -> str:
    names = [path.name.lower() for paths in masks.values() for path in paths]
    if any(name.endswith("_label.bmp") for name in names):
        return "KolektorSDD (masks _label.bmp beside images)"
    if any(name.endswith("_gt.png") for name in names):
        return "KolektorSDD2 (masks _GT.png beside images)"
    return "masks beside images"


KOLEKTOR = Format(
    name="kolektor",
    title="masks beside images, as KolektorSDD has them",
    recognise=recognise_kolektor,
    load=load_kolektor,
)
