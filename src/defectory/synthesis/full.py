"""Draws drafts, as whole images (the paper) or as defects in pool tiles, each with its counterfactual half."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from defectory.artifacts.plan import Job, Plan
from defectory.engine.backbones.prompts import class_prompt
from defectory.engine.sampling.guidance import Guidance
from defectory.engine.sampling.known import Known
from defectory.engine.sampling.models import SamplingModels
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.errors import OutputError
from defectory.files import DRAWN_NAME, digest_file, reason_of
from defectory.folders.swap import remove_leftovers
from defectory.geometry import distance_to
from defectory.images.save import save_png
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.grain import add_grain
from defectory.synthesis.insert import feather, with_difference

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class DraftDone:
    """A batch of drafts is on disk: `done` of `total`, `seconds` since this call started drawing."""

    done: int
    total: int
    resumed_at: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class DraftInput:
    """Inputs of one job: driver, driver without masks, pool tile with its valid size, and mask guidance.

    Drivers are uint8 [H,W,3K] for K networks, the run's own first.
    """

    driver: Image
    empty_driver: Image
    tile: Image
    valid_hw: tuple[int, int]
    mask_guidance: NDArray[np.float32]
    """Mask guidance of each pixel, [H,W]."""

    @property
    def label(self) -> NDArray[np.bool_]:
        """Return the painted masks, bool [H,W]."""
        return (self.driver != self.empty_driver)[..., :3].any(axis=2)

    def label_margin(self, config: SynthesisConfig) -> NDArray[np.bool_]:
        """Return the pixels that insertion may change, bool [H,W]."""
        return distance_to(self.label) < config.insert_margin_px


def batches_of(plan: Plan, batch_size: int) -> list[tuple[Job, ...]]:
    """Split a plan into batches; a resumed run forms the same ones."""
    return [plan.jobs[start : start + batch_size] for start in range(0, len(plan.jobs), batch_size)]


def synthesize(
    plan: Plan,
    *,
    models: SamplingModels,
    class_noun: str,
    input_of: Callable[[Job], DraftInput],
    config: SynthesisConfig,
    out: Path,
) -> Iterator[DraftDone]:
    """Draw all drafts of a plan that are not on disk yet, each twice from the same noise: with and without its mask.

    A batch is drawn whole or not at all, so that a killed run resumes to the same bytes. The digests of whole drafts
    are listed in `out`. A draft that is not listed, or has other bytes, is drawn again.

    Args:
        plan: jobs.
        models: adapted backbone and its condition networks, in float32.
        class_noun: of the concept; driver guidance points away from its prompt.
        input_of: returns a job's drivers and pool tile.
        config: sampler, steps, batch size.
        out: folder with `images/`, `without/` and `drivers/`.
    """
    remove_leftovers(out)
    listed = _listed_drafts(out)
    began, done, resumed = time.monotonic(), 0, 0
    for batch in batches_of(plan, config.batch_size):
        if all(_is_whole(path, out, listed) for job in batch for path in draft_paths(out, job.id)):
            done += len(batch)
            resumed = done
            continue
        inputs = [input_of(job) for job in batch]
        pairs = draw_batch(batch, inputs, models=models, class_noun=class_noun, config=config)
        for job, item, (image, without) in zip(batch, inputs, pairs, strict=True):
            image_file, without_file, driver_file = draft_paths(out, job.id)
            # of the run's own network
            save_png(driver_file, item.driver[..., :3])
            save_png(without_file, without)
            save_png(image_file, image)
        _list_drafts(out, [path for job in batch for path in draft_paths(out, job.id)])
        done += len(batch)
        yield DraftDone(done=done, total=len(plan.jobs), resumed_at=resumed, seconds=time.monotonic() - began)


def draw_batch(
    jobs: Sequence[Job],
    inputs: Sequence[DraftInput],
    *,
    models: SamplingModels,
    class_noun: str,
    config: SynthesisConfig,
) -> list[tuple[Image, Image]]:
    """Draw drafts and their counterfactual halves, finished, RGB uint8 [H,W,3] each.

    Args:
        jobs: what to draw.
        inputs: of each job.
        models: adapted backbone and its condition network.
        class_noun: of the concept.
        config: sampler, steps, mode.
    """
    images = _draw_pairs(jobs, inputs, models=models, class_noun=class_noun, config=config)
    return [
        _finished_pair(images[index], images[len(jobs) + index], item, job, config)
        for index, (job, item) in enumerate(zip(jobs, inputs, strict=True))
    ]


def _draw_pairs(
    jobs: Sequence[Job],
    inputs: Sequence[DraftInput],
    *,
    models: SamplingModels,
    class_noun: str,
    config: SynthesisConfig,
) -> NDArray[np.uint8]:
    """Draw all jobs with their masks, then all without, RGB uint8 [2B,H,W,3]."""
    prompts, prompts_without = [job.prompt for job in jobs], [job.prompt_without for job in jobs]
    drivers, drivers_without = [item.driver for item in inputs], [item.empty_driver for item in inputs]
    regions = [item.label_margin(config) for item in inputs] * 2 if config.mode == "insert" else None
    return sample_images(
        models,
        Conditions(prompts=prompts + prompts_without, drivers=drivers + drivers_without),
        seeds=[job.seed for job in jobs] * 2,
        sampler=Sampler(
            scheduler=config.scheduler,
            num_inference_steps=config.num_inference_steps,
            mixed_precision=config.mixed_precision,
        ),
        guidance=guidance_of(config, class_noun=class_noun, mask=np.stack([item.mask_guidance for item in inputs])),
        without=Conditions(prompts=prompts_without, drivers=drivers_without),
        known=None if regions is None else Known(images=[item.tile for item in inputs] * 2, regions=regions),
    )


def guidance_of(config: SynthesisConfig, *, class_noun: str, mask: float | NDArray[np.float32]) -> Guidance:
    """Build the guidance for drawing drafts.

    Args:
        config: of synthesis.
        class_noun: of the concept.
        mask: mask guidance of all samples, or float32 [N,H,W].
    """
    return Guidance(
        text=config.guidance_scale,
        control=config.controlnet_conditioning_scale,
        control_start=config.control_guidance_start,
        control_end=config.control_guidance_end,
        driver=config.driver_guidance,
        class_prompt=class_prompt(class_noun),
        mask=mask,
        mask_spill=config.mask_spill,
    )


def _listed_drafts(out: Path) -> dict[str, str]:
    """Read the digests of whole drafts from an earlier call; a line torn by a power cut does not match."""
    try:
        lines = (out / DRAWN_NAME).read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: digest for digest, _, name in (line.partition(" ") for line in lines)}


def _list_drafts(out: Path, paths: Sequence[Path]) -> None:
    # a torn line from earlier must not swallow the next one
    text = "\n" + "".join(f"{digest_file(path)} {path.relative_to(out).as_posix()}\n" for path in paths)
    try:
        with open(out / DRAWN_NAME, "a") as stream:
            stream.write(text)
    except OSError as error:
        raise OutputError(out, f"cannot be written ({reason_of(error)})", "free space and run again") from error


def _is_whole(path: Path, out: Path, listed: Mapping[str, str]) -> bool:
    digest = listed.get(path.relative_to(out).as_posix())
    try:
        return digest is not None and digest_file(path) == digest
    except OSError:
        return False


def _finished_pair(
    drawn: Image, drawn_without: Image, item: DraftInput, job: Job, config: SynthesisConfig
) -> tuple[Image, Image]:
    """Finish a draft and its counterfactual half: padding and grain; insertion adds the difference to the tile.

    The half of an insertion is the tile itself: what both halves show is not inserted.
    """
    image, without = _finished(drawn, item), _finished(drawn_without, item)
    if config.mode == "insert":
        share = feather(item.label, config.insert_margin_px)
        return with_difference(item.tile, image, without, share), item.tile
    if config.match_grain:
        image, without = add_grain([image, without], tile=item.tile, valid_hw=item.valid_hw, seed=job.seed)
    return image, without


def _finished(image: Image, item: DraftInput) -> Image:
    """Restore the tile's padding, which a network never draws exactly, and keep grey tiles grey."""
    result = item.tile.copy()
    height, width = item.valid_hw
    drawn = image[:height, :width]
    if (item.tile == item.tile[..., :1]).all():
        drawn = np.round(drawn.astype(np.float32).mean(axis=2, keepdims=True)).astype(np.uint8)
    result[:height, :width] = drawn
    return result
