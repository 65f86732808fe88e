"""The plan: every job of a synthesis, written before the first image is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Instance
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tile, TileSet
from defectory.errors import ConfigError
from defectory.rle import encode
from defectory.synthesis.config import SynthesisConfig

Mask = NDArray[np.bool_]
DrawMask = Callable[[int, np.random.Generator], tuple[Mask, MaskOrigin] | None]
"""Class and generator to a mask, cropped unless masks keep their place, and its source; None where there is none of the
class.
"""


class Site(Protocol):
    """A pool tile as a place for defects."""

    @property
    def allowed(self) -> Mask:
        """Where defects may lie, bool [H,W]."""
        ...


Place = Callable[[Mask, int, Any, Mask, np.random.Generator], Mask | None]
"""Cropped mask, its class, the site, pixels taken already and a generator, to the placed mask or None."""


TRIES = 20
"""Mixes and pool tiles that are tried for one driver."""
MIN_VISIBLE_SHARE = 0.5
"""An instance of which a train tile shows less does not count as one of its defects: masks of the bank are whole."""
REUSE_PER_STEP = 4
"""A pool tile one word of contrast further off is taken once nearer ones have served so many drivers more."""


class _Mix(NamedTuple):
    """What a train tile shows: the class of each defect, and its tone words."""

    category_ids: tuple[int, ...]
    tone: str


def make_plan(
    tileset: TileSet,
    *,
    config: SynthesisConfig,
    draw_mask: DrawMask,
    place: Place,
    site_of: Callable[[Tile, int | None], Site],
    prompt_of: Callable[[Sequence[str], str], str],
    tone_of: Callable[[Tile], str],
    tone_distance: Callable[[str, str], int],
    concept_digest: str,
    control_digest: str,
    driver_config_digest: str,
    keep_place: bool = False,
    even_classes: bool = False,
    weight_of: Callable[[Tile], float] | None = None,
) -> Plan:
    """Pair pool tiles (and their augmented versions) with masks.

    How many defects an image gets, of which classes and in what tones, follows the train tiles; the pool tile is one of
    like tones, since a driver and words that contradict each other give a picture of neither. One driver serves at most
    `max_seeds_per_driver` jobs; with fewer images than drivers each serves one.

    Args:
        tileset: pool tiles, and train tiles for the mix of classes and counts.
        config: how many images, augmentations and seeds.
        draw_mask: gives a mask of a class.
        place: puts it on a tile.
        site_of: tile and augmentation seed to where defects may lie on it.
        prompt_of: class names and tone words to the prompt; no class name gives that of the half without mask.
        tone_of: tone words of a tile; a job takes those of the train tile whose mix of classes it has.
        tone_distance: how far apart two tones are, in words.
        concept_digest: of the concept.
        control_digest: of the control network.
        driver_config_digest: of the driver configuration.
        keep_place: masks stay where they were on their source tile.
        even_classes: mixes of rare classes are taken more often, so that all classes come equally often.
        weight_of: how often a train tile's mix is taken, above 0; None takes all alike.

    Raises:
        ConfigError: no pool tile, or fewer than `max_images_per_tile` asks for; no mask.
    """
    pool = tileset.of("pool")
    if not pool:
        raise ConfigError("pool", "no defect-free tile", "add defect-free images (data.defect_free)")
    most = config.max_images_per_tile
    if most is not None and most * len(pool) < config.num_images:
        raise ConfigError(
            f"synthesis.num_images {config.num_images}",
            f"{len(pool)} pool tiles give {most * len(pool)} images at {most} each",
            "add defect-free images (data.defect_free), ask for fewer, or raise synthesis.max_images_per_tile",
        )
    # where every defect is larger than a tile, parts of them count
    kept: list[tuple[Tile, tuple[int, ...]]] = []
    for least in (MIN_VISIBLE_SHARE, 0.0):
        shown = [
            (tile, tuple(i.category_id for i in tile.instances if i.visible_share >= least and not i.is_crowd))
            for tile in tileset.of("train")
        ]
        kept = [(tile, category_ids) for tile, category_ids in shown if category_ids]
        mixes = [_Mix(category_ids, tone_of(tile)) for tile, category_ids in kept]
        if mixes:
            break
    if not mixes:
        raise ConfigError("train tiles", "none shows a defect", "add annotated images")
    weights = _even_weights([mix.category_ids for mix in mixes]) if even_classes else None
    if weight_of is not None:
        weights = np.array([weight_of(tile) for tile, _ in kept]) * (1.0 if weights is None else weights)
        weights = weights / weights.sum()
    versions = max(1, config.versions_per_tile)
    # a limit per tile is kept by counting drivers, so each serves one image
    num_drivers = (
        config.num_images
        if most is not None
        else max(-(-config.num_images // config.max_seeds_per_driver), min(config.num_images, len(pool) * versions))
    )
    order = np.random.default_rng([41, config.seed]).permutation(len(pool))
    tones = [tone_of(tile) for tile in pool]
    distances: dict[str, NDArray[np.int64]] = {}
    uses, images_on = np.zeros(len(pool), int), np.zeros(len(pool), int)
    jobs: list[Job] = []

    def version_of(place_in_pool: int) -> int | None:
        if config.versions_per_tile == 0:
            return None
        version_rng = np.random.default_rng([44, config.seed, place_in_pool, int(uses[place_in_pool]) % versions])
        return int(version_rng.integers(2**31))

    for driver_index in range(num_drivers):
        rng = np.random.default_rng([42, config.seed, driver_index])
        for _ in range(TRIES):
            mix = mixes[int(rng.integers(len(mixes)) if weights is None else rng.choice(len(mixes), p=weights))]
            if mix.tone not in distances:
                distances[mix.tone] = np.array([tone_distance(mix.tone, tone) for tone in tones])
            costs = uses + REUSE_PER_STEP * distances[mix.tone]
            if most is not None:
                costs = np.where(images_on >= most, np.iinfo(np.int64).max, costs)
            place_in_pool = int(order[int(costs[order].argmin())])
            tile, augmentation_seed = pool[place_in_pool], version_of(place_in_pool)
            uses[place_in_pool] += 1
            instances, sources = _label(tile, augmentation_seed, mix, rng, draw_mask, place, site_of, keep_place)
            if instances:
                images_on[place_in_pool] += 1
                break
        else:
            raise ConfigError(
                "pool", f"no mask finds a place on any of {TRIES} tiles", "use larger tiles or more masks"
            )
        names = [tileset.categories[i.category_id - 1].name for i in instances]
        prompt, prompt_without = (prompt_of(named, mix.tone) for named in (names, ()))
        # jobs driver_index, driver_index + num_drivers, ... share a driver
        for number in range(driver_index, config.num_images, num_drivers):
            seed = int(np.random.default_rng([43, config.seed, number]).integers(2**31))
            jobs.append(
                Job(
                    id=f"{number:06d}",
                    tile_id=tile.id,
                    augmentation_seed=augmentation_seed,
                    instances=instances,
                    mask_sources=sources,
                    prompt=prompt,
                    prompt_without=prompt_without,
                    seed=seed,
                )
            )
    return Plan(
        concept_digest=concept_digest,
        control_digest=control_digest,
        driver_config_digest=driver_config_digest,
        categories=tileset.categories,
        jobs=tuple(sorted(jobs, key=lambda job: job.id)),
    )


def _label(
    tile: Tile,
    augmentation_seed: int | None,
    mix: _Mix,
    rng: np.random.Generator,
    draw_mask: DrawMask,
    place: Place,
    site_of: Callable[[Tile, int | None], Site],
    keep_place: bool,
) -> tuple[tuple[Instance, ...], tuple[MaskOrigin, ...]]:
    """Give the labels of one driver and where their masks come from; none where no mask finds a place."""
    site = site_of(tile, augmentation_seed)
    taken = np.zeros_like(site.allowed)
    instances: list[Instance] = []
    sources: list[MaskOrigin] = []
    for category_id in mix.category_ids:
        drawn = draw_mask(category_id, rng)
        if drawn is None:
            continue
        mask, source = drawn
        placed = mask & site.allowed if keep_place else place(mask, category_id, site, taken, rng)
        if placed is None or not placed.any() or (placed & taken).any():
            continue
        taken |= placed
        instances.append(Instance(category_id=category_id, rle=encode(placed)))
        sources.append(source)
    return tuple(instances), tuple(sources)


def _even_weights(classes_of: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Give the probability of each mix at which all classes come about equally often: iterated proportional fitting
    over the classes.
    """
    classes = sorted({c for of in classes_of for c in of})
    counts = np.array([[list(of).count(c) for c in classes] for of in classes_of], np.float64)
    weights = np.full(len(counts), 1 / len(counts))
    for _ in range(EVEN_ROUNDS):
        share = weights @ counts
        share = share / share.sum()
        # each mix by the mean need of the defects it holds
        need = counts @ (1 / share) / counts.sum(axis=1)
        weights = weights * np.sqrt(need)
        weights = weights / weights.sum()
    return weights


EVEN_ROUNDS = 60


def plan_summary(plan: Plan) -> dict[str, object]:
    """Count a plan's images, drivers, pool tiles and instances per class, for inspection before synthesis."""
    names = {category.id: category.name for category in plan.categories}
    return {
        "images": len(plan.jobs),
        "pool_tiles": len({job.tile_id for job in plan.jobs}),
        "drivers": len({(job.tile_id, job.augmentation_seed, job.mask_sources) for job in plan.jobs}),
        "instances_per_class": dict(Counter(names[i.category_id] for job in plan.jobs for i in job.instances)),
    }
