"""Stage plan: chooses pool image, augmentation, masks, prompt and seed of each draft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.tiles import Tile
from defectory.artifacts.weights import Concept
from defectory.config.project import ProjectConfig
from defectory.engine.backbones.prompts import condition_prompt
from defectory.events import Work
from defectory.files import write_json
from defectory.masks.placement import RELATIONS, Site, site_of
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore, TileFolder
from defectory.stages.learn_condition import driver_digest
from defectory.stages.parts.mask_supply import focus_weights, mask_supply
from defectory.stages.parts.pool import pool_tiles
from defectory.stages.parts.regions import tile_regions
from defectory.synthesis.plan import make_plan, plan_summary
from defectory.tones import contrast_steps

PLAN_SETTINGS = frozenset(
    {
        "mode",
        "focus",
        "num_images",
        "num_drivers",
        "augmentations_per_image",
        "max_seeds_per_driver",
        "max_images_per_tile",
    }
)
"""Settings of synthesis that decide what is drawn, not how."""


class Plan(Stage):
    """Writes the plan and the mask bank that it draws from."""

    VERSION = 9
    name, folder = "plan", layout.PLAN

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles and both phases, and folds and the mask model if masks depend on them."""
        focuses = config.synthesis.focus == "segmenter"
        learns_masks = config.masks.sources.diffusion > 0
        return (
            "import",
            "split",
            "tiles",
            "learn-concept",
            "learn-condition",
            *(("folds",) if focuses else ()),
            *(("learn-masks",) if learns_masks else ()),
        )

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on masks, drivers, what synthesis draws, and the user's masks, regions and drawings."""
        return {
            "masks": config.masks.model_dump(mode="json"),
            "files of masks.expert": sources.listing(config.masks.expert),
            "files of masks.regions": sources.listing(config.masks.regions),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
            "drivers": config.drivers.model_dump(mode="json"),
            "augmentation": config.augmentation.model_dump(mode="json"),
            "synthesis": config.synthesis.model_dump(mode="json", include=set(PLAN_SETTINGS)),
            "prompts.defect_noun": config.prompts.defect_noun,
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Build the mask bank and write the plan."""
        yield from ()
        tiles, tileset = inputs.tiles, inputs.tiles.tileset
        supply, region_of, pool = mask_supply(inputs, config), tile_regions(inputs, config), pool_tiles(inputs, config)
        supply.bank.save(out / layout.BANK_FILE)
        concept, control = inputs.concept.concept, inputs.control.control
        names = {category.id: category.name for category in tileset.categories}
        shares = {
            names[i]: dict(zip(RELATIONS, np.round(of, 4).tolist(), strict=True)) for i, of in supply.shares.items()
        }
        write_json(out / layout.PLACEMENT_FILE, shares)

        def tile_as_site(tile: Tile, augmentation_seed: int | None) -> Site:
            site = site_of(pool.image(tile, augmentation_seed), tile.valid_hw)
            region = region_of(tile, augmentation_seed)
            return site if region is None else Site(allowed=site.allowed & region, borders=site.borders)

        focus = focus_weights(inputs, config)

        def weight_of(tile: Tile) -> float:
            return float(np.mean([(focus or {}).get((tile.image_id, i.number), 1.0) for i in tile.instances]))

        plan = make_plan(
            tileset,
            config=config.synthesis,
            seed=config.seed,
            draw_mask=supply.sources.draw,
            even_classes=config.masks.class_balance == "even",
            weight_of=None if focus is None else weight_of,
            place=supply.place,
            site_of=tile_as_site,
            prompt_of=lambda names, tone: prompt_of(concept, names, tone, defect_noun=config.prompts.defect_noun),
            tone_of=lambda tile: tone_of(tile, tiles, concept),
            tone_distance=contrast_steps,
            concept_digest=concept.weights_digest,
            control_digest=control.weights_digest,
            driver_config_digest=driver_digest(config, len(tileset.categories)),
            keep_place=config.masks.keep_place,
        )
        plan.save(out / layout.PLAN_FILE)
        summary = plan_summary(plan)
        return (
            f"{summary['images']} images on {summary['drivers']} drivers of {summary['pool_tiles']} pool tiles; masks "
            f"{summary['instances_per_class']}"
        )


def prompt_of(concept: Concept, names: Sequence[str], tone: str, *, defect_noun: str) -> str:
    """Return the prompt of an image with defects of these classes; no classes mean a defect-free image."""
    return condition_prompt(concept.instance_token, names, defect_noun=defect_noun, tone=tone)


def tone_of(tile: Tile, tiles: TileFolder, concept: Concept) -> str:
    """Return the words for a tile's tones; empty if the concept uses none."""
    from defectory.engine.training.data import TrainingTile

    if not concept.tone_words:
        return ""
    masks = masks_of(tile.instances)
    # classes do not matter for tones
    names = ("",) * len(masks)
    return TrainingTile(
        id=tile.id, image=tiles.image(tile), instances=masks, class_names=names, valid_hw=tile.valid_hw
    ).tone
