"""Copy images into a data set folder: portable file names, digests, and removal of equal content."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from defectory.errors import AnnotationError, ImageError
from defectory.filenames import file_name_of
from defectory.formats.raw import RawImage, Sieve
from defectory.images.header import IMAGE_SUFFIXES
from defectory.images.load import load_rgb
from defectory.terminal import printable

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Taken:
    """An image in the data set folder.

    Attributes:
        image: the image as it was read from the source.
        file_name: name relative to the data set folder's `images/`.
        sha256: digest of its bytes.
        num_bytes: size of the file.
    """

    image: RawImage
    file_name: str
    sha256: str
    num_bytes: int


def safe_names(names: Sequence[str]) -> list[str]:
    """Return a relative path for each name, in order: valid on every system and distinct regardless of case."""
    files: set[str] = set()
    folders: set[str] = set()
    result: list[str] = []
    for name in names:
        path = _safe_path(name)
        stem, suffix, number = path.stem, path.suffix, 1
        while path.as_posix().casefold() in files | folders or _prefixes(path) & files:
            number += 1
            # if a file has the same name as another file's folder, the folder is renamed
            blocked = bool(_prefixes(path) & files)
            parent = path.parent.with_name(f"{path.parent.name}-{number}") if blocked else path.parent
            path = parent / (path.name if blocked else f"{stem}-{number}{suffix}")
        files.add(path.as_posix().casefold())
        folders |= _prefixes(path)
        result.append(path.as_posix())
    return result


def take(images: Sequence[RawImage], folder: Path, digests: dict[str, str]) -> list[Taken]:
    """Copy images byte for byte into `images/` of a folder.

    Args:
        images: in the order of the data set.
        folder: the data set folder being made.
        digests: receives the sha256 of each file by its name in the folder.

    Raises:
        ImageError: a file cannot be read.
    """
    taken: list[Taken] = []
    for image, name in zip(images, safe_names([image.file_name for image in images]), strict=True):
        sha256, num_bytes = _copied(image.path, folder / "images" / name)
        digests[f"images/{name}"] = sha256
        taken.append(Taken(image=image, file_name=name, sha256=sha256, num_bytes=num_bytes))
    return taken


def without_copies(taken: Sequence[Taken], asked: Collection[Path], sieve: Sieve, where: object) -> list[Taken]:
    """Remove defect-free images that duplicate a labelled image or another defect-free one.

    Args:
        taken: every image.
        asked: paths of the images that the import declares defect-free.
        sieve: receives the images that are left out.
        where: the folder of `asked`, named in errors.

    Raises:
        AnnotationError: an image that the import declares defect-free has the content of a labelled one.
    """
    labelled = [entry for entry in taken if not entry.image.is_defect_free]
    by_content = {entry.sha256: entry for entry in reversed(labelled)}
    of_paths = frozenset(asked)
    _refuse_labelled(
        [entry for entry in taken if entry.image.path in of_paths and entry.image.is_defect_free],
        labelled,
        by_content,
        where,
    )
    kept: list[Taken] = []
    pool: dict[str, Taken] = {}
    twice: dict[str, Taken] = {}
    for entry in taken:
        if not entry.image.is_defect_free:
            if twice.setdefault(entry.sha256, entry) is not entry:
                sieve.remark(
                    f"has the same content as {printable(twice[entry.sha256].file_name)}, and both are labelled",
                    entry.file_name,
                )
        elif entry.sha256 in by_content:
            sieve.remark(
                "listed as defect-free, but has the same content as a labelled image; left out", entry.file_name
            )
            continue
        elif pool.setdefault(entry.sha256, entry) is not entry:
            sieve.remark("a defect-free image has the same content as another one; one is kept", entry.file_name)
            continue
        kept.append(entry)
    return kept


def _refuse_labelled(
    free: Sequence[Taken], labelled: Sequence[Taken], by_content: Mapping[str, Taken], where: object
) -> None:
    same = [(entry, by_content[entry.sha256]) for entry in free if entry.sha256 in by_content]
    same += _same_pixels([entry for entry in free if entry.sha256 not in by_content], labelled)
    if same:
        one, other = same[0]
        some = "1 defect-free image has" if len(same) == 1 else f"{len(same)} defect-free images have"
        raise AnnotationError(
            where,
            f"{some} the content of labelled ones (first: {printable(one.image.path.name)} is "
            f"{printable(other.image.file_name)}, "
            "which has defects)",
            "remove images with defects from this folder",
        )


def _same_pixels(free: Sequence[Taken], labelled: Sequence[Taken]) -> list[tuple[Taken, Taken]]:
    """Return pairs of files with equal pixels and different bytes, for example with a changed date.

    Only files of equal size with images of equal size are compared.
    """
    by_size: dict[tuple[int, tuple[int, int]], list[Taken]] = defaultdict(list)
    for entry in labelled:
        by_size[entry.num_bytes, entry.image.size_hw].append(entry)
    known: dict[Path, str] = {}

    def pixels(entry: Taken) -> str:
        path = entry.image.path
        if path not in known:
            known[path] = hashlib.sha256(np.ascontiguousarray(load_rgb(path)).tobytes()).hexdigest()
        return known[path]

    return [
        (entry, other)
        for entry in free
        for other in by_size.get((entry.num_bytes, entry.image.size_hw), [])
        if pixels(entry) == pixels(other)
    ]


def _copied(source: Path, target: Path) -> tuple[str, int]:
    """Copy a file; return its sha256 and its size in bytes."""
    digest, num_bytes = hashlib.sha256(), 0
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        reader = open(source, "rb")  # noqa: SIM115  # closed below; read and write errors differ
    except OSError as error:
        raise ImageError(
            source, f"cannot be read ({error.strerror or error})", "check the file and its permissions"
        ) from None
    with reader, open(target, "xb") as writer:
        while True:
            try:
                block = reader.read(_CHUNK_BYTES)
            except OSError as error:
                raise ImageError(
                    source, f"cannot be read ({error.strerror or error})", "check the disk it is on"
                ) from None
            if not block:
                return digest.hexdigest(), num_bytes
            digest.update(block)
            num_bytes += len(block)
            writer.write(block)


def _safe_path(name: str) -> PurePosixPath:
    parts = [part for part in unicodedata.normalize("NFC", name).split("/") if part not in ("", ".")]
    last = PurePosixPath(parts[-1])
    is_plain = last.suffix.lower() in IMAGE_SUFFIXES
    file_name = f"{file_name_of(last.stem)}{last.suffix}" if is_plain else file_name_of(parts[-1])
    return PurePosixPath(*map(file_name_of, parts[:-1]), file_name)


def _prefixes(path: PurePosixPath) -> set[str]:
    return {parent.as_posix().casefold() for parent in path.parents if parent.name}
