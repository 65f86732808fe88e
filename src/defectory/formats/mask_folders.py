"""Mask folders: `images/` beside `masks/` of class indices, `masks/<class>/`, or one mask file per instance."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.colours import find_colour_table, find_value_names, load_colour_table
from defectory.formats.index_csv import find_index, load_index
from defectory.formats.lookup import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
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
    subset_of,
    subset_of_path,
)
from defectory.formats.mask_survey import Survey, survey_masks
from defectory.formats.mask_values import DEFAULT_CLASS, Reading, decide
from defectory.formats.masked import MaskedImage, MaskedSet, MaskFile, read_masked, relative_name
from defectory.formats.raw import LoadOptions, RawDataset, Sieve, Subset, walk_files
from defectory.formats.registry import Format
from defectory.images.header import IMAGE_SUFFIXES

LOOKED_AT_FILES = 20_000
MAX_NAMED_CLASSES = 24
PLAIN_WORDS = frozenset(
    {
        "mask",
        "masks",
        "instance",
        "inst",
        "object",
        "obj",
        "label",
        "seg",
        "segment",
        "gt",
        "defect",
        "region",
        "roi",
        "layer",
        "part",
    }
)
LOOKED_FOR = "the image's name with any image suffix, and with _mask, -mask, _label, _gt, _seg"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A folder of images and the folder of their masks."""

    images: Path
    masks: Path
    prefix: str = ""
    """Prefix of the image names, if the source has several pairs."""
    subset: Subset | None = None
    only_top: bool = False
    """Only images directly in the folder count; the folder of masks lies beside them."""


def recognise_mask_folder(path: Path) -> str | None:
    """Return the layout in words if a folder contains images and masks in sibling folders, else None."""
    pairs = find_pairs(path, LoadOptions()) if is_folder(path) and find_index(path) is None else []
    if not pairs:
        return None
    named = f"{pairs[0].images.name}/ and {pairs[0].masks.name}/"
    return f"mask folders ({named if len(pairs) == 1 else f'{len(pairs)} times {named}'})"


def load_mask_folder(root: Path, options: LoadOptions) -> RawDataset:
    """Load a folder of images and masks; an index CSV, given or found as `index.csv`, is read instead.

    Raises:
        AnnotationError: a mask is missing or has no image, or mask values do not match classes.
        ImageError: an image or mask is unreadable, or their sizes differ.
    """
    index = options.index or find_index(root)
    if index is not None:
        return load_index(root if is_folder(root) else root.parent, index, options)
    if not is_folder(root):
        raise AnnotationError(root, "no such folder", "check the path")
    pairs = find_pairs(root, options)
    if not pairs:
        raise AnnotationError(root, "no images/ and masks/ in it", "create these folders, or give an index CSV")
    sieve = Sieve(options.skip_bad)
    images: list[MaskedImage] = []
    kinds: set[str] = set()
    for pair in pairs:
        some, kind = _of_pair(root, pair, len(pairs) > 1, options, sieve)
        images += some
        kinds.add(kind)
    if not images:
        raise AnnotationError(root, "no image file in it", "check the folders")
    readings = _readings(root, pairs, images, options, sieve)
    class_names = list(dict.fromkeys(file.class_name for image in images for file in image.masks if file.class_name))
    class_names = sorted(class_names) if "masks/<class>/" in kinds else class_names
    class_names += [name for key, (reading, _) in readings.items() if not key for name in reading.class_names]
    found = MaskedSet(
        root=root,
        images=images,
        class_names=tuple(class_names),
        readings=readings,
        looked_for=f"{LOOKED_FOR} in {', '.join(dict.fromkeys(shown(pair.masks, root) + '/' for pair in pairs[:3]))}",
        layout=f"mask folders ({', '.join(sorted(kinds))})",
    )
    return read_masked(found, options, sieve)


def find_pairs(root: Path, options: LoadOptions) -> list[Pair]:
    """Return the folders of images and masks under a root.

    They lie in the root, in its subfolders (train, val, test, or one per image), or the images lie in the root itself.
    """
    masks = _mask_folder(root)
    images = options.image_root or child_folder(root, IMAGE_FOLDERS)
    if masks is not None and images is not None:
        return _by_subset(images, masks) or [Pair(images=images, masks=masks)]
    pairs: list[Pair] = []
    for folder in child_folders(root):
        inner, inner_masks = child_folder(folder, IMAGE_FOLDERS), _mask_folder(folder)
        if inner is not None and inner_masks is not None:
            pairs.append(Pair(images=inner, masks=inner_masks, prefix=f"{folder.name}/", subset=subset_of(folder.name)))
    if not pairs and masks is None and options.image_root is not None and _holds_images(root):
        return [Pair(images=options.image_root, masks=root)]
    if pairs or masks is None:
        return pairs
    if any(_is_image(path) for path in _top_files(root)):
        return [Pair(images=root, masks=masks, only_top=True)]
    return []


def _by_subset(images: Path, masks: Path) -> list[Pair]:
    """Return a pair for each of `images/train`, `images/val` and so on, if masks are laid out in the same way."""
    folders = child_folders(images)
    if (
        not folders
        or any(subset_of(folder.name) is None for folder in folders)
        or any(_is_image(path) for path in _top_files(images))
    ):
        return []
    inner = {folder.name: child_folder(masks, (folder.name.lower(),)) for folder in folders}
    return (
        [
            Pair(images=folder, masks=place, prefix=f"{folder.name}/", subset=subset_of(folder.name))
            for folder in folders
            if (place := inner[folder.name]) is not None
        ]
        if None not in inner.values()
        else []
    )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES


def _mask_folder(root: Path) -> Path | None:
    """Return the first folder of a usual name with an image file; `labels/` may be YOLO's, `annotations/` COCO's."""
    for name in MASK_FOLDERS:
        folder = child_folder(root, (name,))
        if folder is not None and _holds_images(folder):
            return folder
    return None


def _holds_images(folder: Path) -> bool:
    try:
        return any(_is_image(path) for path in islice(walk_files(folder, follow_links=True), LOOKED_AT_FILES))
    except AnnotationError:
        return False


def _top_files(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file())
    except OSError:
        return []


def _of_pair(
    root: Path, pair: Pair, several: bool, options: LoadOptions, sieve: Sieve
) -> tuple[list[MaskedImage], str]:
    """Return the images of a pair with their masks, and the layout of the masks in words."""
    paths = images_in(pair.images, options, sieve)
    if pair.only_top:
        paths = [path for path in paths if path.parent == pair.images]
    relatives = {relative_name(path, pair.images): path for path in paths}
    files = images_in(pair.masks, options, sieve)
    stems = {stem_key(relative.stem) for relative in relatives}
    folders = [folder for folder in child_folders(pair.masks) if any(path.is_relative_to(folder) for path in files)]
    mirrored = {relative.parts[0] for relative in relatives if len(relative.parts) > 1}
    if (
        several
        and len(relatives) == 1
        and len(files) > 0
        and stem_key(next(iter(relatives)).stem) not in {stem_key(f.stem) for f in files}
    ):
        masks = {
            next(iter(relatives)): [MaskFile(path=path, class_name=DEFAULT_CLASS, is_instance=True) for path in files]
        }
        kind, faults = "one mask per instance", {}
    elif folders and not mirrored & {folder.name for folder in folders}:
        if sum(stem_key(folder.name) in stems for folder in folders) > len(folders) // 2:
            masks, faults = _per_instance_folder(root, relatives, files, pair.masks, sieve)
            kind = "one mask per instance"
        else:
            masks, faults = _per_class(root, relatives, files, folders, pair.masks, sieve)
            kind = "masks/<class>/"
    else:
        masks, faults, kind = _per_image(root, relatives, files, pair.masks, sieve)
    images = [
        MaskedImage(
            path=path,
            name=f"{pair.prefix}{relative}",
            group=group_of(PurePosixPath(f"{pair.prefix}{relative}")),
            masks=tuple(masks.get(relative, ())),
            subset=pair.subset or subset_of_path(relative),
            fault=None if relative not in faults else _raiser(faults[relative]),
        )
        for relative, path in relatives.items()
    ]
    return images, kind


Masks = dict[PurePosixPath, list[MaskFile]]
Faults = dict[PurePosixPath, AnnotationError]


def _raiser(error: AnnotationError) -> Callable[[], None]:
    def raise_it() -> None:
        raise error

    return raise_it


def _per_image(
    root: Path, relatives: dict[PurePosixPath, Path], files: Sequence[Path], folder: Path, sieve: Sieve
) -> tuple[Masks, Faults, str]:
    """Find one mask per image, or several numbered ones, one per instance."""
    index = MaskIndex(folder, files)
    claimed = index.claim(relatives, numbered=True)
    stems = {stem_key(relative.stem) for relative in relatives}
    longer = any(_begins_with_stem(stem_key(path.stem), stems) for path in index.orphans)
    hint = " by that name; for one mask per class the layout is masks/<class>/<image name>" if longer else ""
    refuse_orphans(index.orphans, root, sieve, hint=hint)
    masks: Masks = {}
    faults: Faults = {}
    numbered = any(index.is_numbered(relative) for relative in claimed)
    for relative, paths in claimed.items():
        image = shown(relatives[relative], root)
        try:
            index.refuse_shared(paths, image)
            if not index.is_numbered(relative):
                one_of(paths, image, root)
        except AnnotationError as error:
            faults[relative] = error
        masks[relative] = [
            MaskFile(path=path, class_name=DEFAULT_CLASS if numbered else "", is_instance=numbered) for path in paths
        ]
    return masks, faults, "one mask per instance" if numbered else "one mask per image"


def _begins_with_stem(stem: str, stems: AbstractSet[str]) -> bool:
    return any(stem[:at] in stems for at in range(1, len(stem)) if stem[at] in "_-. ")


def _per_instance_folder(
    root: Path, relatives: dict[PurePosixPath, Path], files: Sequence[Path], folder: Path, sieve: Sieve
) -> tuple[Masks, Faults]:
    """Take each file of `masks/<image stem>/` as an instance.

    Names such as `scratch_0.png` give the class, and `scratch.png` contains all instances of a class.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in files:
        by_stem.setdefault(stem_key(path.relative_to(folder).parts[0]), []).append(path)
    masks: Masks = {}
    words = {path: _word_of(path) for path in files}
    named = _are_classes(words, by_stem)
    if named:
        sieve.remark(
            f"the names of mask files give the classes: {', '.join(sorted(set(words.values())))}", shown(folder, root)
        )
    numbered = not named or any(re.search(r"\d", path.stem) for path in files)
    for relative in relatives:
        if relative.as_posix() == relative.name:
            paths = by_stem.pop(stem_key(relative.stem), [])
            if paths:
                masks[relative] = [
                    MaskFile(path=path, class_name=words[path] if named else DEFAULT_CLASS, is_instance=numbered)
                    for path in paths
                ]
    refuse_orphans([path for paths in by_stem.values() for path in paths], root, sieve)
    return masks, {}


def _word_of(path: Path) -> str:
    """Return the rest of a mask file's name, without the image's name and a trailing number."""
    stem = path.stem.removeprefix(path.parent.name).strip("_- ")
    return re.sub(r"[_\- ]*\d+$", "", stem)


def _are_classes(words: Mapping[Path, str], by_stem: Mapping[str, Sequence[Path]]) -> bool:
    """Return whether mask files are named after classes.

    That means few words, shared by several images, and none of them a plain word for masks.
    """
    distinct = set(words.values())
    if not distinct or len(distinct) > MAX_NAMED_CLASSES or 2 * len(distinct) > len(words) or len(by_stem) < 2:
        return False
    return all(
        re.fullmatch(r"[^\W\d]+(?:[ _-][^\W\d]+)*", word) and word.lower() not in PLAIN_WORDS for word in distinct
    )


def _per_class(
    root: Path,
    relatives: dict[PurePosixPath, Path],
    files: Sequence[Path],
    folders: Sequence[Path],
    masks_root: Path,
    sieve: Sieve,
) -> tuple[Masks, Faults]:
    """Find at most one mask per image in each class folder."""
    masks: Masks = {}
    faults: Faults = {}
    loose = [path for path in files if path.parent == masks_root]
    refuse_orphans(loose, root, sieve, hint=", beside folders of classes")
    for folder in folders:
        index = MaskIndex(folder, [path for path in files if path.is_relative_to(folder)])
        claimed = index.claim(relatives, numbered=True)
        refuse_orphans(index.orphans, root, sieve)
        for relative, paths in claimed.items():
            image = shown(relatives[relative], root)
            try:
                index.refuse_shared(paths, image)
                if not index.is_numbered(relative):
                    one_of(paths, image, root)
            except AnnotationError as error:
                faults.setdefault(relative, error)
            numbered = index.is_numbered(relative)
            masks.setdefault(relative, []).extend(
                MaskFile(path=path, class_name=folder.name, is_instance=numbered) for path in paths
            )
    return masks, faults


def _readings(
    root: Path, pairs: Sequence[Pair], images: Sequence[MaskedImage], options: LoadOptions, sieve: Sieve
) -> dict[str, tuple[Reading, Survey]]:
    """Return how to read values: for the masks of each class folder separately, and for all others together."""
    files: dict[str, list[Path]] = {}
    for image in images:
        for file in image.masks:
            files.setdefault(file.class_name, []).append(file.path)
    places = [root, *(pair.masks for pair in pairs), *(pair.masks.parent for pair in pairs)]
    colours = (
        load_colour_table(options.class_colours) if options.class_colours is not None else find_colour_table(places)
    )
    names = find_value_names(places)
    readings: dict[str, tuple[Reading, Survey]] = {}
    for class_name, paths in files.items():
        survey = survey_masks(paths, skip_bad=options.skip_bad)
        place = Path(*_common(root, paths))
        where = shown(place, root) if place != root else root.name
        if is_good(class_name) and any(found.pixels for found in survey.files.values()):
            raise AnnotationError(
                where,
                f"a mask in the folder {class_name!r} shows a defect",
                "name the folder after the defect, or empty the mask",
            )
        reading = decide(
            survey,
            names=None if class_name else names,
            default=class_name or None,
            colours=None if class_name else colours,
            options=options,
            sieve=sieve,
            where=where,
        )
        readings[class_name] = (reading, survey)
    return readings


def _common(root: Path, paths: Sequence[Path]) -> tuple[str, ...]:
    """Return the components of the deepest folder that contains all these files."""
    parts = paths[0].parent.parts
    for path in paths[1:]:
        other = path.parent.parts
        length = next(
            (at for at, (one, two) in enumerate(zip(parts, other, strict=False)) if one != two),
            min(len(parts), len(other)),
        )
        parts = parts[:length]
    return parts if len(parts) >= len(root.parts) else root.parts


MASK_FOLDER = Format(
    name="masks", title="images and masks in folders", recognise=recognise_mask_folder, load=load_mask_folder
)
