"""Stage synthesize: draws the plan's drafts, each with its counterfactual half."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Job, Plan
from defectory.config.project import ProjectConfig
from defectory.events import Progress, Work
from defectory.runs import layout
from defectory.runs.sources import Sources
from defectory.runs.stage import Stage
from defectory.runs.store import RunStore
from defectory.stages.calibrate import SAMPLER_VERSION
from defectory.stages.parts.also_controls import also_key, also_networks, drivers_of
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.stages.parts.pool import pool_tiles
from defectory.stages.parts.sampling import sampling_models
from defectory.stages.parts.student import as_drawn, kept_student, student_stage


class Synthesize(Stage):
    """Draws all drafts of the plan."""

    # higher by one since insertion adds differences
    VERSION = SAMPLER_VERSION + 1
    name, folder = "synthesize", layout.DRAFTS
    is_resumable = is_mendable = True

    def inputs(self, config: ProjectConfig) -> tuple[str, ...]:
        """Read plan, pool tiles, both phases, the student if there is one, and mask guidance."""
        phases = ("learn-concept", "learn-condition", *student_stage(config))
        return ("import", "split", "tiles", *phases, "plan", "calibrate")

    def cache_key(self, config: ProjectConfig, sources: Sources) -> Mapping[str, object]:
        """Depend on the synthesis and drivers sections."""
        return {
            "synthesis": config.synthesis.of_round(1).model_dump(mode="json", exclude={"rounds", "also_controls"}),
            **also_key(config, sources),
            "augmentation": config.augmentation.model_dump(mode="json"),
            "drivers": config.drivers.model_dump(mode="json"),
            "files of drivers.drawings": sources.listing(config.drivers.drawings),
        }

    def run(self, inputs: RunStore, config: ProjectConfig, out: Path) -> Work[str]:
        """Draw each draft twice from the same noise, with and without its mask."""
        return (yield from draw_drafts(inputs, config, inputs.plan, out))


def draw_drafts(inputs: RunStore, config: ProjectConfig, plan: Plan, out: Path) -> Work[str]:
    """Draw the drafts of a plan that are not in `out` yet, and return one line for people."""
    from defectory.engine.devices import device_of
    from defectory.synthesis.calibrate import guidance_map
    from defectory.synthesis.full import DraftInput, synthesize

    also = also_networks(inputs.sources, config)
    pool, guidance = pool_tiles(inputs, config, further=drivers_of(also)), inputs.calibration.by_category()
    student = kept_student(inputs, config)

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
    device = device_of(config.device, threads=config.threads)
    for event in synthesize(
        plan,
        models=sampling_models(
            inputs.concept,
            inputs.control,
            device,
            base=config.base,
            mixed_precision=config.synthesis.mixed_precision,
            also=also,
            student=student,
        ),
        class_noun=inputs.concept.concept.class_noun,
        input_of=input_of,
        config=as_drawn(synthesis_of(inputs, config), student),
        out=out,
    ):
        seconds = event.seconds
        yield Progress(done=event.done, total=event.total)
    steps = "" if student is None else f", {student.distilled.num_inference_steps} steps each"
    return f"{len(plan.jobs)} drafts with their counterfactual halves in {seconds:.0f} s{steps}"
