"""Chooses mask guidance per class, so that drafts' defects have the contrast of real ones.

A briefly trained network draws defects too pale. Guidance compensates for this, by an amount that differs from class
to class. Some planned drafts are drawn at a few guidance levels, and contrast grows with the level. Train tiles would
not do, since their drivers show more of a large defect than those of defect-free images (decisions 015 and 021).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.calibration import ClassCalibration
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.events import Progress, Work
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.full import guidance_of

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]
ContrastOf = Callable[[Image, Mask, Mask], float | None]
"""Maps an image, a defect's mask and the union of all masks to the defect's contrast."""

LEVELS = (1.0, 1.75, 2.5)
BOUNDS = (1.0, 3.0)
MIN_INSTANCES = 4
"""Classes with fewer measured defects, drawn or real, use the guidance of all classes together."""


@dataclass(frozen=True, kw_only=True)
class CalibrationDraft:
    """A planned draft: its defects (category id and mask), its seed, and drivers and prompts with and without them.

    Drivers are uint8 [H,W,3K] for K networks, the run's own first.
    """

    instances: tuple[tuple[int, Mask], ...]
    driver: Image
    empty_driver: Image
    prompt: str
    prompt_without: str
    seed: int


def choose_drafts(classes_of: Sequence[Sequence[int]], count: int, *, seed: int) -> list[int]:
    """Choose at most `count` drafts that show every class as often as possible, and return their numbers.

    Args:
        classes_of: category ids on each draft.
        count: largest number of drafts.
        seed: of the order in which drafts are tried.
    """
    order = [int(i) for i in np.random.default_rng([46, seed]).permutation(len(classes_of))]
    seen: dict[int, int] = dict.fromkeys((c for classes in classes_of for c in classes), 0)
    chosen: list[int] = []
    while order and len(chosen) < count:
        rarest = min(sorted(seen), key=lambda c: seen[c])
        following = next((i for i in order if rarest in classes_of[i]), None)
        if following is None:
            del seen[rarest]
            if not seen:
                break
            continue
        order.remove(following)
        chosen.append(following)
        for category_id in classes_of[following]:
            if category_id in seen:
                seen[category_id] += 1
    return chosen


def calibrate(
    drafts: Sequence[CalibrationDraft],
    *,
    real: Mapping[int, Sequence[float]],
    models: SamplingModels,
    class_noun: str,
    categories: Sequence[Category],
    config: SynthesisConfig,
    contrast_of: ContrastOf,
) -> Work[tuple[ClassCalibration, ...]]:
    """Draw planned drafts at a few guidance levels, and return the guidance chosen for each class.

    Args:
        drafts: what to draw.
        real: contrasts of the defects in train tiles, by category id.
        models: adapted backbone and its condition networks, in float32.
        class_noun: as for `synthesize`.
        categories: of the data set.
        config: sampler, steps, batch size.
        contrast_of: measures a defect.
    """
    sampler = Sampler(
        scheduler=config.scheduler,
        num_inference_steps=config.num_inference_steps,
        mixed_precision=config.mixed_precision,
    )
    # category id, then its contrast at each level
    rows: list[tuple[int, tuple[float, ...]]] = []
    done = 0
    for start in range(0, len(drafts), config.batch_size):
        batch = drafts[start : start + config.batch_size]
        pictures: list[Sequence[Image]] = []
        for level in LEVELS:
            drawn = sample_images(
                models,
                Conditions(prompts=[d.prompt for d in batch], drivers=[d.driver for d in batch]),
                seeds=[d.seed for d in batch],
                sampler=sampler,
                guidance=guidance_of(config, class_noun=class_noun, mask=level),
                without=Conditions(prompts=[d.prompt_without for d in batch], drivers=[d.empty_driver for d in batch]),
            )
            pictures.append(list(drawn))
            done += len(batch)
            yield Progress(done=done, total=len(drafts) * len(LEVELS))
        for index, draft in enumerate(batch):
            labelled = np.any([mask for _, mask in draft.instances], axis=0)
            for category_id, mask in draft.instances:
                values = [contrast_of(images[index], mask, labelled) for images in pictures]
                if all(value is not None for value in values):
                    rows.append((category_id, tuple(float(value or 0.0) for value in values)))
    return choose_guidance(rows, real, categories, quantile=config.tone_quantile)


def choose_guidance(
    rows: Sequence[tuple[int, tuple[float, ...]]],
    real: Mapping[int, Sequence[float]],
    categories: Sequence[Category],
    *,
    quantile: float = 0.5,
) -> tuple[ClassCalibration, ...]:
    """Choose the guidance, within bounds, that moves each class's median contrast to a quantile of its real contrasts.

    Args:
        rows: category id of a drawn defect, and its contrast at each of `LEVELS`.
        real: contrasts of real defects by category id.
        categories: of the data set.
        quantile: 0.5 for the median.
    """
    wanted = {category_id: float(np.quantile(values, quantile)) for category_id, values in real.items() if values}
    shares = [
        np.array(values) / wanted[category_id] for category_id, values in rows if wanted.get(category_id, 0.0) > 0
    ]
    together = _matching(1.0, np.median(shares, axis=0).tolist()) if shares else LEVELS[1]
    classes: list[ClassCalibration] = []
    for category in categories:
        own = [values for category_id, values in rows if category_id == category.id]
        if min(len(own), len(real.get(category.id, ()))) < MIN_INSTANCES:
            classes.append(
                ClassCalibration(
                    category_id=category.id, name=category.name, mask_guidance=together, num_instances=len(own)
                )
            )
            continue
        medians = [float(value) for value in np.median(own, axis=0)]
        classes.append(
            ClassCalibration(
                category_id=category.id,
                name=category.name,
                mask_guidance=_matching(wanted[category.id], medians),
                real=wanted[category.id],
                drawn=tuple(zip(LEVELS, medians, strict=True)),
                num_instances=len(own),
            )
        )
    return tuple(classes)


def _matching(real: float, drawn: Sequence[float]) -> float:
    """Find the guidance whose drawn contrast, known at `LEVELS`, equals the real one, by inter- or extrapolation."""
    if any(after - before < 1e-3 for before, after in pairwise(drawn)):
        # guidance has no effect here, or the wrong one
        return LEVELS[1]
    at = next((i for i in range(len(LEVELS) - 2) if real < drawn[i + 1]), len(LEVELS) - 2)
    slope = (drawn[at + 1] - drawn[at]) / (LEVELS[at + 1] - LEVELS[at])
    return round(float(np.clip(LEVELS[at] + (real - drawn[at]) / slope, *BOUNDS)), 3)


def guidance_map(
    instances: Sequence[tuple[int, Mask]], guidance: Mapping[int, float], size_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Compute the guidance of each pixel, float32 [H,W]: that of the class painted there, 1 elsewhere."""
    result = np.ones(size_hw, np.float32)
    # in the painting order of drivers: larger masks first
    for category_id, mask in sorted(instances, key=lambda item: -int(item[1].sum())):
        result[mask] = guidance[category_id]
    return result
