"""`import`: any supported format into one data set folder, images untouched."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.dataset import MANIFEST, Dataset, ImageRecord
from defectory.dataset.config import DataConfig
from defectory.errors import AnnotationError, ConfigError
from defectory.formats.coco import load_coco, save_coco
from defectory.formats.masks import load_mask_folder
from defectory.formats.raw import RawDataset, RawImage, Rejected, Sieve, checked_size_hw
from defectory.formats.yolo import load_yolo
from defectory.imageio import IMAGE_SUFFIXES
from defectory.rle import area_px
from defectory.run import atomic_folder, digest_file


@dataclass(frozen=True, kw_only=True)
class ImportResult:
    """The data set and what was left out."""

    dataset: Dataset
    rejected: tuple[Rejected, ...]


def import_dataset(config: DataConfig, out: Path, *, base_folder: Path = Path()) -> ImportResult:
    """Read an annotated data set and write it as one data set folder.

    Args:
        config: where and what; relative paths are taken from `base_folder`.
        out: data set folder, replaced as a whole or left as it was.
        base_folder: folder of the project file.

    Raises:
        InputError: anything bad in it, unless `skip_bad`.
        StageError: `out` cannot be written.
    """
    raw = _load(config, base_folder)
    sieve = Sieve(config.skip_bad, list(raw.rejected))
    images = list(raw.images)
    if config.defect_free is not None:
        images += _defect_free(base_folder / config.defect_free, {image.file_name for image in images}, sieve)
    images, names = _keep_classes(images, raw.class_names, config)
    if not images:
        raise AnnotationError(config.path, "no usable image", "check the path and the classes")
    categories = tuple(Category(id=number, name=name) for number, name in enumerate(names, start=1))
    id_of = {category.name: category.id for category in categories}
    with atomic_folder(out) as folder:
        records: list[ImageRecord] = []
        for number, image in enumerate(images, start=1):
            target = folder / "images" / image.file_name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(image.path, target)
            instances = tuple(Instance(category_id=id_of[i.class_name], rle=i.rle, is_crowd=i.is_crowd) for i in image.instances)
            records.append(
                ImageRecord(
                    id=number,
                    file_name=image.file_name,
                    size_hw=image.size_hw,
                    sha256=digest_file(target),
                    group=image.group,
                    instances=instances,
                )
            )
        dataset = Dataset(categories=categories, images=tuple(records))
        save_coco(
            folder / "annotations.json",
            categories,
            [(record.id, record.file_name, record.size_hw, {"group": record.group}) for record in records],
            [(record.id, instance) for record in records for instance in record.instances],
        )
        dataset.save(folder / MANIFEST)
    return ImportResult(dataset=dataset, rejected=tuple(sieve.rejected))


def detect_format(path: Path) -> str:
    """Tell the format of a data set by its path: `coco`, `masks`, `yolo` or `defectory`.

    Raises:
        ConfigError: none of them.
    """
    if path.suffix.lower() == ".json":
        return "coco"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "yolo"
    if path.suffix.lower() == ".csv":
        return "masks"
    if (path / MANIFEST).is_file():
        return "defectory"
    if (path / "data.yaml").is_file():
        return "yolo"
    if (path / "index.csv").is_file() or (path / "masks").is_dir():
        return "masks"
    if (path / "annotations.json").is_file():
        return "coco"
    if not path.exists():
        raise ConfigError(path, "no such file or folder", "check data.path")
    raise ConfigError(path, "no known data set layout", "give a COCO JSON, a mask folder or a YOLO data.yaml, or set data.format")


def _load(config: DataConfig, base_folder: Path) -> RawDataset:
    path = base_folder / config.path
    kind = detect_format(path) if config.format == "auto" else config.format
    root = None if config.image_root is None else base_folder / config.image_root
    if kind in ("coco", "defectory"):
        return load_coco(path / "annotations.json" if path.is_dir() else path, image_root=root, skip_bad=config.skip_bad)
    if kind == "yolo":
        return load_yolo(path / "data.yaml" if path.is_dir() else path, image_root=root, skip_bad=config.skip_bad)
    index = None if config.index is None else base_folder / config.index
    if path.suffix.lower() == ".csv":
        path, index = path.parent, index or path
    return load_mask_folder(path, index=index, image_root=root, min_area_px=config.min_area_px, skip_bad=config.skip_bad)


def _defect_free(folder: Path, taken: set[str], sieve: Sieve) -> list[RawImage]:
    if not folder.is_dir():
        raise ConfigError(folder, "no such folder of defect-free images", "check data.defect_free")
    images: list[RawImage] = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES):
        name = path.relative_to(folder).as_posix()
        size_hw = sieve.attempt(name, lambda path=path: checked_size_hw(path, None, path))
        if size_hw is not None:
            unique = name if name not in taken else f"defect_free/{name}"
            images.append(
                RawImage(
                    path=path,
                    file_name=unique,
                    size_hw=size_hw,
                    group=Path(unique).with_suffix("").as_posix(),
                    instances=(),
                    is_defect_free=True,
                )
            )
    return images


def _keep_classes(images: list[RawImage], names: tuple[str, ...], config: DataConfig) -> tuple[list[RawImage], tuple[str, ...]]:
    """Keep wanted classes and sizes; an image whose defects are all left out is left out, it is not defect-free."""
    wanted = config.classes or names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        raise ConfigError("data.classes", f"{unknown[0]!r} is not a class of the data set ({', '.join(names)})", "correct the list")
    kept: list[RawImage] = []
    for image in images:
        instances = tuple(i for i in image.instances if i.class_name in wanted and area_px(i.rle) >= config.min_area_px)
        if instances or image.is_defect_free:
            kept.append(
                RawImage(
                    path=image.path,
                    file_name=image.file_name,
                    size_hw=image.size_hw,
                    group=image.group,
                    instances=instances,
                    is_defect_free=image.is_defect_free,
                )
            )
    return kept, tuple(wanted)
