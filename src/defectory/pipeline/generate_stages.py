"""Stages of generation: concept, condition, plan, synthesis, curation, export, finished pipeline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defectory.artifacts.calibration import Calibration, ClassCalibration
from defectory.artifacts.difficulty import Difficulty
from defectory.artifacts.plan import Job, MaskBank, MaskBankEntry, Plan
from defectory.artifacts.tiles import Tile
from defectory.artifacts.weights import Concept, Control
from defectory.engine.backbones.prompts import condition_prompt
from defectory.evaluation.contrast import contrasts_by_class, defect_contrast
from defectory.files import digest_json, write_json
from defectory.imageio import load_rgb
from defectory.masks.placement import (
    RELATIONS,
    Site,
    borders_of,
    filled_where_cut,
    place,
    place_like,
    relation_of,
    relation_shares,
    site_of,
)
from defectory.masks.sources import MaskSources
from defectory.pipeline.drawings import drawings_of
from defectory.pipeline.mask_check import bank_from_train, expert_masks
from defectory.pipeline.mask_model import mask_diffusion_of
from defectory.pipeline.pool import PoolTiles
from defectory.pipeline.regions import tile_regions
from defectory.pipeline.stage import Notice, Progress, Project
from defectory.pipeline.training import device_of, phase_progress, staged
from defectory.pipeline.values import Mask, dataset_of, driver_maker, masks_of, split_of, spread, tileset_of
from defectory.pipeline.verify import checked
from defectory.rle import decode, encode
from defectory.surface import solid_pixels
from defectory.synthesis.plan import make_plan, plan_summary
from defectory.tones import contrast_steps

FOCUS_FLOOR = 0.1
"""Weight of an instance that a segmenter draws perfectly, beside 1 for one that it misses."""
DRIVER_RULES = 3
"""Raised when the same settings give other drivers."""


def training_tiles(project: Project, tiles: Iterable[Tile]) -> list[Any]:
    """Load tiles for training; the firewall has seen them when they were cut, and sees them again here."""
    from defectory.engine.training.data import TrainingTile

    tileset, drawings = tileset_of(project), drawings_of(project)
    names = {c.id: c.name for c in tileset.categories}
    return [
        TrainingTile(
            id=tile.id,
            image=load_rgb(project.path("tiles", tile.file_name)),
            instances=masks_of(tile.instances),
            class_names=tuple(names[i.category_id] for i in tile.instances),
            valid_hw=tile.valid_hw,
            drawing=None if drawings is None else drawings.of(tile),
        )
        for tile in tiles
    ]


def phase_tiles(project: Project) -> tuple[list[Any], list[Any]]:
    """Give training tiles (defective ones and up to half as many defect-free ones) and held-out val tiles."""
    tileset = tileset_of(project)
    defective = [tile for tile in tileset.of("train") if tile.instances]
    free = [*tileset.of("pool"), *(tile for tile in tileset.of("train") if not tile.instances)]
    split_of(project).require_training_ids((tile.image_id for tile in [*defective, *free]), stage="training")
    free = spread(free, max(1, len(defective) // 2))
    held_out = [tile for tile in tileset.of("val") if tile.instances][:32]
    return training_tiles(project, [*defective, *free]), training_tiles(project, held_out)


def run_concept(project: Project) -> Iterator[Progress | Notice | str]:
    """Phase 1."""
    from defectory.concept.learn import learn_concept
    from defectory.engine.backbones.known import resolve_base

    tiles, held_out = phase_tiles(project)
    yield from phase_progress(
        "learn-concept",
        learn_concept(
            tiles,
            base=resolve_base(project.config.base),
            config=project.config.concept,
            seed=project.config.seed,
            out=project.path("concept"),
            defect_noun=project.config.condition.defect_noun,
            device=device_of(project),
            held_out=held_out,
            cache=project.path("cache"),
        ),
    )


def run_condition(project: Project) -> Iterator[Progress | Notice | str]:
    """Phase 2."""
    from defectory.condition.learn import learn_condition

    tiles, held_out = phase_tiles(project)
    num_classes = len(tileset_of(project).categories)
    yield from phase_progress(
        "learn-condition",
        learn_condition(
            tiles,
            concept=project.path("concept"),
            config=project.config.condition,
            make_driver=driver_maker(project, num_classes),
            seed=project.config.seed,
            out=project.path("control"),
            device=device_of(project),
            driver_digest=driver_digest(project),
            held_out=held_out,
            cache=project.path("cache"),
            load_backbone=partial(backbone_of, project),
        ),
    )


def driver_digest(project: Project) -> str:
    """Give the digest of the driver configuration and of the number of classes, which decides colours."""
    return digest_json(
        {
            "rules": DRIVER_RULES,
            "drivers": project.config.drivers.model_dump(mode="json"),
            "classes": len(dataset_of(project).categories),
        }
    )


def placement_in_train(
    project: Project, bank: MaskBank, weights: Mapping[str, float]
) -> tuple[dict[int, np.ndarray], MaskBank]:
    """Give per class how its masks, weighed by entry, lie to holes and edges of their own tiles, and the bank without
    the gaps those holes cut.
    """
    tileset = tileset_of(project)
    masks: dict[str, list[MaskBankEntry]] = {}
    for entry in bank.entries:
        masks.setdefault(entry.tile_id, []).append(entry)
    observed: list[tuple[int, int, float]] = []
    whole: dict[str, MaskBankEntry] = {}
    for tile in tileset.of("train"):
        if tile.id not in masks:
            continue
        defects = [mask for _, mask in masks_of(tile.instances)]
        borders = borders_of(solid_pixels(load_rgb(project.path("tiles", tile.file_name)), tile.valid_hw, defects))
        for entry in masks[tile.id]:
            mask = decode(entry.mask.rle)
            observed.append((entry.category_id, relation_of(mask, borders), weights.get(entry.id, 1.0)))
            filled = entry.mask.model_copy(update={"rle": encode(filled_where_cut(mask, borders))})
            whole[entry.id] = entry.model_copy(update={"mask": filled})
    return relation_shares(observed), bank.model_copy(
        update={"entries": tuple(whole.get(entry.id, entry) for entry in bank.entries)}
    )


@dataclass(frozen=True, kw_only=True)
class MaskSupply:
    """What masks a project may use, and where on a part they lie."""

    bank: MaskBank
    sources: MaskSources
    shares: dict[int, np.ndarray]

    def place(self, mask: Mask, category_id: int, site: Site, taken: Mask, rng: np.random.Generator) -> Mask | None:
        """Place a mask of a class on a tile, bool [H,W], as its class lies in train where that is learned; None where
        there is no place.
        """
        if category_id in self.shares:
            return place_like(mask, self.shares[category_id], site=site, taken=taken, rng=rng)
        return place(mask, size_hw=(taken.shape[0], taken.shape[1]), allowed=site.allowed, taken=taken, rng=rng)


def mask_supply(project: Project) -> MaskSupply:
    """Build bank, sources and learned placement from train.

    Raises:
        ConfigError: train has no mask, or an expert's cannot be used.
    """
    config = project.config.masks
    bank = bank_from_train(project)
    supplied, bank = expert_masks(project, bank)
    diffusion, focus = mask_diffusion_of(project, bank), focus_weights(project)
    weights = (
        {} if focus is None else {entry.id: focus.get((entry.image_id, entry.number), 1.0) for entry in bank.entries}
    )
    shares: dict[int, np.ndarray] = {}
    if config.placement == "learned":
        shares, bank = placement_in_train(project, bank, weights)
    names = {category.id: category.name for category in tileset_of(project).categories}
    return MaskSupply(
        bank=bank,
        sources=MaskSources(bank, supplied, config=config, names=names, diffusion=diffusion, weights=weights),
        shares=shares,
    )


def focus_weights(project: Project) -> dict[tuple[int, int], float] | None:
    """Give how often each train instance should serve, by image id and number; None where all serve alike."""
    if project.config.synthesis.focus == "uniform":
        return None
    return Difficulty.load(project.path("folds", "difficulty.json")).weights(floor=FOCUS_FLOOR)


def run_plan(project: Project) -> Iterator[Progress | str]:
    """Build the mask bank and write the plan."""
    from defectory.engine.training.data import TrainingTile

    tileset = tileset_of(project)
    config = project.config
    supply = mask_supply(project)
    region_of = tile_regions(project, tileset.tiling.tile_px)
    supply.bank.save(project.path("plan", "bank.json"))
    pool = PoolTiles(project, tileset)
    concept, control = (
        Concept.load(checked(project, "concept", "concept.json")),
        Control.load(checked(project, "control", "control.json")),
    )

    names = {category.id: category.name for category in tileset.categories}
    table = {names[i]: dict(zip(RELATIONS, np.round(of, 4).tolist(), strict=True)) for i, of in supply.shares.items()}
    write_json(project.path("plan", "placement.json"), table)

    def tile_as_site(tile: Tile, augmentation_seed: int | None) -> Site:
        site = site_of(pool.image(tile, augmentation_seed), tile.valid_hw)
        region = region_of(tile, augmentation_seed)
        return site if region is None else Site(allowed=site.allowed & region, borders=site.borders)

    def tone_of(tile: Tile) -> str:
        if not concept.tone_words:
            return ""
        masks = masks_of(tile.instances)
        image = load_rgb(project.path("tiles", tile.file_name))
        # classes do not matter for tones; naming them would read the tile set again for every tile
        return TrainingTile(
            id=tile.id, image=image, instances=masks, class_names=("",) * len(masks), valid_hw=tile.valid_hw
        ).tone

    focus = focus_weights(project)

    def weight_of(tile: Tile) -> float:
        return float(np.mean([(focus or {}).get((tile.image_id, i.number), 1.0) for i in tile.instances]))

    plan = make_plan(
        tileset,
        config=config.synthesis,
        draw_mask=supply.sources.draw,
        even_classes=config.masks.class_balance == "even",
        weight_of=None if focus is None else weight_of,
        place=supply.place,
        site_of=tile_as_site,
        prompt_of=lambda names, tone: prompt_of(project, concept, names, tone),
        tone_of=tone_of,
        tone_distance=contrast_steps,
        concept_digest=concept.weights_digest,
        control_digest=control.weights_digest,
        driver_config_digest=driver_digest(project),
        keep_place=config.masks.keep_place,
    )
    plan.save(project.path("plan", "plan.json"))
    summary = plan_summary(plan)
    yield (
        f"{summary['images']} images on {summary['drivers']} drivers of {summary['pool_tiles']} pool tiles; masks "
        f"{summary['instances_per_class']}"
    )


def run_calibration(project: Project) -> Iterator[Progress | Notice | str]:
    """Choose mask guidance per class."""
    tileset, config = tileset_of(project), project.config.synthesis
    concept, control = (
        Concept.load(checked(project, "concept", "concept.json")),
        Control.load(checked(project, "control", "control.json")),
    )
    digests = {"concept_digest": concept.weights_digest, "control_digest": control.weights_digest}
    path = project.path("calibration", "calibration.json")
    if config.mask_guidance != "auto":
        fixed = [
            ClassCalibration(category_id=c.id, name=c.name, mask_guidance=config.mask_guidance)
            for c in tileset.categories
        ]
        Calibration(classes=tuple(fixed), **digests).save(path)
        yield f"mask guidance {config.mask_guidance:g} for every class, as set"
        return
    from defectory.synthesis.calibrate import CalibrationDraft, calibrate, choose_drafts

    defective = [tile for tile in tileset.of("train") if tile.instances]
    split_of(project).require_training_ids((tile.image_id for tile in defective), stage="calibrate")
    real = contrasts_by_class(
        (load_rgb(project.path("tiles", tile.file_name)), masks_of([i for i in tile.instances if not i.is_crowd]))
        for tile in defective
    )
    jobs, pool = plan_of(project).jobs, PoolTiles(project, tileset)
    chosen = choose_drafts(
        [[i.category_id for i in job.instances] for job in jobs], config.calibration_drafts, seed=config.seed
    )
    drafts: list[CalibrationDraft] = []
    for job in (jobs[number] for number in chosen):
        driver, empty_driver, _ = pool.drivers(job)
        drafts.append(
            CalibrationDraft(
                instances=tuple(masks_of(job.instances)),
                driver=driver,
                empty_driver=empty_driver,
                prompt=job.prompt,
                prompt_without=job.prompt_without,
                seed=job.seed,
            )
        )
    classes, _ = yield from staged(
        "calibrate",
        calibrate(
            drafts,
            real=real,
            models=sampling_models(project),
            class_noun=concept.class_noun,
            categories=tileset.categories,
            config=config,
            contrast_of=defect_contrast,
        ),
    )
    Calibration(classes=classes, **digests).save(path)
    yield "mask guidance " + ", ".join(f"{c.name} {c.mask_guidance:.2f}" for c in classes)


def sampling_models(project: Project) -> Any:
    """Load adapted base and control network as they are drawn with."""
    from defectory.condition.load import load_network
    from defectory.engine.sampling.models import for_sampling

    backbone = backbone_of(project, project.path("concept"), device_of(project))
    return for_sampling(backbone, load_network(project.path("control"), backbone))


def backbone_of(project: Project, concept: Path, device: Any = "cpu") -> Any:
    """Load the backbone that knows the concept of a folder."""
    from defectory.concept.load import load_concept
    from defectory.engine.backbones.known import resolve_base

    return load_concept(concept, device, find_base=lambda: resolve_base(project.config.base))


def prompt_of(project: Project, concept: Concept, names: Sequence[str], tone: str) -> str:
    """Give the prompt of an image with defects of these classes and in these tones; without classes, that of a
    defect-free one.
    """
    return condition_prompt(concept.token, names, defect_noun=project.config.condition.defect_noun, tone=tone)


def plan_of(project: Project) -> Plan:
    """Read the plan."""
    return Plan.load(checked(project, "plan", "plan.json"))


def calibration_of(project: Project) -> Calibration:
    """Read the mask guidance per class."""
    return Calibration.load(checked(project, "calibration", "calibration.json"))


def bank_of(project: Project) -> MaskBank:
    """Read the mask bank."""
    return MaskBank.load(checked(project, "plan", "bank.json"))


def run_synthesis(project: Project) -> Iterator[Progress | str]:
    """Draw all drafts of the plan."""
    from defectory.synthesis.calibrate import guidance_map
    from defectory.synthesis.full import DraftInput, synthesize

    plan, pool = plan_of(project), PoolTiles(project, tileset_of(project))
    guidance = calibration_of(project).by_category()

    def input_of(job: Job) -> DraftInput:
        driver, empty, tile = pool.drivers(job)
        return DraftInput(
            driver=driver,
            empty_driver=empty,
            tile=tile,
            valid_hw=pool.tile(job).valid_hw,
            mask_guidance=guidance_map(masks_of(job.instances), guidance, driver.shape[:2]),
        )

    seconds = 0.0
    for event in synthesize(
        plan,
        models=sampling_models(project),
        class_noun=Concept.load(checked(project, "concept", "concept.json")).class_noun,
        input_of=input_of,
        config=project.config.synthesis,
        out=project.path("drafts"),
    ):
        seconds = event.seconds
        yield Progress(stage="synthesize", done=event.done, total=event.total)
    yield f"{len(plan.jobs)} drafts with their counterfactual halves in {seconds:.0f} s"


def run_finalize(project: Project) -> Iterator[Progress | str]:
    """Write the finished pipeline for plain diffusers."""
    from defectory.condition.finalize import finalize_pipeline

    backbone = backbone_of(project, project.path("concept"))
    digest = finalize_pipeline(backbone, project.path("control"), project.path("pipeline"))
    yield f"loads with StableDiffusionControlNetPipeline.from_pretrained, digest {digest[:12]}"
