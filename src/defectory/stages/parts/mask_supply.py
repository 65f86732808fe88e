"""Builds the mask supply of a run: bank, expert masks, mask model, and learned placement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Job, MaskBank, MaskBankEntry
from defectory.config.project import ProjectConfig
from defectory.errors import AnnotationError, ConfigError
from defectory.files import digest_file
from defectory.formats.coco import load_coco
from defectory.masks.bank import build_bank, whole_masks
from defectory.masks.expert import class_names_of_folders, from_instances, mask_files, read_folder
from defectory.masks.placement import (
    Borders,
    Site,
    borders_of,
    filled_where_cut,
    place,
    place_like,
    relation_of,
    relation_shares,
)
from defectory.masks.sources import ExpertMask, MaskModel, MaskSources
from defectory.rle import decode, encode
from defectory.runs.store import RunStore
from defectory.stages.parts.drawing_mode import longest_whole_px, synthesis_of, uses_squares
from defectory.stages.parts.held_out import held_out_images
from defectory.surface import solid_pixels
from defectory.synthesis.plan import masks_taken

if TYPE_CHECKING:
    from defectory.masks.diffusion import MaskDiffusion

Mask = NDArray[np.bool_]
NOT_TRAIN = "is an image of validation or test, or not used"
MASKS_OF_TRAIN = "leave it out: masks come from train alone"
FOCUS_FLOOR = 0.1
"""Weight of an instance that a segmenter finds perfectly; a missed one has weight 1."""


@dataclass(frozen=True, kw_only=True)
class Focus:
    """How often train instances are used: their masks, classes, places and surroundings.

    Attributes:
        weights: by image id and number.
        others: weight of an instance that is not among them. At 0, classes whose instances all have weight 0 are not
            drawn.
    """

    weights: Mapping[tuple[int, int], float]
    others: float = 1.0

    def of(self, image_id: int, number: int) -> float:
        """Return the weight of an instance."""
        return self.weights.get((image_id, number), self.others)


def bank_from_train(inputs: RunStore, config: ProjectConfig) -> MaskBank:
    """Build the mask bank from train tiles; if drafts are squares of larger images, of masks that fit whole.

    Raises:
        ConfigError: train has no mask, or none that fits.
    """
    tileset = inputs.tiles.tileset
    bank = build_bank(tileset, inputs.split, min_area_px=config.masks.min_area_px)
    if not bank.entries:
        raise ConfigError("mask bank", "no mask in train", "add annotated images")
    synthesis = synthesis_of(inputs, config)
    if not uses_squares(synthesis, tileset.tiling):
        return bank
    return require_whole(bank, most_px=longest_whole_px(synthesis, tileset.tiling))


def require_whole(bank: MaskBank, *, most_px: int) -> MaskBank:
    """Return the bank of the masks that fit whole into a square, at most so many pixels long.

    Raises:
        ConfigError: none does.
    """
    kept = whole_masks(bank, most_px=most_px)
    if not kept.entries:
        raise ConfigError(
            "mask bank",
            f"each of {len(bank.entries)} defects of train is longer than {most_px} px or cut by its tile, so none can "
            "be inserted whole",
            "set a larger tiling.tile_px, a smaller tiling.scale, or synthesis.mode full",
        )
    return kept


def expert_masks(inputs: RunStore, config: ProjectConfig, bank: MaskBank) -> tuple[tuple[ExpertMask, ...], MaskBank]:
    """Load the expert's new masks, and the bank with the expert's corrections.

    Raises:
        AnnotationError: a mask cannot be used, or belongs to an image that is not in train. A COCO file is refused for
            that image, for a copy of it and for its name, a PNG file for its name.
    """
    if config.masks.expert is None:
        return (), bank
    path = inputs.sources.path(config.masks.expert)
    dataset, split, tiling = inputs.data.dataset, inputs.split, inputs.tiles.tileset.tiling
    allowed = {*split.train, *split.pool}
    # this covers unused images too, and every image of an ambiguous name
    barred = {Path(record.file_name).stem for record in dataset.images if record.id not in allowed}
    if path.suffix.lower() == ".json":
        root = config.data.image_root
        raw = load_coco(path, image_root=None if root is None else inputs.sources.folder / root)
        _require_train_images(inputs, [(image.path, image.file_name) for image in raw.images], path, barred)
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


def _require_train_images(inputs: RunStore, images: Sequence[tuple[Path, str]], where: Path, barred: set[str]) -> None:
    """Require that images, given as file and name, are in train or new, and not copies of held-out images."""
    dataset, split = inputs.data.dataset, inputs.split
    id_of = {record.sha256: record.id for record in dataset.images}
    allowed = {*split.train, *split.pool}
    held_out = held_out_images(inputs)
    for file, name in images:
        image_id = id_of.get(digest_file(file))
        if image_id in allowed:
            continue
        if image_id is not None or Path(name).stem in barred:
            raise AnnotationError(where, f"{name} {NOT_TRAIN}", MASKS_OF_TRAIN)
        copy = held_out.copy_of(file)
        if copy is not None:
            raise AnnotationError(where, f"{name} {copy.told()}", MASKS_OF_TRAIN)


def mask_model_of(bank: MaskBank, config: ProjectConfig) -> MaskDiffusion:
    """Return the untrained model of a bank's masks."""
    from defectory.masks.diffusion import MaskDiffusion

    masks = [(entry.category_id, decode(entry.mask.rle)) for entry in bank.entries]
    return MaskDiffusion(masks, config=config.masks, seed=config.seed)


def trained_mask_model(inputs: RunStore, config: ProjectConfig, bank: MaskBank) -> MaskModel | None:
    """Load the trained model of a bank's masks; None if `masks` gives it no share.

    Raises:
        WeightsError: it has not been trained, or is damaged.
    """
    from defectory.masks.diffusion import MODEL_FILE

    if config.masks.sources.diffusion == 0:
        return None
    model = mask_model_of(bank, config)
    model.load(inputs.mask_model / MODEL_FILE)
    return model


@dataclass(frozen=True, kw_only=True)
class MaskSupply:
    """The masks that a run may use, and their placement on a part.

    `left_out` is the number of train masks by class that do not fit whole into a square; empty if cuts are allowed.
    """

    bank: MaskBank
    sources: MaskSources
    shares: dict[int, np.ndarray]
    left_out: Mapping[str, int]

    def place(self, mask: Mask, category_id: int, site: Site, taken: Mask, rng: np.random.Generator) -> Mask | None:
        """Place a mask of a class on a tile, bool [H,W]; None if it fits nowhere.

        Learned placement follows where the class lies in train.
        """
        if category_id in self.shares:
            return place_like(mask, self.shares[category_id], site=site, taken=taken, rng=rng)
        size_hw = taken.shape[0], taken.shape[1]
        return place(mask, size_hw=size_hw, allowed=site.allowed, taken=taken, rng=rng, within=site.within)


def mask_supply(
    inputs: RunStore,
    config: ProjectConfig,
    *,
    whole_px: int | None = None,
    focus: Focus | None = None,
    earlier: Sequence[Job] = (),
) -> MaskSupply:
    """Build the mask bank, the mask sources and the learned placement from train.

    Args:
        inputs: of the stage.
        config: of the project.
        whole_px: take only masks that no tile cut and that are at most so long, also if the run itself takes others.
        focus: how often train instances are used; None takes what `synthesis.focus` says.
        earlier: jobs of earlier rounds; `masks.max_uses` counts their masks.

    Raises:
        ConfigError: train has no mask, or an expert's cannot be used.
    """
    bank = bank_from_train(inputs, config)
    left_out = _left_out(inputs, config, bank)
    supplied, bank = expert_masks(inputs, config, bank)
    # the model has learned from the run's own bank
    diffusion = trained_mask_model(inputs, config, bank)
    bank = bank if whole_px is None else require_whole(bank, most_px=whole_px)
    focus = focus or focus_weights(inputs, config)
    weights = {} if focus is None else {entry.id: focus.of(entry.image_id, entry.number) for entry in bank.entries}
    shares: dict[int, np.ndarray] = {}
    if config.masks.placement == "learned":
        shares, bank = _placement_in_train(inputs, bank, weights)
    names = {category.id: category.name for category in inputs.tiles.tileset.categories}
    sources = MaskSources(
        bank,
        supplied,
        config=config.masks,
        names=names,
        diffusion=diffusion,
        weights=weights,
        used=masks_taken(earlier),
    )
    return MaskSupply(bank=bank, sources=sources, shares=shares, left_out=left_out)


def _left_out(inputs: RunStore, config: ProjectConfig, bank: MaskBank) -> dict[str, int]:
    """Count the masks of train by class that a run's bank does not hold."""
    tileset = inputs.tiles.tileset
    every = build_bank(tileset, inputs.split, min_area_px=config.masks.min_area_px)
    counts = Counter(entry.category_id for entry in every.entries)
    counts.subtract(entry.category_id for entry in bank.entries)
    return {category.name: counts[category.id] for category in tileset.categories}


def _placement_in_train(
    inputs: RunStore, bank: MaskBank, weights: Mapping[str, float]
) -> tuple[dict[int, np.ndarray], MaskBank]:
    """Measure per class where masks lie relative to the holes and edges of their tiles, weighted by entry.

    Returns:
        The shares per class, and the bank with the gaps filled that those holes cut.
    """
    observed: list[tuple[int, int, float]] = []
    whole: dict[str, MaskBankEntry] = {}
    for entry, mask, borders in _masks_in_place(inputs, bank):
        observed.append((entry.category_id, relation_of(mask, borders), weights.get(entry.id, 1.0)))
        filled = entry.mask.model_copy(update={"rle": encode(filled_where_cut(mask, borders))})
        whole[entry.id] = entry.model_copy(update={"mask": filled})
    entries = tuple(whole.get(entry.id, entry) for entry in bank.entries)
    return relation_shares(observed), bank.model_copy(update={"entries": entries})


def places_in_train(inputs: RunStore, config: ProjectConfig) -> Iterator[tuple[MaskBankEntry, int]]:
    """Yield each mask of the bank with its relation to the holes and edges of its tile (index in RELATIONS)."""
    _, bank = expert_masks(inputs, config, bank_from_train(inputs, config))
    for entry, mask, borders in _masks_in_place(inputs, bank):
        yield entry, relation_of(mask, borders)


def _masks_in_place(inputs: RunStore, bank: MaskBank) -> Iterator[tuple[MaskBankEntry, Mask, Borders]]:
    """Yield each entry with its mask on its tile, bool [H,W], and the borders of that tile."""
    tiles = inputs.tiles
    masks: dict[str, list[MaskBankEntry]] = {}
    for entry in bank.entries:
        masks.setdefault(entry.tile_id, []).append(entry)
    for tile in tiles.tileset.of("train"):
        if tile.id not in masks:
            continue
        defects = [mask for _, mask in masks_of(tile.instances)]
        borders = borders_of(solid_pixels(tiles.image(tile), tile.valid_hw, defects))
        for entry in masks[tile.id]:
            yield entry, decode(entry.mask.rle), borders


def focus_weights(inputs: RunStore, config: ProjectConfig) -> Focus | None:
    """Return how often train instances are used by `synthesis.focus`; None for all alike."""
    if config.synthesis.focus == "uniform":
        return None
    return Focus(weights=inputs.difficulty.weights(floor=FOCUS_FLOOR))
