"""Makes the plan: every job of a synthesis, fixed before the first image is drawn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tile, TileSet
from defectory.errors import ConfigError
from defectory.rle import encode
from defectory.synthesis.config import SynthesisConfig

Mask = NDArray[np.bool_]
DrawMask = Callable[[int, np.random.Generator], tuple[Mask, MaskOrigin] | None]
"""Maps class and generator to a mask (cropped unless masks keep their place) and its source; None if it has none."""


class Site(Protocol):
    """A pool tile as a place for defects."""

    @property
    def allowed(self) -> Mask:
        """Where defects may lie, bool [H,W]."""
        ...


Place = Callable[[Mask, int, Any, Mask, np.random.Generator], Mask | None]
"""Maps a cropped mask, its class, the site, occupied pixels and a generator to the placed mask or None."""


_Label = tuple[tuple[Instance, ...], tuple[MaskOrigin, ...]]
"""Instances of a driver and the origins of their masks; empty if no mask found a place."""
TRIES = 20
"""Most mixes and pool tiles tried for one driver."""
MIN_VISIBLE_SHARE = 0.5
"""An instance that a train tile shows less of does not count, since masks of the bank are whole."""
REUSE_PER_STEP = 4
"""Drivers by which nearer pool tiles must lead before one that is a word of contrast farther is taken."""


@dataclass(frozen=True, kw_only=True)
class PlanDigests:
    """Digests of what draws a plan."""

    concept: str
    control: str
    driver_config: str

    def plan(self, categories: tuple[Category, ...], jobs: Iterable[Job]) -> Plan:
        """Return the plan of some jobs, in the order of their ids."""
        return Plan(
            concept_digest=self.concept,
            control_digest=self.control,
            driver_config_digest=self.driver_config,
            categories=categories,
            jobs=tuple(sorted(jobs, key=lambda job: job.id)),
        )


class Mix(NamedTuple):
    """The class of each defect on a train tile, and the tile's tone words."""

    tile: Tile
    category_ids: tuple[int, ...]
    tone: str


@dataclass(frozen=True, kw_only=True)
class PlanMaterial:
    """What a plan is made from, as functions.

    Attributes:
        draw_mask: draws a mask of a class.
        place: places the mask on a tile.
        site_of: maps a tile and an augmentation seed to the site for defects.
        prompt_of: maps class names and tone words to a prompt; no class names mean the half without masks.
        tone_of: returns the tone words of a tile.
        tone_distance: how far apart two tones are, in words.
        keep_place: masks keep their position on the source tile.
        even_classes: take mixes with rare classes more often, so that all classes are equally frequent.
        weight_of: sampling weight of a train tile's mix; None means uniform.
    """

    draw_mask: DrawMask
    place: Place
    site_of: Callable[[Tile, int | None], Site]
    prompt_of: Callable[[Sequence[str], str], str]
    tone_of: Callable[[Tile], str]
    tone_distance: Callable[[str, str], int]
    keep_place: bool = False
    even_classes: bool = False
    weight_of: Callable[[Tile], float] | None = None


def make_plan(
    tileset: TileSet,
    *,
    config: SynthesisConfig,
    seed: int,
    digests: PlanDigests,
    material: PlanMaterial,
    earlier: Sequence[Job] = (),
) -> Plan:
    """Make a plan that pairs pool tiles, and augmented versions of them, with masks.

    Number, classes and tones of an image's defects follow the train tiles. The pool tile has similar tones, since a
    driver that contradicts the prompt makes bad images. One driver serves at most `max_seeds_per_driver` jobs, and only
    one job if there are at least as many drivers as images. A job uses the tones of the train tile that provides its
    classes.

    Args:
        tileset: pool tiles, and train tiles for the mix of classes and counts.
        config: how many images, augmentations and seeds.
        seed: of pool tiles, augmentations, masks and noise.
        digests: of what draws the plan.
        material: masks, sites, prompts and tones.
        earlier: jobs of earlier rounds. Numbers and seeds continue theirs, and `max_images_per_tile` counts them.

    Raises:
        ConfigError: no pool tile, too few of them for `max_images_per_tile`, or no mask.
    """
    pool, first = tileset.of("pool"), len(earlier)
    check_pool(len(pool), config, num_earlier=first)
    tone_of, prompt_of = material.tone_of, material.prompt_of
    mixes = mixes_of_train(tileset, tone_of)
    weights = mix_weights(mixes, even_classes=material.even_classes, weight_of=material.weight_of)
    chooser = PoolChooser([tone_of(tile) for tile in pool], config, material.tone_distance, seed=seed)
    drivers = Counter(job.tile_id for job in first_of_drivers(earlier))
    for number, tile in enumerate(pool):
        chooser.resume(number, uses=drivers[tile.id], drivers=drivers[tile.id])
    num_drivers = _num_drivers(len(pool), config)

    def label(number: int, augmentation_seed: int | None, mix: Mix, rng: np.random.Generator) -> _Label:
        return _label(pool[number], augmentation_seed, mix, rng, material)

    jobs: list[Job] = []
    for index in range(first, first + num_drivers):
        rng = np.random.default_rng([42, seed, index])
        mix, number, augmentation_seed, (instances, sources) = _first_that_fits(mixes, weights, chooser, label, rng)
        names = [tileset.categories[i.category_id - 1].name for i in instances]
        shared = Job(
            id="",
            tile_id=pool[number].id,
            augmentation_seed=augmentation_seed,
            instances=instances,
            mask_sources=sources,
            prompt=prompt_of(names, mix.tone),
            prompt_without=prompt_of((), mix.tone),
            seed=0,
        )
        jobs += _jobs_of_driver(shared, range(index, first + config.num_images, num_drivers), seed=seed)
    return digests.plan(tileset.categories, jobs)


def first_of_drivers(jobs: Iterable[Job]) -> list[Job]:
    """Return one job of each driver."""
    return list({(job.tile_id, job.offset_xy, job.augmentation_seed, job.mask_sources): job for job in jobs}.values())


def masks_taken(jobs: Iterable[Job]) -> Mapping[str, int]:
    """Count how often each mask of the bank or of an expert was taken, by id; jobs of one driver share theirs."""
    return Counter(source.bank_id for job in first_of_drivers(jobs) for source in job.mask_sources if source.bank_id)


def check_pool(num_tiles: int, config: SynthesisConfig, *, num_earlier: int = 0) -> None:
    """Require enough pool tiles for a plan, after a number of earlier jobs.

    Raises:
        ConfigError: there are not.
    """
    if not num_tiles:
        raise ConfigError("pool", "no defect-free tile", "add defect-free images (data.defect_free)")
    most = config.max_images_per_tile
    num_images = num_earlier + config.num_images
    if most is not None and most * num_tiles < num_images:
        raise ConfigError(
            f"synthesis.num_images {num_images}",
            f"{num_tiles} pool tiles give {most * num_tiles} images at {most} each",
            "add defect-free images (data.defect_free), ask for fewer, or raise synthesis.max_images_per_tile",
        )


def mixes_of_train(tileset: TileSet, tone_of: Callable[[Tile], str]) -> list[Mix]:
    """Return the mix of each train tile with a defect."""
    # if every defect is larger than a tile, parts of defects count
    for least in (MIN_VISIBLE_SHARE, 0.0):
        shown = [
            (tile, tuple(i.category_id for i in tile.instances if i.visible_share >= least and not i.is_crowd))
            for tile in tileset.of("train")
        ]
        mixes = [Mix(tile, category_ids, tone_of(tile)) for tile, category_ids in shown if category_ids]
        if mixes:
            return mixes
    raise ConfigError("train tiles", "none shows a defect", "add annotated images")


def mix_weights(
    mixes: Sequence[Mix], *, even_classes: bool, weight_of: Callable[[Tile], float] | None
) -> NDArray[np.float64] | None:
    """Compute the probability of each mix; None means uniform, and so do weights that are all 0."""
    weights = _even_weights([mix.category_ids for mix in mixes]) if even_classes else None
    if weight_of is None:
        return weights
    weighted = np.array([weight_of(mix.tile) for mix in mixes]) * (1.0 if weights is None else weights)
    return weighted / weighted.sum() if weighted.any() else weights


def _num_drivers(num_tiles: int, config: SynthesisConfig) -> int:
    if config.num_drivers is not None:
        return min(config.num_drivers, config.num_images)
    if config.max_images_per_tile is not None:
        # a limit per tile is kept by counting drivers, so each driver serves one image
        return config.num_images
    versions = max(1, config.versions_per_tile)
    fewest = -(-config.num_images // config.max_seeds_per_driver)
    return max(fewest, min(config.num_images, num_tiles * versions))


class PoolChooser:
    """Chooses pool tiles with tones like a mix's, and uses all of them evenly.

    Args:
        tones: of the pool tiles.
        config: of synthesis.
        tone_distance: how far apart two tones are, in words.
        seed: of the order.
        groups: of the tiles, used evenly in place of the tiles themselves.
    """

    def __init__(
        self,
        tones: Sequence[str],
        config: SynthesisConfig,
        tone_distance: Callable[[str, str], int],
        *,
        seed: int,
        groups: Sequence[int] | None = None,
    ) -> None:
        self._seed = seed
        self._groups = np.arange(len(tones)) if groups is None else np.unique(groups, return_inverse=True)[1]
        self._tones, self._config, self._tone_distance = tones, config, tone_distance
        self._order = np.random.default_rng([41, seed]).permutation(len(tones))
        self._distances: dict[str, NDArray[np.int64]] = {}
        self._uses, self._drivers = np.zeros(len(tones), int), np.zeros(len(tones), int)

    def take(self, tone: str) -> tuple[int, int | None]:
        """Choose a pool tile; return its number and the seed of its augmented version."""
        costs = self._uses[self._groups] + REUSE_PER_STEP * self._distances_to(tone)
        if (most := self._config.max_images_per_tile) is not None:
            costs = np.where(self._drivers >= most, np.iinfo(np.int64).max, costs)
        number = int(self._order[int(costs[self._order].argmin())])
        version = self._version(number)
        self._uses[self._groups[number]] += 1
        return number, version

    def take_of(self, numbers: Sequence[int], tone: str, rng: np.random.Generator) -> int | None:
        """Choose one of some pool tiles, by tone and evenly; None if each has served as often as it may."""
        most = self._config.max_images_per_tile
        left = [number for number in rng.permutation(list(numbers)) if most is None or self._drivers[number] < most]
        if not left:
            return None
        costs = self._drivers[left] + REUSE_PER_STEP * self._distances_to(tone)[left]
        return int(left[int(costs.argmin())])

    def resume(self, number: int, *, uses: int, drivers: int) -> None:
        """Count what earlier rounds used a tile for: `uses` for an even choice, `drivers` for `max_images_per_tile`."""
        self._uses[self._groups[number]] += uses
        self._drivers[number] += drivers

    def _distances_to(self, tone: str) -> NDArray[np.int64]:
        if tone not in self._distances:
            self._distances[tone] = np.array([self._tone_distance(tone, other) for other in self._tones])
        return self._distances[tone]

    def count_driver(self, number: int) -> None:
        """Count a driver that uses a tile."""
        self._drivers[number] += 1

    def _version(self, number: int) -> int | None:
        if self._config.versions_per_tile == 0:
            return None
        version = int(self._uses[number]) % max(1, self._config.versions_per_tile)
        return int(np.random.default_rng([44, self._seed, number, version]).integers(2**31))


def _first_that_fits(
    mixes: Sequence[Mix],
    weights: NDArray[np.float64] | None,
    chooser: PoolChooser,
    label: Callable[[int, int | None, Mix, np.random.Generator], _Label],
    rng: np.random.Generator,
) -> tuple[Mix, int, int | None, _Label]:
    """Draw mixes and pool tiles until a mask fits; return mix, tile number, augmentation seed and label."""
    for _ in range(TRIES):
        mix = mixes[int(rng.integers(len(mixes)) if weights is None else rng.choice(len(mixes), p=weights))]
        number, augmentation_seed = chooser.take(mix.tone)
        found = label(number, augmentation_seed, mix, rng)
        if found[0]:
            chooser.count_driver(number)
            return mix, number, augmentation_seed, found
    raise ConfigError("pool", f"no mask finds a place on any of {TRIES} tiles", "use larger tiles or more masks")


def _jobs_of_driver(shared: Job, numbers: Iterable[int], *, seed: int) -> list[Job]:
    """Make the jobs that share a driver: each has its own number and noise."""
    noise = {number: int(np.random.default_rng([43, seed, number]).integers(2**31)) for number in numbers}
    return [shared.model_copy(update={"id": f"{number:06d}", "seed": of}) for number, of in noise.items()]


def _label(
    tile: Tile, augmentation_seed: int | None, mix: Mix, rng: np.random.Generator, material: PlanMaterial
) -> _Label:
    """Make the label of one driver; empty if no mask finds a place."""
    site = material.site_of(tile, augmentation_seed)
    taken = np.zeros_like(site.allowed)
    instances: list[Instance] = []
    sources: list[MaskOrigin] = []
    for category_id in mix.category_ids:
        drawn = material.draw_mask(category_id, rng)
        if drawn is None:
            continue
        mask, source = drawn
        placed = mask & site.allowed if material.keep_place else material.place(mask, category_id, site, taken, rng)
        if placed is None or not placed.any() or (placed & taken).any():
            continue
        taken |= placed
        instances.append(Instance(category_id=category_id, rle=encode(placed)))
        sources.append(source)
    return tuple(instances), tuple(sources)


def _even_weights(classes_of: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Compute probabilities of mixes that make all classes equally frequent, by iterated proportional fitting."""
    classes = sorted({c for of in classes_of for c in of})
    counts = np.array([[list(of).count(c) for c in classes] for of in classes_of], np.float64)
    weights = np.full(len(counts), 1 / len(counts))
    for _ in range(EVEN_ROUNDS):
        share = weights @ counts
        share = share / share.sum()
        # scale each mix by the mean need of its defects
        need = counts @ (1 / share) / counts.sum(axis=1)
        weights = weights * np.sqrt(need)
        weights = weights / weights.sum()
    return weights


EVEN_ROUNDS = 60


def plan_summary(plan: Plan) -> dict[str, object]:
    """Count images, drivers, pool tiles and instances per class of a plan, for inspection before synthesis."""
    names = {category.id: category.name for category in plan.categories}
    return {
        "images": len(plan.jobs),
        "pool_tiles": len({job.tile_id for job in plan.jobs}),
        "drivers": len(first_of_drivers(plan.jobs)),
        "instances_per_class": dict(Counter(names[i.category_id] for job in plan.jobs for i in job.instances)),
    }
