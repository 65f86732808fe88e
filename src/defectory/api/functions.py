"""Runs single steps of the method on arrays, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Fidelity
from defectory.curation.config import CurationConfig
from defectory.curation.fidelity import score
from defectory.drivers.config import DriverConfig
from defectory.drivers.extract import extract_driver as extract
from defectory.errors import InputError
from defectory.runs.store import RunStore

if TYPE_CHECKING:
    from defectory.api.project import Project

Image = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def extract_driver(
    image: Image,
    instances: Sequence[tuple[int, Mask]] = (),
    *,
    num_classes: int = 1,
    kind: str = "topology",
    **options: Any,
) -> Image:
    """Extract the driver of an image: dim coarse geometry with bright, class-coloured masks on it.

    Args:
        image: RGB uint8 [H,W,3].
        instances: class number (from 1) and mask, bool [H,W], of each defect.
        num_classes: number of classes; decides the colours.
        kind: of geometry, for example `topology`, `edges` or `grey`.
        options: further settings of the `drivers` section, for example `grid_px=32`.

    Returns:
        RGB uint8 [H,W,3].

    Raises:
        ConfigError: the kind is unknown.
    """
    config = DriverConfig.model_validate({"kind": kind, **options})
    return extract(image, tuple(instances), num_classes=num_classes, config=config)


def score_fidelity(
    draft: Image, without: Image, masks: Sequence[Mask], *, difference_threshold: float | None = None
) -> Fidelity:
    """Score how well a draft's labels match what the model drew.

    Args:
        draft: RGB uint8 [H,W,3].
        without: the counterfactual half, drawn from the same noise without the masks.
        masks: labels, bool [H,W].
        difference_threshold: as `curation.difference_threshold`; None takes its default.

    Returns:
        IoU of the drawn defects with the labels, and F1 at a tolerance of 2 px for thin defects.
    """
    threshold = CurationConfig().difference_threshold if difference_threshold is None else difference_threshold
    return score(draft, without, list(masks), difference_threshold=threshold)


def synthesize(
    project: Project,
    driver: Image,
    prompt: str | None = None,
    *,
    class_names: Sequence[str] = (),
    empty_driver: Image | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[Image, Image | None]:
    """Draw one image from a driver with a project's concept and condition network.

    Args:
        project: finished up to `learn-condition`, or `distill` if that is enabled.
        driver: RGB uint8 [H,W,3], of the project's tile size. With `synthesis.also_controls`, uint8 [H,W,3K] for all K
            networks, the project's own first; one of three channels serves networks that read the same alone.
        prompt: None uses the project's prompt for `class_names`.
        class_names: of the defects on the driver.
        empty_driver: the same driver without its masks. If given, the counterfactual half is drawn too, and masks are
            guided by `synthesis.mask_guidance`; `auto` takes what the calibration chose for the named classes.
        seed: of all noise.
        device: to draw on.

    Returns:
        The image, and its counterfactual half if `empty_driver` is given, each RGB uint8 [H,W,3].

    Raises:
        ConfigError: the driver has not three channels for each network.
    """
    from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
    from defectory.stages.parts.also_controls import also_networks, for_all_networks
    from defectory.stages.parts.prompts import prompt_of
    from defectory.stages.parts.sampling import sampling_models
    from defectory.stages.parts.student import as_drawn, kept_student
    from defectory.synthesis.full import guidance_of

    config, store = project.config, project.store
    concept, noun = store.concept.concept, config.prompts.defect_noun
    also = also_networks(store.sources, config)
    student = kept_student(store, config)
    models = sampling_models(
        store.concept,
        store.control,
        device,
        base=config.base,
        mixed_precision=config.synthesis.mixed_precision,
        also=also,
        student=student,
    )
    plain = prompt_of(concept, (), "", defect_noun=noun)
    wanted = prompt_of(concept, tuple(class_names), "", defect_noun=noun) if prompt is None else prompt
    has_half = empty_driver is not None
    given = [driver] if empty_driver is None else [driver, empty_driver]
    drivers = [for_all_networks(one, also) for one in given]
    s = as_drawn(config.synthesis, student)
    strength = _calibrated(store, class_names) if s.mask_guidance == "auto" else s.mask_guidance
    images = sample_images(
        models,
        Conditions(prompts=[wanted, plain][: len(drivers)], drivers=drivers),
        seeds=[seed] * len(drivers),
        sampler=Sampler(
            scheduler=s.scheduler, num_inference_steps=s.num_inference_steps, mixed_precision=s.mixed_precision
        ),
        # without a counterpart, masks are not guided
        guidance=guidance_of(s, class_noun=concept.class_noun, mask=strength),
        without=Conditions(prompts=[plain], drivers=drivers[1:]) if has_half else None,
    )
    return images[0], images[1] if has_half else None


def _calibrated(store: RunStore, class_names: Sequence[str]) -> float:
    """Return the mean mask guidance of classes; 1 where they are not named or the project is not calibrated."""
    try:
        chosen = [of.mask_guidance for of in store.calibration.classes if of.name in class_names]
    except InputError:
        chosen = []
    return sum(chosen) / len(chosen) if chosen else 1.0
