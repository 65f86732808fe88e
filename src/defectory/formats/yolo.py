"""YOLO segmentation: `data.yaml` or `classes.txt`, images, and label files with normalised polygons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath

from defectory.errors import AnnotationError
from defectory.formats.lookup import files_with, group_of, is_file, is_folder, refuse_orphans, settle_unlabelled, shown
from defectory.formats.masked import replaced_subset, without_useless_subsets
from defectory.formats.polygons import polygons_to_rle
from defectory.formats.raw import LoadOptions, RawDataset, RawImage, RawInstance, Sieve, checked_size_hw, walk_files
from defectory.formats.registry import Format
from defectory.formats.yolo_places import FoundImages, find_images, find_labels, find_root, image_of_label
from defectory.formats.yolo_yaml import DataYaml, load_data_yaml, names_of
from defectory.textfile import read_text_file

YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
CLASS_LISTS = ("classes.txt", "labels/classes.txt", "obj.names", "class_names.txt", "train/labels/classes.txt")
NO_LABELS = frozenset(
    {
        "classes.txt",
        "class_names.txt",
        "readme.txt",
        "readme.dataset.txt",
        "readme.roboflow.txt",
        "notes.txt",
        "requirements.txt",
        "train.txt",
        "val.txt",
        "valid.txt",
        "test.txt",
        "labels.txt",
        "predefined_classes.txt",
        "license.txt",
        "autosplit_train.txt",
        "autosplit_val.txt",
        "autosplit_test.txt",
    }
)
MAX_LABEL_BYTES = 50_000_000
MAX_OUTLINES = 20_000
LOOKED_AT_FILES = 5_000


def recognise_yolo(path: Path) -> str | None:
    """Return the layout in words if a path is in YOLO format, else None.

    It is if it is a `data.yaml`, or a folder with one or with `classes.txt` and label files.
    """
    if not is_folder(path):
        return (
            f"YOLO segmentation ({path.name})"
            if path.suffix.lower() in (".yaml", ".yml") and _lists_names(path)
            else None
        )
    found = _yaml_in(path)
    if found is not None:
        return f"YOLO segmentation ({found.name})"
    listed = _class_list_in(path)
    return (
        f"YOLO segmentation ({listed.relative_to(path).as_posix()})"
        if listed is not None and _holds_labels(path)
        else None
    )


def load_yolo(path: Path, options: LoadOptions) -> RawDataset:
    """Load a YOLO segmentation data set.

    `train`, `val` and `test` of `data.yaml` are folders, lists of folders or lists of images. Labels lie in the path
    with its last `images` replaced by `labels`, or beside the images. An empty label file means that an image is free
    of defects.

    Raises:
        AnnotationError: the file is bad, or any entry is and `skip_bad` is off.
        ImageError: an image is unreadable.
    """
    source = path if not is_folder(path) else _yaml_in(path)
    sieve = Sieve(options.skip_bad)
    if source is not None:
        data = load_data_yaml(source)
        if data.stated_count is not None and data.stated_count != len(data.names):
            sieve.remark(
                f"nc is {data.stated_count}, names lists {len(data.names)} classes; names is used", source.name
            )
    else:
        listed = _class_list_in(path)
        if listed is None:
            raise AnnotationError(
                path, "no data.yaml and no classes.txt in it", "give the data.yaml of a YOLO data set"
            )
        lines = [line.strip() for line in read_text_file(listed).text.split("\n")]
        listed_names = names_of([line for line in lines if line], listed)
        data = DataYaml(path=listed, names=listed_names, stated_count=None, root="", subsets={})
    folder = path if is_folder(path) else path.parent
    root = find_root(data, folder, sieve)
    found = find_images(data, root, options, sieve)
    if not found.subsets:
        raise AnnotationError(
            path, "no image file in the folders that it lists", "check path, train and val, or give --image-root"
        )
    names = found.names(options.image_root or root)
    labels = {image: find_labels(image, root, options) for image in names}
    images = _read(root, data, found, names, labels, options, sieve)
    _refuse_orphan_labels(root, labels, options, sieve)
    used = {instance.class_name for image in images for instance in image.instances}
    return RawDataset(
        class_names=tuple(
            data.names[number] for number in sorted(data.names) if data.names[number] in used or len(data.names) == 1
        ),
        images=tuple(images),
        rejected=tuple(sieve.rejected),
        remarks=sieve.remarks,
        layout=f"YOLO segmentation ({data.path.name})",
    )


def _read(
    root: Path,
    data: DataYaml,
    found: FoundImages,
    names: Mapping[Path, str],
    labels: Mapping[Path, Sequence[Path]],
    options: LoadOptions,
    sieve: Sieve,
) -> list[RawImage]:
    unlabelled = [path for path in names if not labels[path]]
    settle_unlabelled(
        [names[path] for path in unlabelled],
        len(names) - len(unlabelled),
        options,
        sieve,
        where=data.path,
        what="label file",
        looked_for="its name with .txt in labels/ in place of images/, and beside it",
    )
    several = any(len(subsets) > 1 for subsets in found.subsets.values())
    if several:
        sieve.remark(
            "train, val and test list the same images, so the data set has no split of its own", data.path.name
        )
    images: list[RawImage] = []
    for path, name in names.items():
        if not labels[path] and options.unlabelled != "defect-free":
            continue
        subset = None if several else next(iter(found.subsets[path]), None)
        made = sieve.attempt(name, partial(_image, path, name, labels[path], data, root, sieve))
        if made is not None:
            images.append(replaced_subset(made, subset))
    return without_useless_subsets(images, sieve)


def _image(path: Path, name: str, labels: Sequence[Path], data: DataYaml, root: Path, sieve: Sieve) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    if len(labels) > 1:
        listed = ", ".join(shown(label, root) for label in labels)
        raise AnnotationError(shown(path, root), f"{len(labels)} label files that differ: {listed}", "keep one of them")
    instances = _instances(labels[0], data, size_hw, shown(labels[0], root), sieve) if labels else []
    return RawImage(
        path=path,
        file_name=name,
        size_hw=size_hw,
        group=group_of(PurePosixPath(name)),
        instances=tuple(instances),
        is_defect_free=not instances,
    )


def _instances(label: Path, data: DataYaml, size_hw: tuple[int, int], name: str, sieve: Sieve) -> list[RawInstance]:
    if label.stat().st_size > MAX_LABEL_BYTES:
        raise AnnotationError(name, f"label file of {label.stat().st_size / 1e6:.0f} MB", "export the labels again")
    height, width = size_hw
    instances: list[RawInstance] = []
    for number, line in enumerate(read_text_file(label).text.split("\n"), start=1):
        where = f"{name}:{number}"
        words = line.replace(",", " ").split()
        if not words:
            continue
        if len(instances) >= MAX_OUTLINES:
            raise AnnotationError(
                where, f"more than {MAX_OUTLINES:,} outlines for one image", "export the labels again"
            )
        try:
            class_number, *values = [float(word) for word in words]
        except ValueError:
            raise AnnotationError(where, "something other than numbers", "export the labels again") from None
        if not class_number.is_integer() or int(class_number) not in data.names:
            raise AnnotationError(
                where, f"class {words[0][:20]} is not in {data.path.name}", "add it to names or correct the label"
            )
        if len(values) in (4, 5):
            raise AnnotationError(
                where,
                "a box (class, x, y, width, height), not an outline: these are labels for detection",
                "export labels for segmentation",
            )
        if len(values) >= 6 and len(values) % 2 == 0 and max(map(abs, values)) > 2 and max(values) > 2:
            raise AnnotationError(
                where, f"coordinates up to {max(values):g}, but 0 to 1 is expected", "export normalised coordinates"
            )
        ring = [value * (width if position % 2 == 0 else height) for position, value in enumerate(values)]
        rle = polygons_to_rle([ring], size_hw, where, notice=partial(_notice, sieve, where))
        instances.append(RawInstance(class_name=data.names[int(class_number)], rle=rle))
    return instances


def _notice(sieve: Sieve, where: str, what: str, detail: str) -> None:  # noqa: ARG001  # unused in YOLO
    sieve.remark(what, where)


def _refuse_orphan_labels(
    root: Path, labels: Mapping[Path, Sequence[Path]], options: LoadOptions, sieve: Sieve
) -> None:
    """Report label files that belong to no image of the set, in the folders with the set's labels."""
    used = {label for found in labels.values() for label in found}
    folders = {label.parent for label in used}
    left: list[Path] = []
    for folder in sorted(folders):
        left += [
            path
            for path in files_with(folder, [".txt"], options, sieve)
            if path not in used and path.name.lower() not in NO_LABELS
        ]
    # a set may list only part of its images; a label whose image file exists is not without an image
    orphans = [path for path in dict.fromkeys(left) if image_of_label(path, root) is None and _looks_like_labels(path)]
    refuse_orphans(orphans, root, sieve, what="label file")


def _looks_like_labels(path: Path) -> bool:
    """Return whether a text file is empty or begins with a class number and coordinates."""
    try:
        with open(path, "rb") as stream:
            words = stream.read(4096).decode("utf-8-sig", "replace").split("\n")[0].split()
        return not words or all(float(word) >= -10 for word in words[:5])
    except (OSError, ValueError):
        return False


def _holds_labels(folder: Path) -> bool:
    try:
        texts = [
            path
            for path in islice(walk_files(folder, follow_links=True), LOOKED_AT_FILES)
            if path.suffix.lower() == ".txt"
        ]
    except AnnotationError:
        return False
    return any(
        _looks_like_labels(path) and path.stat().st_size > 0 for path in texts if path.name.lower() not in NO_LABELS
    )


def _yaml_in(folder: Path) -> Path | None:
    found = next((folder / name for name in YAML_NAMES if is_file(folder / name) and _lists_names(folder / name)), None)
    if found is not None:
        return found
    try:
        files = [
            path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() in (".yaml", ".yml") and is_file(path) and _lists_names(path)
        ]
    except OSError:
        return None
    return files[0] if len(files) == 1 else None


def _lists_names(path: Path) -> bool:
    """Return whether a YAML file has a top-level key `names`, without parsing it; also in UTF-16."""
    try:
        with open(path, "rb") as stream:
            head = stream.read(1_000_000).replace(b"\0", b"")
    except OSError:
        return False
    return b"names" in head


def _class_list_in(folder: Path) -> Path | None:
    return next((folder / name for name in CLASS_LISTS if is_file(folder / name)), None)


YOLO = Format(name="yolo", title="YOLO segmentation", recognise=recognise_yolo, load=load_yolo)
