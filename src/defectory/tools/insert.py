"""Inserts defects of a trained project into the user's frames, at their resolution and depth."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from defectory.artifacts.annotation import masks_of
from defectory.artifacts.plan import Job, Plan
from defectory.drivers.further import driver_pair
from defectory.engine.devices import device_of
from defectory.errors import ConfigError
from defectory.events import Event, Progress, StageEnded
from defectory.folders.claims import require_replaceable
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.runs.verify import Verified
from defectory.stages.all import stages_of
from defectory.stages.parts.also_controls import also_networks, drivers_of
from defectory.stages.parts.sampling import sampling_models
from defectory.stages.parts.student import as_drawn, kept_student
from defectory.synthesis.calibrate import guidance_map
from defectory.synthesis.full import DraftInput, synthesize
from defectory.tools.insertion.placement import Window, plan_of
from defectory.tools.insertion.targets import frame_files, read_target
from defectory.tools.insertion.writing import write_insertion

READS = frozenset({"tiles", "learn-concept", "learn-condition", "distill"})
"""Stages whose files are read, in addition to values that are checked one by one."""
STAGE = "insert"


def insert_into(
    run: Run,
    frames: Path | Sequence[Path],
    *,
    out: Path,
    count: int,
    class_name: str | None = None,
    mask_file: Path | None = None,
    region_file: Path | None = None,
    drawing_file: Path | None = None,
    seed: int = 0,
) -> Generator[Event, None, None]:
    """Write `count` copies of each frame to `out/images`, each with one more defect, with labels and a sheet.

    Pixels beyond the margin around a label stay unchanged. The networks are loaded once for all frames.

    Args:
        run: with concept, control network and calibration made.
        frames: images of any size, or folders of them: grey or RGB, with or without alpha, 8 bit, 16 bit or float.
            Results have the frame's depth and range, as PNG, or as TIFF for TIFF frames.
        out: folder, replaced as a whole if an earlier insertion made it.
        count: copies of each frame.
        class_name: of the defects; None draws classes as often as they occur in train.
        mask_file: mask of the frame's size with class numbers, or with one value for `class_name`. The defect is drawn
            exactly where it is not black.
        region_file: image of the frame's size, white where defects may lie; None allows the whole part.
        drawing_file: drawing of the frame's size, if the project takes geometry from drawings. With several frames,
            each of the three files is a folder with one file per frame name.
        seed: of places, masks and noise.

    Raises:
        ConfigError: an unknown class, no place for a defect, or a missing or superfluous drawing.
        ImageError: a frame or a companion file cannot be used, a frame has a format that cannot be written back
            (palette, black and white, CMYK), or it belongs to val or test.
        OutputError: `out` holds files that no insertion made.
        StageError: an input stage of the run is damaged.
    """
    began, inputs = time.monotonic(), run.store()
    dataset = inputs.data.dataset
    if class_name is not None and class_name not in {c.name for c in dataset.categories}:
        known = ", ".join(c.name for c in dataset.categories)
        raise ConfigError(f"class {class_name!r}", "is not one of the project's", f"choose among {known}")
    require_replaceable(out, kind="insert")
    files = frame_files([frames] if isinstance(frames, Path) else frames)
    yield Progress(stage=STAGE, done=0, total=count * len(files), note="reading images")
    companions = {"mask": mask_file, "region": region_file, "drawing": drawing_file}
    targets = [read_target(run, inputs, file, companions, several=len(files) > 1) for file in files]
    Verified().require(run, [stage for stage in stages_of(run.config) if stage.name in READS])
    yield Progress(stage=STAGE, done=0, total=count * len(files), note="placing defects")
    plan, windows = plan_of(run, inputs, targets, count=count, class_name=class_name, seed=seed)
    # a separate folder: drafts left by a killed run may belong to another plan
    with TemporaryDirectory() as drafts:
        yield from _draw(run, inputs, plan, windows, Path(drafts))
        write_insertion(targets, out, plan, windows, Path(drafts))
    told = "".join(f"; {remark}" for remark in dict.fromkeys(r for target in targets for r in target.remarks))
    images = f"{len(plan.jobs)} image{'' if len(plan.jobs) == 1 else 's'}"
    summary = f"{images} in {out / 'annotations.json'}{told}"
    yield StageEnded(stage=STAGE, seconds=time.monotonic() - began, skipped=False, summary=summary)


def _draw(run: Run, inputs: RunStore, plan: Plan, windows: Mapping[str, Window], drafts: Path) -> Iterator[Progress]:
    config, guidance = run.config, inputs.calibration.by_category()
    also = also_networks(run.sources, config)

    def input_of(job: Job) -> DraftInput:
        window, instances = windows[job.id], masks_of(job.instances)
        driver, empty = driver_pair(
            window.geometry,
            instances,
            num_classes=len(plan.categories),
            config=config.drivers,
            valid_hw=window.valid_hw,
            further=drivers_of(also),
        )
        return DraftInput(
            driver=driver,
            empty_driver=empty,
            tile=window.tile,
            valid_hw=window.valid_hw,
            mask_guidance=guidance_map(instances, guidance, driver.shape[:2]),
        )

    yield Progress(stage=STAGE, done=0, total=len(plan.jobs), note="loading networks")
    device, student = device_of(config.device, threads=config.threads), kept_student(inputs, config)
    models = sampling_models(
        inputs.concept,
        inputs.control,
        device,
        base=config.base,
        mixed_precision=config.synthesis.mixed_precision,
        also=also,
        student=student,
    )
    for event in synthesize(
        plan,
        models=models,
        class_noun=inputs.concept.concept.class_noun,
        input_of=input_of,
        config=as_drawn(config.synthesis, student).model_copy(update={"mode": "insert"}),
        out=drafts,
    ):
        yield Progress(stage=STAGE, done=event.done, total=event.total)
