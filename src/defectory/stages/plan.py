"""Stage plan: chooses pool image, augmentation, masks, prompt and seed of each draft."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Job
from defectory.artifacts.plan import Plan as PlanValue
from defectory.artifacts.tiles import Tile
from defectory.config.project import ProjectConfig
from defectory.events import Work
from defectory.files import write_json
from defectory.masks.placement import RELATIONS, Site, site_of, site_of_square
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.learn_condition import driver_digest
from defectory.stages.parts.drawing_mode import square_margin_px, synthesis_of, uses_squares
from defectory.stages.parts.frame_sizes import frame_sizes
from defectory.stages.parts.mask_supply import Focus, MaskSupply, focus_weights, mask_supply
from defectory.stages.parts.pool import corner_of, pool_tiles
from defectory.stages.parts.prompts import prompt_of, tone_of
from defectory.stages.parts.regions import tile_regions
from defectory.synthesis.frame_plan import Squares, make_frame_plan
from defectory.synthesis.plan import MIN_VISIBLE_SHARE, DrawMask, PlanDigests, PlanMaterial, make_plan, plan_summary
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
        "drafts_per_frame",
        "insert_margin_px",
    }
)
"""Settings of synthesis that decide what is drawn, not how."""


class Plan(Stage):
    """Writes the plan and the mask bank that it draws from."""

    VERSION = 11
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
            "synthesis": config.synthesis.of_round(1).model_dump(mode="json", include=set(PLAN_SETTINGS)),
            "prompts.defect_noun": config.prompts.defect_noun,
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Build the mask bank and write the plan."""
        yield from ()
        supply = mask_supply(inputs, config)
        supply.bank.save(out / layout.BANK_FILE)
        return write_plan(inputs, config, supply, focus_weights(inputs, config), out)


def write_plan(
    inputs: RunStore,
    config: ProjectConfig,
    supply: MaskSupply,
    focus: Focus | None,
    out: Path,
    *,
    number: int = 1,
    earlier: Sequence[Job] = (),
) -> str:
    """Write the plan of a round of drafts, and the placement that it follows; return one line for people.

    Args:
        inputs: of the stage.
        config: of the project.
        supply: the masks that may be used.
        focus: how often train instances are used; None for all alike.
        out: folder of the files.
        number: of the round.
        earlier: jobs of all rounds before.
    """
    tiles, tileset = inputs.tiles, inputs.tiles.tileset
    region_of, pool = tile_regions(inputs, config), pool_tiles(inputs, config)
    concept, control = inputs.concept.concept, inputs.control.control
    names = {category.id: category.name for category in tileset.categories}
    shares = {names[i]: dict(zip(RELATIONS, np.round(of, 4).tolist(), strict=True)) for i, of in supply.shares.items()}
    write_json(out / layout.PLACEMENT_FILE, shares)

    synthesis = synthesis_of(inputs, config).of_round(number)
    squares = uses_squares(synthesis, tileset.tiling)
    margin_px = square_margin_px(synthesis)

    def tile_as_site(tile: Tile, augmentation_seed: int | None) -> Site:
        image = pool.image(tile, augmentation_seed)
        if squares:
            site = site_of_square(image, tile.valid_hw, ends=pool.ends(tile), margin_px=margin_px)
        else:
            site = site_of(image, tile.valid_hw)
        return site.limited_to(region_of(tile, augmentation_seed))

    def image_of(tile: Tile) -> NDArray[np.uint8]:
        return pool.image(tile, None) if tile.subset == "pool" else tiles.image(tile)

    wanted = _wanted_classes(supply, focus)
    material = PlanMaterial(
        draw_mask=supply.sources.draw if wanted is None else _draw_of(supply, wanted),
        place=supply.place,
        site_of=tile_as_site,
        prompt_of=lambda names, tone: prompt_of(concept, names, tone, defect_noun=config.prompts.defect_noun),
        tone_of=lambda tile: tone_of(tile, image_of(tile), concept),
        tone_distance=contrast_steps,
        keep_place=config.masks.keep_place,
        # quotas take the place of even classes
        even_classes=config.masks.class_balance == "even" and wanted is None,
        weight_of=None if focus is None else lambda tile: _weight_of(tile, focus, wanted),
    )
    digests = PlanDigests(
        concept=concept.weights_digest,
        control=control.weights_digest,
        driver_config=driver_digest(config, len(tileset.categories)),
    )
    if squares:
        plan = make_frame_plan(
            tileset,
            config=synthesis,
            sizes=frame_sizes(inputs, config),
            seed=config.seed,
            digests=digests,
            material=material,
            squares=Squares(near=pool.square_near, corner_of=corner_of),
            earlier=earlier,
        )
    else:
        plan = make_plan(
            tileset, config=synthesis, seed=config.seed, digests=digests, material=material, earlier=earlier
        )
    plan.save(out / layout.PLAN_FILE)
    return _told(plan, inputs, squares=squares, left_out=supply.left_out)


def _wanted_classes(supply: MaskSupply, focus: Focus | None) -> Collection[int] | None:
    """Return the classes that a focus draws; None for all."""
    if focus is None or focus.others > 0:
        return None
    return {entry.category_id for entry in supply.bank.entries if focus.of(entry.image_id, entry.number) > 0}


def _draw_of(supply: MaskSupply, wanted: Collection[int]) -> DrawMask:
    """Return what draws masks of some classes, and none of the others."""
    return lambda category_id, rng: supply.sources.draw(category_id, rng) if category_id in wanted else None


def _weight_of(tile: Tile, focus: Focus, wanted: Collection[int] | None) -> float:
    """Return the weight of a train tile's mix: the mean of its instances that are drawn."""
    instances = tile.instances
    if wanted is not None:
        # a mix does not hold the others, so they must not choose it
        instances = [
            i for i in instances if i.category_id in wanted and i.visible_share >= MIN_VISIBLE_SHARE and not i.is_crowd
        ]
    return float(np.mean([focus.of(tile.image_id, i.number) for i in instances])) if instances else 0.0


def _told(plan: PlanValue, inputs: RunStore, *, squares: bool, left_out: Mapping[str, int]) -> str:
    summary = plan_summary(plan)
    where = f"{summary['drivers']} drivers of {summary['pool_tiles']} pool tiles"
    if squares:
        image_of = {tile.id: tile.image_id for tile in inputs.tiles.tileset.of("pool")}
        where = f"squares of {len({image_of[job.tile_id] for job in plan.jobs})} pool images"
    cut = ", ".join(f"{name} {count}" for name, count in left_out.items() if count)
    without = f"; left out as too large for a tile with its margin: {cut}" if cut else ""
    return f"{summary['images']} drafts on {where}; masks {summary['instances_per_class']}{without}"
