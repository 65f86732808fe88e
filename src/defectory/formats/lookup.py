"""Rules that folder formats share for finding what belongs to an image.

They cover usual folder names, masks by stem, subsets of a split, and images for which nothing is found.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.raw import LoadOptions, Rejected, Sieve, Subset, is_litter, walk_files
from defectory.images.header import IMAGE_SUFFIXES
from defectory.terminal import printable

IMAGE_FOLDERS = (
    "images",
    "image",
    "imgs",
    "img",
    "jpegimages",
    "rgb",
    "input",
    "inputs",
    "originals",
    "original",
    "photos",
)
MASK_FOLDERS = (
    "masks",
    "mask",
    "labels",
    "label",
    "ground_truth",
    "groundtruth",
    "gt",
    "gts",
    "annotations",
    "annotation",
    "segmentationclass",
    "segmentation",
    "seg",
    "targets",
    "target",
)
GOOD_NAMES = frozenset(
    {
        "good",
        "ok",
        "normal",
        "defect-free",
        "defect_free",
        "defectfree",
        "defect free",
        "no defect",
        "no_defect",
        "no-defect",
        "nodefect",
        "non-defective",
        "non_defective",
        "nondefective",
        "clean",
        "fine",
    }
)
MASK_SUFFIXES = (
    "_mask",
    "-mask",
    ".mask",
    "_masks",
    "_label",
    "-label",
    "_labels",
    "_gt",
    "-gt",
    ".gt",
    "_seg",
    "-seg",
    "_segmentation",
    "_groundtruth",
)
MASK_PREFIXES = ("mask_", "mask-", "label_", "gt_", "seg_")
NUMBERED = re.compile(r"(.+?)(?:[_-](?:inst|instance|obj|object))?[_-]\d{1,6}")
SUBSETS: Mapping[str, Subset] = {
    "train": "train",
    "training": "train",
    "trn": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
    "tst": "test",
}


def is_good(text: str) -> bool:
    """Return whether a folder name or a cell means that an image is free of defects."""
    return text.strip().lower() in GOOD_NAMES


def subset_of(text: str) -> Subset | None:
    """Return the subset of a split that a folder name or a cell stands for, or None."""
    return SUBSETS.get(text.strip().lower())


def subset_of_path(relative: PurePosixPath) -> Subset | None:
    """Return the subset that the first folder of a relative path with such a name stands for, or None."""
    return next((subset for subset in map(subset_of, relative.parts[:-1]) if subset is not None), None)


def group_of(relative: PurePosixPath) -> str:
    """Return the group of an image without a stated one: its relative path without suffix.

    Copies that Roboflow made of one image (`name_jpg.rf.<digest>.jpg`) are one group within their folder.
    """
    stem = relative.with_suffix("").as_posix() if relative.name else relative.as_posix()
    found = re.fullmatch(r"(.+)\.rf\.[0-9A-Za-z]{16,64}", stem)
    return found[1] if found else stem


def stem_key(text: str) -> str:
    """Return a stem in a form for comparison: composed letters, lower case."""
    return unicodedata.normalize("NFC", text).casefold()


def child_folder(root: Path, names: Sequence[str]) -> Path | None:
    """Return the folder in `root` with the first of these names, in any case, or None."""
    found = {folder.name.lower(): folder for folder in reversed(child_folders(root))}
    return next((found[name] for name in names if name in found), None)


def child_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, without litter; empty if it cannot be read."""
    try:
        return sorted(path for path in root.iterdir() if not is_litter(path.name) and is_folder(path))
    except OSError:
        return []


def is_folder(path: Path) -> bool:
    """Return whether a path is a folder; False if the lookup fails, for example because a name is too long."""
    return os.path.isdir(path)  # noqa: PTH112  # Path.is_dir raises for names that are too long


def is_file(path: Path) -> bool:
    """Return whether a path is a regular file; False if the lookup fails."""
    return os.path.isfile(path)  # noqa: PTH113  # Path.is_file raises for names that are too long


def files_with(folder: Path, suffixes: Iterable[str], options: LoadOptions, sieve: Sieve) -> list[Path]:
    """Return the files under a folder with one of these suffixes in any case.

    Skipped links get a remark; unusable names are rejected.

    Raises:
        AnnotationError: a folder cannot be read, or a name is unusable and `skip_bad` is off.
    """
    wanted = frozenset(suffixes)
    found: list[Path] = []
    for path in walk_files(folder, follow_links=options.follow_links):
        if path.suffix.lower() in wanted:
            named = sieve.attempt(shown(path, folder), lambda path=path: _checked_name(path, folder))
            found += [] if named is None else [named]
    if not options.follow_links:
        for link in _links(folder, wanted):
            sieve.remark("a link, skipped; --follow-links reads it", shown(link, folder))
    return found


def images_in(folder: Path, options: LoadOptions, sieve: Sieve) -> list[Path]:
    """Return the image files under a folder, as `files_with` does."""
    return files_with(folder, IMAGE_SUFFIXES, options, sieve)


def shown(path: Path, root: Path) -> str:
    """Return a path relative to the source, for remarks and messages, as one printable line."""
    try:
        path = path.relative_to(root)
    except ValueError:
        path = Path(path.name)
    return printable(os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace"))


def _checked_name(path: Path, folder: Path) -> Path:
    relative = path.relative_to(folder).as_posix()
    try:
        relative.encode("utf-8")
    except UnicodeEncodeError:
        raise AnnotationError(shown(path, folder), "the file's name is not valid UTF-8", "rename the file") from None
    if any(unicodedata.category(character) == "Cc" for character in relative):
        raise AnnotationError(shown(path, folder), "the file's name holds a control character", "rename the file")
    return path


def _links(folder: Path, suffixes: frozenset[str]) -> Iterable[Path]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_litter(name)]
        for name in [*folders, *files]:
            path = Path(place) / name
            if not is_litter(name) and path.is_symlink() and (path.suffix.lower() in suffixes or is_folder(path)):
                yield path


@dataclass
class MaskIndex:
    """The mask files under a folder, found by the relative stem of an image: equal stems first, then with affixes.

    Affixes are the usual suffixes and prefixes.
    """

    root: Path
    files: Sequence[Path]
    _exact: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _dressed: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _numbered: dict[str, list[Path]] = field(default_factory=lambda: defaultdict(list))
    _used: set[Path] = field(default_factory=set)
    _with_numbers: set[PurePosixPath] = field(default_factory=set)
    _shared: dict[Path, tuple[PurePosixPath, PurePosixPath]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for path in self.files:
            relative = path.relative_to(self.root)
            folder = stem_key(relative.parent.as_posix())
            stem = stem_key(relative.stem)
            self._exact[f"{folder}/{stem}"].append(path)
            for bare in bare_stems(stem):
                self._dressed[f"{folder}/{bare}"].append(path)
            numbered = NUMBERED.fullmatch(stem)
            for bare in [numbered[1], *bare_stems(numbered[1])] if numbered else []:
                self._numbered[f"{folder}/{bare}"].append(path)

    def claim(self, relatives: Iterable[PurePosixPath], *, numbered: bool = False) -> dict[PurePosixPath, list[Path]]:
        """Return the mask files of each image by its relative path; every mask file is assigned to one image.

        Equal stems are assigned first, so that `a_mask.png` is the mask of an image `a_mask` rather than of `a`.

        Args:
            relatives: paths of the images relative to their own folder.
            numbered: also accept several masks `<stem>_0.png`, `<stem>_1.png` and so on for an image.
        """
        relatives = list(relatives)
        found: dict[PurePosixPath, list[Path]] = {}
        ways: list[Callable[[PurePosixPath], list[Path]]] = [
            lambda relative: [
                path for path in self._exact.get(self._key(relative, relative.stem), []) if path.stem == relative.stem
            ],
            lambda relative: self._exact.get(self._key(relative, relative.stem), []),
            lambda relative: self._exact.get(self._key(relative, relative.name), []),
            lambda relative: self._dressed.get(self._key(relative, relative.stem), []),
        ]
        if numbered:
            ways.append(lambda relative: self._numbered.get(self._key(relative, relative.stem), []))
        owners: dict[Path, PurePosixPath] = {}
        for number, way in enumerate(ways):
            taken = frozenset(owners)
            for relative in relatives:
                masks = [path for path in way(relative) if path not in taken]
                # a mask with a suffix beside one with the same stem is a second candidate, reported by `one_of`
                if masks and (number < 4 or relative not in found):
                    if number == 4:
                        self._with_numbers.add(relative)
                    found.setdefault(relative, []).extend(masks)
                    for path in masks:
                        if owners.setdefault(path, relative) != relative:
                            self._shared[path] = (owners[path], relative)
        self._used |= set(owners)
        return found

    def is_numbered(self, relative: PurePosixPath) -> bool:
        """Return whether an image has claimed masks by their numbers."""
        return relative in self._with_numbers

    def refuse_shared(self, masks: Sequence[Path], image: str) -> None:
        """Check that no mask is claimed by two images of the same stem.

        Raises:
            AnnotationError: one of the masks is shared.
        """
        for path in masks:
            if path in self._shared:
                one, other = self._shared[path]
                raise AnnotationError(
                    image,
                    f"the images {printable(one)} and {printable(other)} share the mask {path.name}",
                    "give images of a folder distinct names",
                )

    @property
    def orphans(self) -> list[Path]:
        """Return the mask files that no image has claimed."""
        return [path for path in self.files if path not in self._used]

    def _key(self, relative: PurePosixPath, stem: str) -> str:
        return f"{stem_key(relative.parent.as_posix())}/{stem_key(stem)}"


def bare_stems(stem: str) -> list[str]:
    """Return the possible image stems of a mask's stem: it without the usual suffixes and prefixes."""
    bare = [stem[: -len(suffix)] for suffix in MASK_SUFFIXES if stem.endswith(suffix) and len(stem) > len(suffix)]
    return bare + [
        stem[len(prefix) :] for prefix in MASK_PREFIXES if stem.startswith(prefix) and len(stem) > len(prefix)
    ]


def one_of(masks: Sequence[Path], image: str, root: Path) -> Path:
    """Return the only mask of an image.

    Raises:
        AnnotationError: there are several.
    """
    if len(masks) > 1:
        listed = ", ".join(shown(path, root) for path in masks[:4])
        raise AnnotationError(image, f"{len(masks)} masks may be its own: {listed}", "keep one of them")
    return masks[0]


def refuse_orphans(masks: Sequence[Path], root: Path, sieve: Sieve, *, what: str = "mask", hint: str = "") -> None:
    """Report masks or label files without an image: as one error, or as rejections if `skip_bad` is on.

    Raises:
        AnnotationError: there are some, and `skip_bad` is off.
    """
    if not masks:
        return
    if sieve.skip_bad:
        sieve.rejected += [
            Rejected(id=shown(path, root), reason=f"{shown(path, root)}: a {what} without an image") for path in masks
        ]
        return
    more = f" ({len(masks)} such {what}s)" if len(masks) > 1 else ""
    raise AnnotationError(
        shown(masks[0], root), f"a {what} without an image{more}{hint}", f"add the image or remove the {what}"
    )


def settle_unlabelled(
    names: Sequence[str],
    num_labelled: int,
    options: LoadOptions,
    sieve: Sieve,
    *,
    where: object,
    what: str,
    looked_for: str,
) -> None:
    """Handle images for which nothing was found: leave them out or take them as defect-free, with a remark, or stop.

    Args:
        names: names of these images, relative to the source.
        num_labelled: number of images in the set that are labelled.
        options: `unlabelled` decides.
        sieve: receives the remark.
        where: named in errors.
        what: what the images lack, for example `mask`.
        looked_for: names that were tried, for the user.

    Raises:
        AnnotationError: the images are to be refused, or no image has a label and the import does not ask for
            defect-free images.
    """
    if not names:
        return
    first, many = names[0], "1 image has" if len(names) == 1 else f"{len(names)} images have"
    if options.unlabelled == "defect-free":
        sieve.remark(
            f"{many} no {what} (first: {first}) and {'is' if len(names) == 1 else 'are'} taken as defect-free, as "
            "requested"
        )
    elif num_labelled == 0:
        raise AnnotationError(
            where,
            f"no image has a {what} (first of {len(names)}: {first}; looked for {looked_for})",
            f"check where the {what}s lie",
        )
    elif options.unlabelled == "refuse":
        raise AnnotationError(
            where,
            f"{many} no {what} (first: {first}; looked for {looked_for})",
            f"add the {what}s, or give --unlabelled defect-free or --unlabelled skip",
        )
    else:
        left = "1 image" if len(names) == 1 else f"{len(names)} images"
        sieve.remark(
            f"{left} without a {what} left out (first: {first}; looked for {looked_for}); "
            "--unlabelled defect-free takes such images as defect-free, --unlabelled refuse stops"
        )


def find_images_by_name(root: Path, options: LoadOptions, sieve: Sieve) -> dict[str, Path]:
    """Return the images under a folder by relative path and by file name, both with and without suffix.

    Ambiguous names are left out.

    Raises:
        AnnotationError: as for `files_with`.
    """
    exact: dict[str, Path] = {}
    shorter: dict[str, set[Path]] = defaultdict(set)
    for path in images_in(root, options, sieve):
        relative = PurePosixPath(unicodedata.normalize("NFC", path.relative_to(root).as_posix()))
        exact[relative.as_posix()] = path
        for name in (relative.name, relative.with_suffix("").as_posix(), relative.stem):
            shorter[name].add(path)
    return {name: next(iter(paths)) for name, paths in shorter.items() if len(paths) == 1} | exact
