"""`check`: what a data set holds, what is wrong with it, and a contact sheet."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from defectory.artifacts.dataset import Dataset, image_path
from defectory.artifacts.value import Value
from defectory.drawing import contact_sheet, draw_outlines
from defectory.errors import InputError
from defectory.imageio import load_rgb, save_png
from defectory.rle import area_px, decode
from defectory.run import digest_file

OUTLINE = (255, 40, 40)


class CheckReport(Value):
    """Counts, sizes (pixels) and problems of a data set."""

    num_images: int
    num_defect_free: int
    num_instances: int
    num_groups: int
    instances_per_class: dict[str, int]
    images_per_class: dict[str, int]
    sizes_hw: dict[str, int]
    """Images per `height x width`, the commonest first."""
    area_quantiles_px: dict[str, float]
    problems: tuple[str, ...]


def check_dataset(folder: Path, dataset: Dataset) -> CheckReport:
    """Read every image again and count what is there.

    Args:
        folder: data set folder.
        dataset: its value.
    """
    problems: list[str] = []
    areas: list[int] = []
    instances: Counter[str] = Counter()
    images: Counter[str] = Counter()
    digests: dict[str, str] = {}
    for record in dataset.images:
        path = image_path(folder, record)
        try:
            if load_rgb(path).shape[:2] != record.size_hw:
                problems.append(f"{record.file_name}: size changed since import")
            digest = digest_file(path)
            if digest != record.sha256:
                problems.append(f"{record.file_name}: bytes changed since import")
            if digest in digests:
                problems.append(f"{record.file_name}: the same file as {digests[digest]}")
            digests.setdefault(digest, record.file_name)
        except InputError as error:
            problems.append(str(error))
        for instance in record.instances:
            name = dataset.category_name(instance.category_id)
            instances[name] += 1
            areas.append(area_px(instance.rle))
            if areas[-1] < 9:
                problems.append(f"{record.file_name}: {name} of {areas[-1]} px, too small to learn from")
        images.update({dataset.category_name(i.category_id) for i in record.instances})
    problems += [f"class {category.name} has no instance" for category in dataset.categories if instances[category.name] == 0]
    sizes = Counter(f"{record.size_hw[0]} x {record.size_hw[1]}" for record in dataset.images)
    quantiles = {f"{share:.0%}": float(np.quantile(areas, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95)} if areas else {}
    return CheckReport(
        num_images=len(dataset.images),
        num_defect_free=sum(record.is_defect_free for record in dataset.images),
        num_instances=len(areas),
        num_groups=len({record.group for record in dataset.images}),
        instances_per_class={c.name: instances[c.name] for c in dataset.categories},
        images_per_class={c.name: images[c.name] for c in dataset.categories},
        sizes_hw=dict(sizes.most_common(8)),
        area_quantiles_px=quantiles,
        problems=tuple(problems),
    )


def write_contact_sheet(folder: Path, dataset: Dataset, out: Path, *, per_class: int = 8) -> None:
    """Write a PNG with some images of every class, instances outlined, and some defect-free ones.

    Args:
        folder: data set folder.
        dataset: its value.
        out: PNG file.
        per_class: images per class, spread over the data set.
    """
    cells, labels = [], []
    for category in [*dataset.categories, None]:
        if category is None:
            records = [record for record in dataset.images if record.is_defect_free]
        else:
            records = [record for record in dataset.images if any(i.category_id == category.id for i in record.instances)]
        for record in records[:: max(1, len(records) // per_class)][:per_class]:
            image = load_rgb(image_path(folder, record))
            cells.append(draw_outlines(image, [(OUTLINE, decode(i.rle)) for i in record.instances]))
            labels.append(f"{category.name if category else 'defect-free'} {record.file_name}")
    save_png(out, contact_sheet(cells, columns=per_class, labels=labels))
