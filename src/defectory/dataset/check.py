"""The command `check`: count what a data set contains, list its problems and draw a contact sheet."""

from __future__ import annotations

import heapq
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import Dataset, ImageRecord, image_path
from defectory.artifacts.value import Value
from defectory.drawing import contact_sheet, draw_outlines, fitted_size_hw
from defectory.errors import ImageError, InputError
from defectory.files import digest_file, reason_of
from defectory.formats.raw import RawDataset
from defectory.geometry import resize_crop
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.images.valuerange import ValueRange
from defectory.rle import Rle, area_px, decode_crop
from defectory.terminal import printable

OUTLINE = (255, 40, 40)
TOO_SMALL_PX = 9
"""Instances with a smaller area are reported as problems, because nothing can be learned from them."""
MAX_SHOWN = 5
"""Maximum number of problems of one kind to list; the rest are counted."""
MAX_ROWS = 40
"""Maximum number of rows of a contact sheet; with more classes, those with the most images are shown."""
CELL_PX = 160
NUM_THREADS = 4
"""Number of threads that hash files; hashing releases the interpreter lock."""


class CheckReport(Value):
    """Counts, sizes (pixels) and problems of a data set."""

    num_images: int
    num_defect_free: int
    num_instances: int
    num_groups: int
    instances_per_class: dict[str, int]
    images_per_class: dict[str, int]
    sizes_hw: dict[str, int]
    """Number of images per `height x width`, the most frequent first."""
    area_quantiles_px: dict[str, float]
    remarks: tuple[str, ...] = ()
    """Remarks from the import."""
    problems: tuple[str, ...]
    """Problems found now; for many problems of one kind, the first few and the number of others."""


class _Problems:
    """Problems by kind, in order of first occurrence."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._counts: Counter[str] = Counter()

    def add(self, kind: str, line: str) -> None:
        """Add a problem; `kind` is the plural phrase for further problems of this kind."""
        self._counts[kind] += 1
        lines = self._lines.setdefault(kind, [])
        if len(lines) < MAX_SHOWN:
            lines.append(printable(line))

    def lines(self) -> tuple[str, ...]:
        """Return one line for each of the first problems of every kind, and one for the remaining ones."""
        told: list[str] = []
        for kind, lines in self._lines.items():
            more = self._counts[kind] - len(lines)
            told += [*lines, *([f"{more} more {kind}"] if more else [])]
        return tuple(told)


def check_dataset(folder: Path, dataset: Dataset) -> CheckReport:
    """Compare every image with its imported state, and count what the data set contains.

    A file whose bytes did not change since the import is not decoded again; masks are never decoded.

    Args:
        folder: data set folder.
        dataset: its value.
    """
    problems = _Problems()
    areas: list[int] = []
    instances: Counter[str] = Counter()
    images: Counter[str] = Counter()
    first_of: dict[str, str] = {}
    names = {category.id: category.name for category in dataset.categories}
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        digests = list(pool.map(lambda record: _digest(image_path(folder, record)), dataset.images))
    for record, digest in zip(dataset.images, digests, strict=True):
        if isinstance(digest, ImageError):
            problems.add("images that cannot be read", str(digest))
        else:
            if digest != record.sha256:
                _check_changed(folder, record, dataset.value_range, problems)
            if digest in first_of:
                problems.add(
                    "images whose file is the same as another one's",
                    f"{record.file_name}: the same file as {first_of[digest]}",
                )
            first_of.setdefault(digest, record.file_name)
        for instance in record.instances:
            name = names.get(instance.category_id, f"class {instance.category_id}")
            instances[name] += 1
            area = _checked_area(record, instance, name, problems)
            if area is not None:
                areas.append(area)
        images.update({names[i.category_id] for i in record.instances if i.category_id in names})
    for category in dataset.categories:
        if instances[category.name] == 0:
            problems.add("classes without instances", f"class {category.name} has no instance")
    sizes = Counter(f"{record.size_hw[0]} x {record.size_hw[1]}" for record in dataset.images)
    quantiles = (
        {f"{share:.0%}": float(np.quantile(areas, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)} if areas else {}
    )
    return CheckReport(
        num_images=len(dataset.images),
        num_defect_free=sum(record.is_defect_free for record in dataset.images),
        num_instances=sum(len(record.instances) for record in dataset.images),
        num_groups=len({record.group for record in dataset.images}),
        instances_per_class={c.name: instances[c.name] for c in dataset.categories},
        images_per_class={c.name: images[c.name] for c in dataset.categories},
        sizes_hw=dict(sizes.most_common(8)),
        area_quantiles_px=quantiles,
        remarks=dataset.remarks,
        problems=problems.lines(),
    )


def count_source(raw: RawDataset) -> CheckReport:
    """Count what a data set contains that was read but not imported; its rejected entries are the problems."""
    instances = Counter(instance.class_name for image in raw.images for instance in image.instances)
    images = Counter(name for image in raw.images for name in {instance.class_name for instance in image.instances})
    sizes = Counter(f"{image.size_hw[0]} x {image.size_hw[1]}" for image in raw.images)
    return CheckReport(
        num_images=len(raw.images),
        num_defect_free=sum(image.is_defect_free for image in raw.images),
        num_instances=instances.total(),
        num_groups=len({image.group for image in raw.images}),
        instances_per_class={name: instances[name] for name in raw.class_names},
        images_per_class={name: images[name] for name in raw.class_names},
        sizes_hw=dict(sizes.most_common(8)),
        area_quantiles_px={},
        remarks=raw.remarks,
        problems=tuple(f"{entry.id}: {entry.reason}" for entry in raw.rejected),
    )


def _digest(path: Path) -> str | ImageError:
    try:
        return digest_file(path)
    except OSError as error:
        return ImageError(path, f"cannot be read ({reason_of(error)})", "import the data again")
    except ValueError as error:  # a NUL byte in an edited name
        return ImageError(path, f"is not a valid file name ({error})", "import the data again")


def _check_changed(folder: Path, record: ImageRecord, value_range: ValueRange | None, problems: _Problems) -> None:
    try:
        size_hw = load_rgb(image_path(folder, record), value_range).shape[:2]
    except InputError as error:
        problems.add("images that cannot be read", str(error))
        return
    if size_hw == record.size_hw:
        problems.add("images whose bytes changed since import", f"{record.file_name}: bytes changed since import")
    else:
        (height, width), (was_height, was_width) = size_hw, record.size_hw
        found = f"size changed since import, from {was_height} x {was_width} to {height} x {width}"
        problems.add("images whose size changed since import", f"{record.file_name}: {found}")


def _checked_area(record: ImageRecord, instance: Instance, name: str, problems: _Problems) -> int | None:
    """Return an instance's area in pixels; None if its mask is damaged."""
    try:
        area = area_px(instance.rle)
    except ValueError as error:
        problems.add("masks that are damaged", f"{record.file_name}: the mask of a {name} is damaged ({error})")
        return None
    if instance.rle.size_hw != record.size_hw:
        problems.add(
            "masks of another size than their image",
            f"{record.file_name}: the mask of a {name} is not of the image's size",
        )
    if area < TOO_SMALL_PX:
        problems.add(
            f"instances under {TOO_SMALL_PX} px", f"{record.file_name}: {name} of {area} px, too small to learn from"
        )
    return area


def write_contact_sheet(folder: Path, dataset: Dataset, out: Path, *, per_class: int = 8) -> None:
    """Write a PNG with some images of every class, instances outlined, and some defect-free images.

    Only the images shown are read, one at a time. An image that cannot be read is drawn as a grey cell.

    Args:
        folder: data set folder.
        dataset: its value.
        out: PNG file.
        per_class: number of images per class, sampled evenly over the data set.
    """
    shown = [
        (title, record)
        for title, records in _rows(dataset)
        for record in records[:: max(1, len(records) // per_class)][:per_class]
    ]
    cell_of = {
        record.id: _cell(folder, record, dataset.value_range)
        for record in {record.id: record for _, record in shown}.values()
    }
    cells = [cell_of[record.id] for _, record in shown]
    labels = [f"{title} {record.file_name}" for title, record in shown]
    save_png(out, contact_sheet(cells, columns=per_class, labels=labels, cell_px=CELL_PX), software=True)


def _rows(dataset: Dataset) -> list[tuple[str, list[ImageRecord]]]:
    of_class: dict[int, list[ImageRecord]] = {category.id: [] for category in dataset.categories}
    for record in dataset.images:
        for category_id in {instance.category_id for instance in record.instances} & of_class.keys():
            of_class[category_id].append(record)
    free = [record for record in dataset.images if record.is_defect_free]
    most = heapq.nlargest(
        MAX_ROWS - 1, dataset.categories, key=lambda category: (len(of_class[category.id]), -category.id)
    )
    shown: list[Category] = sorted(most, key=lambda category: category.id)
    return [*((category.name, of_class[category.id]) for category in shown), ("defect-free", free)]


def _cell(folder: Path, record: ImageRecord, value_range: ValueRange | None) -> NDArray[np.uint8]:
    """Return an image at the size of its cell; outlines are drawn at that size, so that they stay visible."""
    import cv2

    height, width = size_hw = fitted_size_hw(record.size_hw, CELL_PX)
    try:
        image = load_rgb(image_path(folder, record), value_range)
    except InputError:
        return np.full((height, width, 3), 128, np.uint8)
    is_shrunk = height < image.shape[0]
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if is_shrunk else cv2.INTER_NEAREST).astype(
        np.uint8
    )
    for instance in record.instances:
        small = draw_outlines(small, [(OUTLINE, _small_mask(instance.rle, size_hw))])
    return small


def _small_mask(rle: Rle, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    mask = np.zeros(size_hw, bool)
    try:
        crop, (x, y) = decode_crop(rle)
    except ValueError:  # reported by the check
        return mask
    crop, (y, x) = resize_crop(crop, (y, x), rle.size_hw, size_hw)
    mask[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    return mask
