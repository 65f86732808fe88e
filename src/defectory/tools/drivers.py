"""Compares drivers of a run, tunes their constants on its tiles, and extracts them to files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.tiles import spread
from defectory.drawing import contact_sheet
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import driver_maker, extract_driver
from defectory.drivers.kinds import GEOMETRIES
from defectory.drivers.leakage import FOLDS
from defectory.drivers.tune import Candidate, candidates_of, tune
from defectory.engine.backbones.prompts import condition_prompt
from defectory.errors import ImageError, InputError
from defectory.events import Progress, Work
from defectory.filenames import file_name_of
from defectory.folders.claims import require_replaceable
from defectory.folders.swap import atomic_folder
from defectory.formats.raw import image_files
from defectory.images.load import load_class_mask, load_rgb
from defectory.images.save import save_png
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages.parts.drawings import drawings_of
from defectory.stages.parts.leakage import driver_samples
from defectory.stages.tiles import base_tile_px

KIND = "drivers"


def compare_drivers(run: Run, *, num_tiles: int) -> NDArray[np.uint8]:
    """Draw train tiles beside their drivers of every kind, geometry brightened, RGB uint8 [H,W,3]."""
    inputs, config = run.store(), run.config.drivers
    tiles, tileset, drawings = inputs.tiles, inputs.tiles.tileset, drawings_of(inputs, config)
    kinds = [*GEOMETRIES] if config.kind in GEOMETRIES else [config.kind, *GEOMETRIES]
    cells: list[NDArray[np.uint8]] = []
    labels: list[str] = []
    for tile in spread([tile for tile in tileset.of("train") if tile.instances], num_tiles):
        image, instances = tiles.image(tile), masks_of(tile.instances)
        cells.append(image)
        labels.append(tile.id)
        if drawings is not None:
            image = drawings.of(tile)
            cells.append(image)
            labels.append("drawing")
        for kind in kinds:
            driver = extract_driver(
                image,
                instances,
                num_classes=len(tileset.categories),
                config=config.model_copy(update={"kind": kind, "background_level": 255}),
                valid_hw=tile.valid_hw,
            )
            cells.append(driver)
            labels.append(kind)
    return contact_sheet(cells, columns=len(kinds) + (1 if drawings is None else 2), labels=labels, cell_px=160)


def tune_drivers(run: Run) -> Work[list[Candidate]]:
    """Measure every choice of driver constants on train and pool tiles, and return them, best first.

    Raises:
        InputError: there are too few tiles to measure leakage.
    """
    config = run.config
    defective, free = driver_samples(run.store(), config)
    if min(len(defective), len(free)) < 2 * FOLDS:
        raise InputError(
            run.folder / layout.TILES,
            f"{len(defective)} defective train tiles and {len(free)} pool tiles",
            f"at least {2 * FOLDS} of each are needed to measure leakage",
        )
    total = len(candidates_of(config.drivers, tile_px=max(defective[0].image.shape[:2])))
    for event in tune(defective, free, config=config.drivers, seed=config.seed):
        if not isinstance(event, int):
            return event
        yield Progress(done=event, total=total, stage="tune")
    return []


def extract_from_tiles(run: Run, *, subset: Literal["train", "pool"], limit: int, out: Path) -> list[tuple[str, str]]:
    """Write the drivers of a run's tiles as PNG files, and return their names, each with an empty prompt.

    Args:
        run: that has been run up to its tiles.
        subset: whose tiles.
        limit: at most this many.
        out: folder, replaced as a whole where an earlier extraction made it.
    """
    inputs, config = run.store(), run.config.drivers
    tileset, drawings = inputs.tiles.tileset, drawings_of(inputs, config)
    make, names = driver_maker(len(tileset.categories), config), list[str]()
    with atomic_folder(out, kind=KIND) as folder:
        for tile in tileset.of(subset)[:limit]:
            image = inputs.tiles.image(tile) if drawings is None else drawings.of(tile)
            names.append(f"{tile.id}.png")
            save_png(folder / names[-1], make(image, masks_of(tile.instances), tile.valid_hw))
    return [(name, "") for name in names]


def extract_from_images(
    images: Sequence[Path], *, mask: Path | None, run: Run | None, whole: bool, out: Path
) -> list[tuple[str, str]]:
    """Write the drivers of images as PNG files, and return each file's name with its prompt.

    Args:
        images: files or folders of files; equal names from several folders are numbered.
        mask: painted on each: class numbers, or any one value for the first class.
        run: whose driver settings, tile size, classes and concept are used; None takes the defaults.
        whole: extract one driver of each whole image. Otherwise the driver shows a square of the model's tile size
            around the mask, or in the middle: the networks have only seen drivers of that size.
        out: folder, replaced as a whole where an earlier extraction made it.

    Raises:
        ImageError: an image cannot be read, or the mask is of another size or holds a class that the project lacks.
        OutputError: `out` is not ours.
    """
    sources = [*images, *([] if mask is None else [mask])]
    require_replaceable(out, kind=KIND, sources=sources)
    files = [file for path in images for file in (image_files(path) if path.is_dir() else [path])]
    labels = None if mask is None else _classes_of(mask)
    config, tile_px, class_names, prompt_of_classes = _settings(run)
    num_classes = max(1, len(class_names), 0 if labels is None else int(labels.max()))
    if mask is not None and class_names and num_classes > len(class_names):
        known = ", ".join(class_names)
        raise ImageError(
            mask, f"holds class {num_classes}, the project has {len(class_names)} ({known})", "correct the mask"
        )
    made: list[tuple[str, str]] = []
    taken: set[str] = set()
    with atomic_folder(out, kind=KIND, sources=sources) as folder:
        for number, path in enumerate(files, start=1):
            image = load_rgb(path)
            shown = None if labels is None else _fitting(labels, mask, image, path)
            if not whole:
                image, shown = _square(image, shown, tile_px)
            instances = [] if shown is None else [(int(v), shown == v) for v in np.unique(shown) if v]
            name = file_name_of(path.stem)
            name = f"{name}-{number}" if name.casefold() in taken else name
            taken.add(name.casefold())
            save_png(folder / f"{name}.png", extract_driver(image, instances, num_classes=num_classes, config=config))
            made.append((f"{name}.png", prompt_of_classes([category for category, _ in instances])))
    return made


def _classes_of(mask: Path) -> NDArray[np.int32]:
    """Load a mask as class numbers, int32 [H,W]; in a mask with one value besides 0, that value is class 1."""
    values = load_class_mask(mask).astype(np.int32)
    return (values > 0).astype(np.int32) if np.unique(values[values > 0]).size == 1 else values


def _fitting(labels: NDArray[np.int32], mask: Path | None, image: NDArray[np.uint8], path: Path) -> NDArray[np.int32]:
    if labels.shape != image.shape[:2]:
        raise ImageError(
            mask,
            f"mask is {labels.shape[0]}x{labels.shape[1]}, {path} is {image.shape[0]}x{image.shape[1]} "
            "(height x width)",
            "give a mask of the image's size",
        )
    return labels


def _square(
    image: NDArray[np.uint8], labels: NDArray[np.int32] | None, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32] | None]:
    """Cut the square around the labels, or in the middle; a smaller image stays whole."""
    corner: list[int] = []
    for axis, length in enumerate(image.shape[:2]):
        found = np.zeros(0) if labels is None else np.flatnonzero(labels.any(axis=1 - axis))
        middle = length // 2 if found.size == 0 else int(found[0] + found[-1] + 1) // 2
        corner.append(int(np.clip(middle - side // 2, 0, max(0, length - side))))
    inside = slice(corner[0], corner[0] + side), slice(corner[1], corner[1] + side)
    cut = np.ascontiguousarray(image[inside])
    return cut, None if labels is None else np.ascontiguousarray(labels[inside])


def _settings(run: Run | None) -> tuple[DriverConfig, int, tuple[str, ...], Callable[[Sequence[int]], str]]:
    """Return driver settings, the model's tile size, its classes if any, and a function from classes to a prompt."""
    if run is None:
        return DriverConfig(), base_tile_px("embedded"), (), lambda _: ""
    config, inputs = run.config, run.store()
    try:
        tileset, concept = inputs.tiles.tileset, inputs.concept.concept
    except InputError:
        return config.drivers, config.tiling.tile_px or base_tile_px(config.base), (), lambda _: ""
    names = {category.id: category.name for category in tileset.categories}

    def prompt_of_classes(categories: Sequence[int]) -> str:
        shown = [names[category] for category in categories]
        return condition_prompt(concept.instance_token, shown, defect_noun=config.prompts.defect_noun, tone="")

    return config.drivers, tileset.tiling.tile_px, tuple(names.values()), prompt_of_classes
