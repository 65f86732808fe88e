"""COCO instances: one file, or one file per subset of a split, in the layouts of the tools that write them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from defectory.artifacts.annotation import Category, Instance
from defectory.errors import AnnotationError
from defectory.files import write_json
from defectory.formats.coco_schema import CocoAnnotation, CocoFile, CocoImage, read_coco, segmentation_rle
from defectory.formats.fields import shortened
from defectory.formats.imagefinder import ANNOTATION_FOLDERS, ImageFinder, choose_root, unlisted_images
from defectory.formats.lookup import (
    child_folder,
    child_folders,
    group_of,
    is_file,
    is_folder,
    settle_unlabelled,
    subset_of,
)
from defectory.formats.outlines import rle_to_polygons
from defectory.formats.raw import (
    LoadOptions,
    RawDataset,
    RawImage,
    RawInstance,
    Sieve,
    Subset,
    checked_size_hw,
    is_litter,
)
from defectory.formats.registry import Format
from defectory.rle import area_px, box_of
from defectory.textfile import sniff_text

KNOWN_NAMES = (
    "annotations.json",
    "_annotations.coco.json",
    "result.json",
    "instances_default.json",
    "labels.json",
    "coco.json",
)
MANIFEST = "dataset.json"
OWN_LAYOUT = "Defectory data set"
MAX_FILES = 200
"""A folder with more JSON files comes from a tool that writes one per image."""
_KEYS = re.compile(r'"(images|annotations|categories|image_id)"\s*:')


@dataclass(frozen=True, kw_only=True)
class _Source:
    path: Path
    subset: Subset | None = None


def load(path: Path, options: LoadOptions) -> RawDataset:
    """Load a COCO instances file, or a folder with one file or one file per subset of a split.

    A listed image without annotations is defect-free; an image file that is not listed is left out with a remark.

    Raises:
        AnnotationError: the file is bad, or any entry is and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    sieve = Sieve(options.skip_bad)
    sources = _sources(path)
    if not sources:
        raise AnnotationError(
            path, "no COCO instances file in it", f"give the JSON file, or rename it to {KNOWN_NAMES[0]}"
        )
    base = path if is_folder(path) else path.parent
    files = [read_coco(source.path, sieve) for source in sources]
    roots = [options.image_root or _root(source, file) for source, file in zip(sources, files, strict=True)]
    finders = [ImageFinder(root, sieve, follow_links=options.follow_links) for root in roots]
    images: list[RawImage] = []
    for source, file, finder in zip(sources, files, finders, strict=True):
        prefix = _prefix(finder.root, base) if len(set(roots)) > 1 else ""
        images += _images(file, source.subset, finder, prefix, sieve)
    _refuse_same_files(images, path)
    found = {path for finder in finders for path in finder.found}
    images += _unlisted(images, found, {name for file in files for name in file.left_out_names}, base, options, sieve)
    names = dict.fromkeys(name for file in files for name in file.class_names.values())
    return RawDataset(
        class_names=tuple(names),
        images=tuple(images),
        rejected=tuple(sieve.rejected),
        remarks=sieve.remarks,
        layout=_layout(path, sources),
    )


def load_coco(path: Path, *, image_root: Path | None = None, skip_bad: bool = False) -> RawDataset:
    """Load a COCO instances file, as `load` does.

    Args:
        path: JSON file.
        image_root: folder of the image files; None searches the usual places.
        skip_bad: skip bad entries and list them.

    Raises:
        AnnotationError: the file is bad, or any entry is and `skip_bad` is off.
        ImageError: an image is bad and `skip_bad` is off.
    """
    return load(path, LoadOptions(image_root=image_root, skip_bad=skip_bad))


def load_defectory(path: Path, options: LoadOptions) -> RawDataset:
    """Load a data set folder made by `defectory import`.

    Raises:
        AnnotationError: as for `load`.
        ImageError: as for `load`.
    """
    raw = load(path / "annotations.json" if is_folder(path) else path, options)
    return replace(raw, layout=OWN_LAYOUT)


def recognise_defectory(path: Path) -> str | None:
    """Recognise a data set folder of ours by its manifest."""
    return OWN_LAYOUT if is_file(path / MANIFEST) and is_file(path / "annotations.json") else None


def recognise(path: Path) -> str | None:
    """Recognise a COCO instances file, or a folder with one file or one file per subset."""
    sources = _sources(path)
    if sources and path == sources[0].path and not looks_like_coco(path):
        return None
    return _layout(path, sources) if sources else None


def looks_like_coco(path: Path) -> bool:
    """Return whether the first and last kilobytes of a file look like COCO."""
    text = sniff_text(path)
    keys = set(_KEYS.findall(text)) if text.lstrip().startswith("{") else set()
    return "images" in keys or ("annotations" in keys and len(keys) > 1)


def save_coco(
    path: Path,
    categories: Sequence[Category],
    images: Sequence[tuple[int, str, tuple[int, int], Mapping[str, object]]],
    instances: Sequence[tuple[int, Instance]],
    *,
    polygons: bool = False,
    extras: Sequence[Mapping[str, object]] = (),
) -> None:
    """Write a COCO instances file.

    Args:
        path: JSON file.
        categories: classes.
        images: id, file name, size_hw and extra keys of each image.
        instances: image id and instance.
        polygons: write polygons instead of RLE if they reproduce the mask (see `outlines` for when they do not).
        extras: extra keys of each instance; none if empty.
    """
    annotations: list[dict[str, object]] = []
    for number, (image_id, instance) in enumerate(instances, start=1):
        x0, y0, x1, y1 = box_of(instance.rle)
        rle = {"size": list(instance.rle.size_hw), "counts": instance.rle.counts}
        annotations.append(
            {
                "id": number,
                "image_id": image_id,
                "category_id": instance.category_id,
                "segmentation": (rle_to_polygons(instance.rle) if polygons and not instance.is_crowd else []) or rle,
                "area": area_px(instance.rle),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": int(instance.is_crowd),
                **(extras[number - 1] if extras else {}),
            }
        )
    write_json(
        path,
        {
            "info": {"description": "written by defectory"},
            "images": [
                {"id": i, "file_name": name, "height": hw[0], "width": hw[1], **extra} for i, name, hw, extra in images
            ],
            "annotations": annotations,
            "categories": [{"id": category.id, "name": category.name} for category in categories],
        },
    )


def _sources(path: Path) -> list[_Source]:
    """Return the COCO files of a path: the file itself, or those of a folder in a known layout."""
    if not is_folder(path):
        return [_Source(path=path)] if path.suffix.lower() == ".json" else []
    places = [path, *(folder for name in ANNOTATION_FOLDERS if (folder := child_folder(path, [name])) is not None)]
    for place in places:
        found = _chosen(_coco_files(place))
        if found:
            return found
    # Roboflow: one file in the folder of each subset, beside its images
    found = [
        _Source(path=file, subset=subset_of(folder.name))
        for folder in child_folders(path)
        if subset_of(folder.name) is not None
        for file in _coco_files(folder)[:1]
    ]
    if found:
        return found
    images = child_folder(path, ["images"])
    return [] if images is None else _chosen(_coco_files(images))


def _coco_files(folder: Path) -> list[Path]:
    try:
        files = sorted(
            p for p in folder.iterdir() if p.suffix.lower() == ".json" and not is_litter(p.name) and is_file(p)
        )
    except OSError:
        return []
    return [file for file in files if looks_like_coco(file)] if len(files) <= MAX_FILES else []


def _chosen(files: Sequence[Path]) -> list[_Source]:
    """Choose among the COCO files of one folder.

    Instances come before captions and keypoints; the subsets of a split belong together; otherwise a known file name
    decides.
    """
    files = [file for file in files if file.name.lower().startswith("instances")] or list(files)
    subsets = [_subset_in(file.stem) for file in files]
    if len(files) > 1 and None not in subsets and len(set(subsets)) == len(subsets):
        return [_Source(path=file, subset=_subset_in(file.stem)) for file in files]
    known = sorted(
        (file for file in files if file.name.lower() in KNOWN_NAMES),
        key=lambda file: KNOWN_NAMES.index(file.name.lower()),
    )
    return [_Source(path=file) for file in (known or files)[: 1 if known or len(files) == 1 else None]]


def _subset_in(stem: str) -> Subset | None:
    for word in re.split(r"[^a-z]+", stem.lower()):
        subset = subset_of(word)
        if subset is not None:
            return subset
    return None


def _root(source: _Source, file: CocoFile) -> Path:
    hints = [source.path.stem.rsplit("_", 1)[-1], source.subset or "", "valid" if source.subset == "val" else ""]
    return choose_root(source.path.parent, [image.file_name for image in file.images], hints=hints)


def _prefix(root: Path, base: Path) -> str:
    try:
        relative = root.resolve().relative_to(base.resolve()).as_posix()
    except (ValueError, OSError):
        return f"{root.name}/"
    return "" if relative == "." else f"{relative}/"


def _layout(path: Path, sources: Sequence[_Source]) -> str:
    first = sources[0].path
    name = first.name.lower()
    by_name = {"_annotations.coco.json": "Roboflow", "result.json": "Label Studio", "instances_default.json": "CVAT"}
    tool = "FiftyOne" if name == "labels.json" and is_folder(first.parent / "data") else by_name.get(name)
    several = f", {len(sources)} files" if len(sources) > 1 else ""
    place = (
        ""
        if first.parent == path or first == path
        else f" in {first.parent.name}/"
        if len(sources) == 1 or several
        else ""
    )
    if len({source.path.parent for source in sources}) > 1:
        place = " in " + ", ".join(f"{source.path.parent.name}/" for source in sources)
    return f"COCO instances{place}{several}" + (f" ({tool} export)" if tool else "")


def _images(file: CocoFile, subset: Subset | None, finder: ImageFinder, prefix: str, sieve: Sieve) -> list[RawImage]:
    images: list[RawImage] = []
    for entry in file.images:
        listed = file.annotations.get(entry.id, ())
        made = sieve.attempt(
            f"image {entry.id}",
            lambda entry=entry, listed=listed: _image(
                file, entry, listed, finder, sieve, subset=entry.subset or subset, prefix=prefix
            ),
        )
        if made is not None:
            images.append(made)
    return images


def _image(
    file: CocoFile,
    entry: CocoImage,
    annotations: Sequence[CocoAnnotation],
    finder: ImageFinder,
    sieve: Sieve,
    *,
    subset: Subset | None,
    prefix: str,
) -> RawImage:
    where = f"{file.path}: image {shortened(entry.id)}"
    path = finder.find(entry.file_name, where, f"{file.path.name}: image {shortened(entry.id)}")
    size_hw = checked_size_hw(path, entry.stated_hw, where)
    instances: list[RawInstance] = []
    for annotation in annotations:
        made = sieve.attempt(annotation.name, lambda annotation=annotation: _instance(file, annotation, size_hw, sieve))
        if made is not None:
            instances.append(made)
    name = f"{prefix}{path.relative_to(finder.root).as_posix()}"
    return RawImage(
        path=path,
        file_name=name,
        size_hw=size_hw,
        group=group_of(PurePosixPath(name)) if entry.group is None else entry.group,
        instances=tuple(instances),
        is_defect_free=not annotations and entry.id not in file.damaged,
        subset=subset,
    )


def _instance(file: CocoFile, annotation: CocoAnnotation, size_hw: tuple[int, int], sieve: Sieve) -> RawInstance:
    def notice(what: str, detail: str) -> None:
        sieve.remark(what, f"{file.path.name}: {shortened(annotation.name)}{f' ({detail})' if detail else ''}")

    rle = segmentation_rle(annotation, size_hw, f"{file.path}: {shortened(annotation.name)}", notice)
    return RawInstance(class_name=file.class_names[annotation.category_id], rle=rle, is_crowd=annotation.is_crowd)


def _refuse_same_files(images: Sequence[RawImage], path: Path) -> None:
    repeated = [name for name, count in Counter(image.file_name for image in images).items() if count > 1]
    if repeated:
        raise AnnotationError(path, f"{shortened(repeated[0])} is the file of two images", "list each file once")


def _unlisted(
    images: Sequence[RawImage],
    found: Collection[Path],
    left_out: Collection[str | None],
    base: Path,
    options: LoadOptions,
    sieve: Sieve,
) -> list[RawImage]:
    """Handle image files beside the listed ones that are not listed; return those to import as defect-free.

    An image whose entry was skipped still counts as listed; if a skipped entry has no usable name, it may be any file.
    """
    folders = {image.path.parent: PurePosixPath(image.file_name).parent for image in images}
    own_names = {PurePosixPath(name.replace("\\", "/")).name.casefold() for name in left_out if name is not None}
    left = [path for path in unlisted_images(found) if path.parent in folders and path.name.casefold() not in own_names]
    names = [(folders[path.parent] / path.name).as_posix() for path in left]
    may_ask = options.unlabelled != "defect-free" or None not in left_out
    settle_unlabelled(
        [shortened(name) for name in names],
        len(images),
        options if may_ask else replace(options, unlabelled="skip"),
        sieve,
        where=base,
        what="listing in the annotations",
        looked_for="entries of 'images'",
    )
    if options.unlabelled != "defect-free" or not may_ask:
        return []
    added: list[RawImage] = []
    for path, name in zip(left, names, strict=True):
        size_hw = sieve.attempt(name, lambda path=path: checked_size_hw(path, None, path))
        if size_hw is not None:
            group = group_of(PurePosixPath(name))
            added.append(
                RawImage(path=path, file_name=name, size_hw=size_hw, group=group, instances=(), is_defect_free=True)
            )
    return added


DEFECTORY = Format(
    name="defectory",
    title="a data set folder made by defectory import",
    recognise=recognise_defectory,
    load=load_defectory,
)
COCO = Format(
    name="coco",
    title="COCO instances (JSON), also as CVAT, Label Studio, Roboflow and FiftyOne export it",
    recognise=recognise,
    load=load,
)
