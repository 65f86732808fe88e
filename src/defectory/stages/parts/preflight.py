"""Reports dead ends of a project once its tiles exist, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.dataset import Dataset, ImageRecord
from defectory.artifacts.plan import MaskBankEntry
from defectory.artifacts.split import Split
from defectory.artifacts.tiles import Tile, TileSet, spread
from defectory.config.project import ProjectConfig
from defectory.drivers.extract import driver_maker
from defectory.errors import ConfigError, ImageError, InputError, StageError
from defectory.masks.bank import build_bank
from defectory.masks.perturb import cropped
from defectory.masks.placement import place, site_of, site_of_square
from defectory.rle import area_px, decode
from defectory.runs.store import RunStore
from defectory.stages.folds import needs_folds
from defectory.stages.parts.also_controls import also_remarks
from defectory.stages.parts.drawing_mode import resolved_synthesis, square_margin_px, uses_squares
from defectory.stages.parts.drawings import drawings_of
from defectory.stages.parts.label_counts import FEW, instances_per_class
from defectory.stages.parts.mask_supply import Mask, bank_from_train, expert_masks
from defectory.stages.parts.pool import pool_tiles
from defectory.stages.parts.regions import tile_regions

MASKS_TRIED, TILES_TRIED = 6, 8
"""Masks (small and large) and pool tiles on which placement is tried."""


def check_before_training(inputs: RunStore, config: ProjectConfig) -> tuple[str, ...]:
    """Check a project whose tiles have been cut, within seconds, and return remarks.

    Raises:
        ConfigError: a later stage would certainly fail; the message names what to change.
        InputError: a later stage would refuse an expert mask, a region or a drawing.
    """
    try:
        cut = _Cut(dataset=inputs.data.dataset, split=inputs.split, tileset=inputs.tiles.tileset)
    except (InputError, StageError):
        # missing or damaged: the stage that reads it reports and repairs it
        return ()
    _require_train(cut)
    _require_classes_to_evaluate(cut)
    _require_folds(config, cut)
    _require_pool(config, cut)
    _require_masks(inputs, config, cut)
    _require_drivers(inputs, config, cut)
    return (*_remarks(config, cut), *also_remarks(inputs.sources, config, len(cut.tileset.categories)))


@dataclass(frozen=True, kw_only=True)
class _Cut:
    dataset: Dataset
    split: Split
    tileset: TileSet

    @cached_property
    def defective(self) -> list[Tile]:
        """Return the train tiles with a defect that is not a crowd."""
        return [tile for tile in self.tileset.of("train") if any(not instance.is_crowd for instance in tile.instances)]

    @cached_property
    def pool(self) -> tuple[Tile, ...]:
        return self.tileset.of("pool")

    def records(self, ids: Iterable[int]) -> list[ImageRecord]:
        return [self.dataset.image(image_id) for image_id in ids]

    def instances_per_class(self, ids: Iterable[int]) -> dict[int, int]:
        """Count instances that are not crowds, for every class."""
        return instances_per_class(self.dataset, ids)


def _require_train(cut: _Cut) -> None:
    instances = [instance for record in cut.dataset.images for instance in record.instances]
    if instances and all(instance.is_crowd for instance in instances):
        raise ConfigError(
            "data",
            f"all {len(instances)} instances are crowds (iscrowd 1), which nothing is trained on",
            "set iscrowd to 0 for single defects",
        )
    if not cut.split.train:
        raise ConfigError(
            "split", "no image in train", "label more images, or lower split.val_share and split.test_share"
        )
    if not cut.defective:
        shown = sum(len(record.instances) for record in cut.records(cut.split.train))
        found = f"no train tile shows a defect; {len(cut.split.train)} train images hold {shown} instances"
        raise ConfigError(
            "tiles",
            found,
            "label more images, or set tiling.mode or tiling.scale so that defects are a few pixels large",
        )


def _require_classes_to_evaluate(cut: _Cut) -> None:
    for subset, ids in (("val", cut.split.val), ("test", cut.split.test)):
        if not any(cut.instances_per_class(ids).values()):
            raise ConfigError(
                "split",
                f"{subset} ({len(ids)} images) holds no instance, so nothing can be scored",
                f"raise split.{subset}_share, set another seed, or label more images",
            )


def _require_folds(config: ProjectConfig, cut: _Cut) -> None:
    """Require that each fold leaves something to train on, if folds are trained."""
    if not needs_folds(config) and config.synthesis.rounds == 1:
        return
    groups = {cut.dataset.image(tile.image_id).group for tile in cut.defective}
    if len(groups) < 2:
        raise ConfigError(
            "train",
            "its defects are all of one group, which cannot be divided into folds",
            "label images of further groups, or leave out synthesis.focus segmenter, further synthesis.rounds, the "
            "check `agreement` and the witness `segmenter` of curation.ignore",
        )


def _require_pool(config: ProjectConfig, cut: _Cut) -> None:
    if not cut.pool:
        source = (
            "no defect-free crop fits into a train image"
            if cut.split.pool_source == "train_crops"
            else "no tile of a defect-free image"
        )
        raise ConfigError("pool", f"is empty: {source}", "add defect-free images (data.defect_free)")
    synthesis = config.synthesis
    most = synthesis.max_images_per_tile
    if most is not None and most * len(cut.pool) < synthesis.num_images:
        raise ConfigError(
            f"synthesis.num_images {synthesis.num_images}",
            f"{len(cut.pool)} pool tiles give {most * len(cut.pool)} images at {most} each",
            "add defect-free images (data.defect_free), ask for fewer, or raise synthesis.max_images_per_tile",
        )


def _require_masks(inputs: RunStore, config: ProjectConfig, cut: _Cut) -> None:
    masks = config.masks
    bank = build_bank(cut.tileset, cut.split, min_area_px=masks.min_area_px)
    if not bank.entries:
        areas = [
            area_px(instance.rle) for tile in cut.defective for instance in tile.instances if not instance.is_crowd
        ]
        raise ConfigError(
            f"masks.min_area_px {masks.min_area_px}",
            f"all {len(areas)} masks of train tiles are smaller; the largest has {max(areas)} px",
            "lower it, or raise tiling.scale",
        )
    new, bank = expert_masks(inputs, config, bank_from_train(inputs, config))
    _require_enough_masks(config, cut, len(bank.entries), len(new))
    if not masks.keep_place:
        _require_place(inputs, config, cut, bank.entries)


def _require_enough_masks(config: ProjectConfig, cut: _Cut, in_bank: int, of_expert: int) -> None:
    """Require enough masks for the planned drivers, if a limit on their reuse is set."""
    masks, synthesis = config.masks, resolved_synthesis(config, cut.tileset, cut.split)
    if masks.max_uses is None or any(
        share > 0 for name, share in masks.sources.shares().items() if name not in ("bank", "expert")
    ):
        return
    usable = (in_bank if masks.sources.bank > 0 else 0) + (of_expert if masks.sources.expert > 0 else 0)
    versions = max(1, synthesis.versions_per_tile)
    fewest = -(-synthesis.num_images // synthesis.max_seeds_per_driver)
    drivers = max(fewest, min(synthesis.num_images, len(cut.pool) * versions))
    if uses_squares(synthesis, cut.tileset.tiling):
        drivers = synthesis.num_images
    if usable * masks.max_uses < drivers:
        raise ConfigError(
            f"masks.max_uses {masks.max_uses}",
            f"{usable} masks serve {usable * masks.max_uses} drivers, {drivers} are planned",
            "raise it, ask for fewer images (synthesis.num_images), or add expert masks",
        )


def _require_place(inputs: RunStore, config: ProjectConfig, cut: _Cut, entries: Sequence[MaskBankEntry]) -> None:
    """Require that at least one mask fits on a pool tile."""
    region_of, synthesis = tile_regions(inputs, config), resolved_synthesis(config, cut.tileset, cut.split)
    pool = pool_tiles(inputs, config) if uses_squares(synthesis, cut.tileset.tiling) else None
    tiles = [tile for tile in cut.pool if _is_allowed(tile, region_of)]
    if not tiles:
        raise ConfigError(
            "masks.regions",
            f"leave no pixel on any of {len(cut.pool)} pool tiles",
            "draw regions where pool tiles show the part",
        )
    by_size = sorted(entries, key=lambda entry: area_px(entry.mask.rle))
    tried = [cropped(decode(entry.mask.rle)) for entry in spread(by_size, MASKS_TRIED)]
    rng = np.random.default_rng([97, config.seed])
    looked_at = 0
    for tile, mask in product(spread(tiles, TILES_TRIED), tried):
        try:
            image = inputs.tiles.image(tile)
        except ImageError:
            return  # damaged after it was cut; the stage that reads it reports this
        looked_at += 1
        if pool is None:
            site = site_of(image, tile.valid_hw)
        else:
            margin_px = square_margin_px(synthesis)
            site = site_of_square(image, tile.valid_hw, ends=pool.ends(tile), margin_px=margin_px)
        allowed = site.limited_to(region_of(tile, None)).allowed
        size_hw, taken = (allowed.shape[0], allowed.shape[1]), np.zeros_like(allowed)
        if place(mask, size_hw=size_hw, allowed=allowed, taken=taken, rng=rng, within=site.within) is not None:
            return
    smallest = "x".join(str(side) for side in tried[0].shape)
    raise ConfigError(
        "pool",
        f"no mask finds a place on its tiles ({looked_at} pairs tried; the smallest mask is {smallest} px, height x "
        "width)",
        "use larger tiles (tiling.tile_px, tiling.scale), wider masks.regions, or defect-free images that show more "
        "of the part",
    )


def _is_allowed(tile: Tile, region_of: Callable[[Tile, int | None], Mask | None]) -> bool:
    region = region_of(tile, None)
    return region is None or bool(region.any())


def _require_drivers(inputs: RunStore, config: ProjectConfig, cut: _Cut) -> None:
    """Require that a driver can be extracted with these settings, and that drawings are found."""
    tile, drawings = cut.defective[0], drawings_of(inputs, config.drivers)
    try:
        image = inputs.tiles.image(tile) if drawings is None else drawings.of(tile)
    except ImageError:
        if drawings is not None:
            raise
        return
    driver_maker(len(cut.tileset.categories), config.drivers)(image, masks_of(tile.instances), tile.valid_hw)


def _remarks(config: ProjectConfig, cut: _Cut) -> Iterable[str]:
    """Yield remarks on settings that work but may disappoint."""
    names = {category.id: category.name for category in cut.dataset.categories}
    for subset, ids in (("train", cut.split.train), ("val", cut.split.val), ("test", cut.split.test)):
        counts = cut.instances_per_class(ids)
        lacking = [names[i] for i, count in counts.items() if count == 0]
        if lacking:
            consequence = "it is never learned" if subset == "train" else "its scores there are missing"
            yield (
                f"{subset} holds no instance of {', '.join(lacking)}: {consequence}; "
                "more labelled images of it, from groups of their own, may help"
            )
        few = [f"{names[i]} ({count})" for i, count in counts.items() if 0 < count < FEW]
        if few and subset != "train":
            yield f"{subset} holds few instances of {', '.join(few)}: scores of these classes say little"
    if config.masks.min_area_px > 1:
        tiny = [
            area
            for tile in cut.defective
            for instance in tile.instances
            if not instance.is_crowd and (area := area_px(instance.rle)) < config.masks.min_area_px
        ]
        if tiny:
            yield (
                f"{len(tiny)} masks of train tiles are smaller than masks.min_area_px "
                f"{config.masks.min_area_px} and serve no draft"
            )
