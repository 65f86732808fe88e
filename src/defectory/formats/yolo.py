"""YOLO segmentation: `data.yaml`, `images/` and `labels/` with normalised polygons."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from defectory.errors import AnnotationError
from defectory.formats.polygons import polygons_to_rle, rle_to_polygons
from defectory.formats.raw import RawDataset, RawImage, RawInstance, Sieve, checked_size_hw
from defectory.imageio import IMAGE_SUFFIXES
from defectory.rle import Rle
from defectory.run import write_text


def load_yolo(data_yaml: Path, *, image_root: Path | None = None, skip_bad: bool = False) -> RawDataset:
    """Load a YOLO segmentation data set; an image without a label file, or with an empty one, is defect-free.

    Raises:
        AnnotationError: the file, or without `skip_bad` any entry, is bad.
    """
    try:
        content = yaml.safe_load(data_yaml.read_text(encoding="utf-8"))
        listed = content["names"]
    except FileNotFoundError:
        raise AnnotationError(data_yaml, "no such file", "check the path") from None
    except (OSError, yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError):
        raise AnnotationError(data_yaml, "no class list 'names'", "give the data.yaml of a YOLO segmentation data set") from None
    names = {int(k): str(v) for k, v in listed.items()} if isinstance(listed, dict) else {i: str(v) for i, v in enumerate(listed)}
    root = image_root or data_yaml.parent / "images"
    labels = data_yaml.parent / "labels"
    if not root.is_dir():
        raise AnnotationError(root, "no such folder of images", "lay images out in images/ or give --image-root")
    sieve = Sieve(skip_bad)
    images: list[RawImage] = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        relative = path.relative_to(root)
        made = sieve.attempt(
            relative.as_posix(), lambda path=path, relative=relative: _image(path, relative, labels / relative.with_suffix(".txt"), names)
        )
        if made is not None:
            images.append(made)
    known = {image.file_name.rsplit(".", 1)[0] for image in images} | {entry.id.rsplit(".", 1)[0] for entry in sieve.rejected}
    for label in sorted(labels.rglob("*.txt")) if labels.is_dir() else []:
        stem = label.relative_to(labels).with_suffix("").as_posix()
        if stem not in known:
            sieve.attempt(label.name, lambda label=label: _raise_orphan(label))
    return RawDataset(class_names=tuple(names[i] for i in sorted(names)), images=tuple(images), rejected=tuple(sieve.rejected))


def save_yolo_label(path: Path, instances: Sequence[tuple[int, Rle]]) -> None:
    """Write one label file: class index (from 0) and the outline of each instance, normalised."""
    lines: list[str] = []
    for class_index, rle in instances:
        height, width = rle.size_hw
        for ring in rle_to_polygons(rle):
            numbers = [value / (width if position % 2 == 0 else height) for position, value in enumerate(ring)]
            lines.append(" ".join([str(class_index), *(f"{number:.6f}" for number in numbers)]))
    write_text(path, "\n".join(lines) + ("\n" if lines else ""))


def _raise_orphan(label: Path) -> None:
    raise AnnotationError(label, "labels without an image", "add the image or remove the file")


def _image(path: Path, relative: Path, label: Path, names: dict[int, str]) -> RawImage:
    size_hw = checked_size_hw(path, None, path)
    height, width = size_hw
    instances: list[RawInstance] = []
    for number, line in enumerate(label.read_text().splitlines() if label.is_file() else [], start=1):
        if not line.strip():
            continue
        where = f"{label}:{number}"
        try:
            class_text, *numbers = line.split()
            class_index, values = int(class_text), [float(value) for value in numbers]
        except ValueError:
            raise AnnotationError(where, "something other than numbers", "export the labels again") from None
        if class_index not in names:
            raise AnnotationError(where, f"class {class_index} is not in data.yaml", "add it to names or correct the label")
        ring = [value * (width if position % 2 == 0 else height) for position, value in enumerate(values)]
        instances.append(RawInstance(class_name=names[class_index], rle=polygons_to_rle([ring], size_hw, where)))
    return RawImage(
        path=path,
        file_name=relative.as_posix(),
        size_hw=size_hw,
        group=relative.with_suffix("").as_posix(),
        instances=tuple(instances),
        is_defect_free=not instances,
    )
