"""Stage check-concept: draws the concept without a driver, and looks for copies of training tiles before phase 2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from defectory.artifacts.concept_check import CheckedImage, ConceptCheck
from defectory.artifacts.tiles import spread
from defectory.config.project import ProjectConfig
from defectory.curation.checks import MAX_TRAIN
from defectory.curation.novelty import Originals, learn_limit
from defectory.events import Notice, Progress, Work
from defectory.images.save import save_png
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.parts.images_used import record_images
from defectory.stages.parts.prompts import prompt_of, tone_of
from defectory.stages.parts.sampling import load_backbone

NUM_INFERENCE_STEPS = 12
BATCH_SIZE = 4


def checks_concept(config: ProjectConfig) -> bool:
    """Check whether a run has this stage."""
    return config.concept.check_images > 0


class CheckConcept(Stage):
    """Compares a few images of the concept with the training tiles; warns, and blocks nothing."""

    VERSION = 1
    name, folder = "check-concept", layout.CONCEPT_CHECK

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read tiles, split and the concept."""
        return ("import", "split", "tiles", "learn-concept")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the number of images, on how they are drawn, and on the seed."""
        return {
            "concept.check_images": config.concept.check_images,
            "concept.defect_words": config.concept.defect_words,
            "prompts.defect_noun": config.prompts.defect_noun,
            "synthesis.scheduler": config.synthesis.scheduler,
            "synthesis.guidance_scale": config.synthesis.guidance_scale,
            "synthesis.mixed_precision": config.synthesis.mixed_precision,
            "seed": config.seed,
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Draw with the prompts of training tiles, compare, and write a sheet: each image above its nearest tile."""
        tiles, concept, names = inputs.tiles, inputs.concept.concept, inputs.data.dataset.categories
        train = [tile for tile in tiles.tileset.of("train") if tile.instances]
        inputs.split.require_training_ids((tile.image_id for tile in train), stage=self.name)
        record_images(out, reference=(tile.image_id for tile in train))
        train, name_of = spread(train, MAX_TRAIN), {c.id: c.name for c in names}
        images = [tiles.image(tile) for tile in train]
        originals = Originals([tile.id for tile in train], images, [tile.valid_hw for tile in train])
        whole = [
            np.ascontiguousarray(image[: t.valid_hw[0], : t.valid_hw[1]])
            for image, t in zip(images, train, strict=True)
        ]
        groups = [inputs.data.dataset.image(tile.image_id).group for tile in train]
        limit = learn_limit(whole, groups, originals, seed=config.seed)
        chosen = spread(list(range(len(train))), config.concept.check_images)
        shown = [name_of] if config.concept.defect_words else []
        prompts = [
            prompt_of(
                concept,
                [of[i.category_id] for of in shown for i in train[index].instances],
                tone_of(train[index], images[index], concept),
                defect_noun=config.prompts.defect_noun,
            )
            for index in (chosen[number % len(chosen)] for number in range(config.concept.check_images))
        ]
        seeds = [int(np.random.default_rng([config.seed, number]).integers(2**31)) for number in range(len(prompts))]
        drawn = yield from _draw(inputs, config, prompts, seeds)
        checked: list[CheckedImage] = []
        for image, prompt, seed in zip(drawn, prompts, seeds, strict=True):
            like = originals.likeness(image)
            checked.append(CheckedImage(prompt=prompt, seed=seed, similarity=like.value, nearest=like.name))
        value = ConceptCheck(concept_digest=concept.weights_digest, limit=limit, images=tuple(checked))
        value.save(out / layout.CONCEPT_CHECK_FILE)
        nearest = {tile.id: image for tile, image in zip(train, whole, strict=True)}
        save_png(out / layout.CONTACT_SHEET, _sheet(drawn, [nearest.get(one.nearest) for one in checked]))
        if value.copies:
            yield Notice(
                text=f"{len(value.copies)} of {len(checked)} images of the concept are copies of training tiles, the "
                f"first of {value.copies[0].nearest}; raise concept.prior_loss_weight or train fewer steps"
            )
        figures = f"similarity {value.highest:.2f}, limit {limit:.2f}"
        return f"{len(value.copies)} of {len(checked)} images are copies ({figures})"


def _draw(inputs: RunStore, config: ProjectConfig, prompts: list[str], seeds: list[int]) -> Work[list[np.ndarray]]:
    from defectory.engine.devices import device_of
    from defectory.engine.sampling.guidance import Guidance
    from defectory.engine.sampling.models import for_sampling
    from defectory.engine.sampling.sample import Conditions, Sampler, sample_images

    device = device_of(config.device, threads=config.threads)
    models = for_sampling(load_backbone(inputs.concept.folder, device, base=config.base))
    sampler = Sampler(
        scheduler=config.synthesis.scheduler,
        num_inference_steps=NUM_INFERENCE_STEPS,
        mixed_precision=config.synthesis.mixed_precision,
    )
    drawn: list[np.ndarray] = []
    for start in range(0, len(prompts), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        images = sample_images(
            models,
            Conditions(prompts=prompts[rows]),
            seeds=seeds[rows],
            sampler=sampler,
            guidance=Guidance(text=config.synthesis.guidance_scale),
        )
        drawn.extend(images)
        yield Progress(done=len(drawn), total=len(prompts))
    return drawn


def _sheet(drawn: list[np.ndarray], nearest: list[np.ndarray | None]) -> np.ndarray:
    """Put each image above its nearest tile, RGB uint8."""
    import cv2

    height, width = drawn[0].shape[:2]
    below = [
        np.zeros_like(drawn[0]) if tile is None else cv2.resize(tile, (width, height), interpolation=cv2.INTER_AREA)
        for tile in nearest
    ]
    return np.concatenate([np.concatenate(drawn, axis=1), np.concatenate(below, axis=1)], axis=0)
