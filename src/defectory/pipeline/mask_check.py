"""The masks a project may use: bank, expert's masks, and what the sources draw from them, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import MaskBank, MaskBankEntry
from defectory.drawing import contact_sheet, draw_outlines
from defectory.errors import AnnotationError, ConfigError
from defectory.files import digest_file
from defectory.formats.coco import load_coco
from defectory.imageio import load_rgb
from defectory.masks.bank import build_bank
from defectory.masks.expert import class_names_of_folders, from_instances, mask_files, read_folder, write_review
from defectory.masks.sources import ExpertMask
from defectory.pipeline.held_out import HeldOutImages
from defectory.pipeline.stage import Project
from defectory.pipeline.values import dataset_of, source_listing, split_of, spread, tileset_of
from defectory.rle import decode

Mask = NDArray[np.bool_]
SHEET_COLUMNS = 10
MAX_CELLS = 120
NOT_TRAIN = "is an image of validation or test, or not used"
MASKS_OF_TRAIN = "leave it out: masks come from train alone"
MASK_COLOUR = (255, 60, 40)


def bank_from_train(project: Project) -> MaskBank:
    """Build the mask bank from train tiles.

    Raises:
        ConfigError: train has no mask.
    """
    bank = build_bank(tileset_of(project), split_of(project), min_area_px=project.config.masks.min_area_px)
    if not bank.entries:
        raise ConfigError("mask bank", "no mask in train", "add annotated images")
    return bank


def _expert_path(project: Project) -> Path | None:
    expert = project.config.masks.expert
    return None if expert is None else project.source_folder / Path(expert).expanduser()


def expert_listing(project: Project) -> object:
    """Give name, size and time of the expert's files, so that a changed one is noticed."""
    path = _expert_path(project)
    return None if path is None else source_listing(path)


def expert_masks(project: Project, bank: MaskBank) -> tuple[tuple[ExpertMask, ...], MaskBank]:
    """Read the expert's masks: new ones, and the bank with its corrections.

    Raises:
        AnnotationError: a mask that cannot be used, or one of an image that is not in train: a COCO file annotates it,
            a copy of it or an image of its name, or a PNG file is named as it is.
    """
    path = _expert_path(project)
    if path is None:
        return (), bank
    dataset, split, tiling = dataset_of(project), split_of(project), tileset_of(project).tiling
    allowed = {*split.train, *split.pool}
    # an image that is not used at all counts too, and so does each of several images with one name
    barred = {Path(record.file_name).stem for record in dataset.images if record.id not in allowed}
    if path.suffix.lower() == ".json":
        root = project.config.data.image_root
        raw = load_coco(path, image_root=None if root is None else project.source_folder / root)
        _require_train_images(project, [(image.path, image.file_name) for image in raw.images], path, barred)
        named = [
            (f"{Path(image.file_name).stem}-{number}", instance.class_name, decode(instance.rle))
            for image in raw.images
            for number, instance in enumerate(image.instances)
            if not instance.is_crowd
        ]
        return from_instances(
            named, where=path, bank=bank, categories=dataset.categories, scale=tiling.scale, tile_px=tiling.tile_px
        ), bank
    if path.is_dir():
        for class_folder in class_names_of_folders(path, [category.name for category in dataset.categories]):
            for file in mask_files(class_folder):
                if file.stem in barred:
                    raise AnnotationError(file, NOT_TRAIN, MASKS_OF_TRAIN)
    return read_folder(path, bank=bank, categories=dataset.categories, scale=tiling.scale, tile_px=tiling.tile_px)


def _require_train_images(project: Project, images: Sequence[tuple[Path, str]], where: Path, barred: set[str]) -> None:
    """Refuse images, given as file and name, that validation and test hold under any name, and names of images that are
    not in train.
    """
    dataset, split = dataset_of(project), split_of(project)
    id_of = {record.sha256: record.id for record in dataset.images}
    allowed = {*split.train, *split.pool}
    held_out = HeldOutImages(project)
    for file, name in images:
        image_id = id_of.get(digest_file(file))
        if image_id in allowed:
            continue
        if image_id is not None or Path(name).stem in barred:
            raise AnnotationError(where, f"{name} {NOT_TRAIN}", MASKS_OF_TRAIN)
        copy = held_out.copy_of(file)
        if copy is not None:
            raise AnnotationError(where, f"{name} {copy.told()}", MASKS_OF_TRAIN)


def review_masks(project: Project, out: Path) -> int:
    """Write the bank's masks for an expert to correct, with a sheet of the tiles they lie on; give how many there
    are.
    """
    bank, tileset = bank_from_train(project), tileset_of(project)
    tiles = {tile.id: tile for tile in tileset.tiles}
    names = {category.id: category.name for category in tileset.categories}

    def cell(entry: MaskBankEntry) -> NDArray[np.uint8]:
        image = load_rgb(project.path("tiles", tiles[entry.tile_id].file_name))
        return draw_outlines(image, [(MASK_COLOUR, decode(entry.mask.rle))])

    shown = spread(bank.entries, MAX_CELLS)
    sheet = contact_sheet(
        [cell(e) for e in shown],
        columns=SHEET_COLUMNS,
        labels=[f"{names[e.category_id]} {e.id}" for e in shown],
        cell_px=160,
    )
    return write_review(bank, tileset.categories, sheet, out)
