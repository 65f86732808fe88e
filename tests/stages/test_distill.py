"""The stage distill: left out by default; a kept student draws drafts and the pipeline, another one is not used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.artifacts.distilled import Distilled
from defectory.config.resolve import resolve
from defectory.distillation.config import DistillationConfig
from defectory.engine.sampling.sample import Conditions, Sampler, sample_images
from defectory.errors import ConfigError
from defectory.events import Event, Notice, StageEnded
from defectory.runs import layout
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.stages.parts.image_uses import image_uses
from defectory.stages.parts.sampling import sampling_models
from defectory.stages.parts.student import as_drawn, kept_student, student_table, what_differs

TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
OVERRIDES = (
    "distillation.enabled=true",
    "distillation.num_inference_steps=3",
    "distillation.teacher_inference_steps=6",
    "distillation.lora_rank=4",
    "distillation.check_drafts=3",
    "distillation.max_fidelity_loss=1.0",
    "distillation.max_detail_change=1.0",
    "distillation.min_gap_closed=-1.0",
    "distillation.training.num_steps=3",
    "distillation.training.batch_size=2",
    "distillation.training.variants_per_image=2",
    "distillation.training.learning_rate=0.02",
    "synthesis.num_images=3",
    "synthesis.calibration_drafts=2",
)
DRAWING = ("distill", "plan", "calibrate", "synthesize", "finalize")


@pytest.fixture(scope="module")
def project(tiny_run: TinyRun, open_tiny: Callable[..., Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with a kept student, up to its drafts and its pipeline; do not write into it."""
    copy = tmp_path_factory.mktemp("distill") / "copy"
    shutil.copytree(tiny_run[0], copy)
    project = open_tiny(copy, tiny_run[1], *OVERRIDES)
    assert ended(list(run_all(project, only=DRAWING))) == list(DRAWING)
    return project


def ended(events: list[Event]) -> list[str]:
    return [event.stage for event in events if isinstance(event, StageEnded) and not event.skipped]


def test_it_is_left_out_by_default_and_comes_after_phase_two(project: Run, tiny_run: TinyRun) -> None:
    assert "distill" not in [event.stage for event in tiny_run[2]]
    names = [stage.name for stage in stages_of(project.config)]
    assert names.index("learn-condition") < names.index("distill") < names.index("calibrate")


def test_a_kept_student_is_recorded_and_draws_in_its_own_steps(project: Run) -> None:
    student = kept_student(project.store(), project.config)
    assert student is not None
    learned = student.distilled
    assert (learned.num_inference_steps, learned.num_drafts, learned.driver_guidance) == (3, 3, 1.75)
    assert learned.control_digest == project.store().control.control.weights_digest
    drawn = as_drawn(project.config.synthesis, student)
    assert (drawn.num_inference_steps, drawn.driver_guidance, drawn.guidance_scale) == (3, 1.0, 1.0)
    assert drawn.mask_guidance == "auto"
    assert not (project.folder / layout.DISTILLED / "checkpoint").exists()
    assert (project.folder / layout.DISTILLED / layout.CONTACT_SHEET).is_file()
    manifest = json.loads((project.folder / layout.DRAFTS / "stage.json").read_text())
    assert "3 steps each" in json.dumps(manifest)
    assert "draws the drafts" in student_table(learned).title


def test_only_train_images_teach_it_and_the_certificate_asks(project: Run) -> None:
    uses = {use.consumer: use for use in image_uses(project.store(), project.config)}
    split = project.store().split
    assert uses["student"].unread == uses["student, held-out loss"].unread == ()
    assert uses["student"].image_ids
    assert set(uses["student"].image_ids) <= {*split.train, *split.pool}
    assert set(uses["student, held-out loss"].image_ids) <= set(split.val)
    stages = {stage.name: stage for stage in stages_of(project.config)}
    for reader in ("calibrate", "synthesize", "finalize", "certify", "report"):
        assert "distill" in stages[reader].inputs(project.config)


def test_the_pipeline_draws_the_same_in_plain_diffusers(project: Run, tmp_path: Path) -> None:
    config, store = project.config, project.store()
    student = kept_student(store, config)
    models = sampling_models(
        store.concept, store.control, "cpu", base=config.base, mixed_precision="no", student=student
    )
    driver = np.zeros((32, 48, 3), np.uint8)
    driver[10:20, 12:30] = (250, 0, 0)
    Image.fromarray(driver).save(tmp_path / "driver.png")
    sampler = Sampler(scheduler="base", num_inference_steps=3)
    prompt = "an image of a sks with a crack"
    ours = sample_images(models, Conditions(prompts=[prompt], drivers=[driver]), seeds=[7], sampler=sampler)[0]
    script = f"""
import sys
import numpy as np, torch
from diffusers import StableDiffusionControlNetPipeline
from PIL import Image
pipeline = StableDiffusionControlNetPipeline.from_pretrained(
    {str(store.pipeline)!r}, local_files_only=True
)
noise = torch.randn((1, 4, 8, 12), generator=torch.Generator().manual_seed(7))
image = pipeline({prompt!r}, image=Image.open({str(tmp_path / "driver.png")!r}), num_inference_steps=3,
    guidance_scale=1.0, latents=noise).images[0]
image.save({str(tmp_path / "plain.png")!r})
assert not any(name.split(".")[0] == "defectory" for name in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = np.asarray(Image.open(tmp_path / "plain.png")).astype(int)
    assert np.abs(plain - ours.astype(int)).max() <= 1
    assert plain.std() > 1
    teacher = sampling_models(store.concept, store.control, "cpu", base=config.base, mixed_precision="no")
    other = sample_images(teacher, Conditions(prompts=[prompt], drivers=[driver]), seeds=[7], sampler=sampler)[0]
    assert np.abs(other.astype(int) - ours.astype(int)).max() > 3, "the student's LoRA is in the pipeline"


def test_a_sample_does_not_depend_on_its_batch(project: Run) -> None:
    config, store = project.config, project.store()
    models = sampling_models(
        store.concept,
        store.control,
        "cpu",
        base=config.base,
        mixed_precision="auto",
        student=kept_student(store, config),
    )
    driver = np.zeros((32, 48, 3), np.uint8)

    def drawn(seeds: list[int]) -> np.ndarray:
        given = Conditions(prompts=["a sks"] * len(seeds), drivers=[driver] * len(seeds))
        return sample_images(
            models, given, seeds=seeds, sampler=Sampler(scheduler="base", num_inference_steps=3, mixed_precision="auto")
        )

    assert np.array_equal(drawn([5])[0], drawn([4, 5, 6])[1])


GOOD = Distilled(
    method="trajectory",
    num_inference_steps=4,
    teacher_inference_steps=16,
    guidance_scale=1.0,
    driver_guidance=1.75,
    concept_digest="a",
    control_digest="b",
    weights_digest="c",
    num_drafts=32,
    teacher_fidelity=0.5,
    student_fidelity=0.5,
    teacher_detail=20.0,
    student_detail=20.0,
    student_distance=2.0,
    untrained_distance=10.0,
    is_kept=False,
)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"student_fidelity": 0.48}, "fidelity 0.480 instead of 0.500, a loss of 4.0% where 2.0% is allowed"),
        ({"student_detail": 18.0}, "hold 10.0% less fine detail than the teacher's, where 5.0% is allowed"),
        ({"student_detail": 22.0}, "hold 10.0% more fine detail than the teacher's, where 5.0% is allowed"),
        (
            {"student_distance": 9.0},
            "9.0 grey levels from the teacher's, and were 10.0 before training: 10% of the way, where 25% is wanted",
        ),
        ({"student_distance": 11.0}, "0% of the way"),
    ],
)
def test_what_keeps_a_student_from_being_used_is_said(changed: dict[str, float], told: str) -> None:
    (said,) = what_differs(GOOD.model_copy(update=changed), DistillationConfig())
    assert told in said


def test_a_student_that_is_truer_or_as_good_may_draw() -> None:
    assert what_differs(GOOD, DistillationConfig()) == []
    assert what_differs(GOOD.model_copy(update={"student_fidelity": 0.6}), DistillationConfig()) == []


def test_a_student_that_is_not_used_is_told_and_its_pipeline_has_the_scheduler_of_the_base(
    project: Run, tmp_path: Path, open_tiny: Callable[..., Run], tiny_run: TinyRun
) -> None:
    shutil.copytree(project.folder.parent, tmp_path / "copy")
    # three steps of training change what the untrained student draws, but bring it nowhere near
    changed = open_tiny(tmp_path / "copy", tiny_run[1], *OVERRIDES, "distillation.min_gap_closed=1.0")
    events = list(run_all(changed, only=("distill", "finalize")))
    assert ended(events) == ["distill", "finalize"]
    told = [event.text for event in events if isinstance(event, Notice) and "student" in event.text]
    assert len(told) == 1
    assert "where 100% is wanted" in told[0]
    store = changed.store()
    assert kept_student(store, changed.config) is None
    assert store.distilled.distilled.untrained_distance > 0
    assert store.distilled.distilled.student_distance > 0
    assert as_drawn(changed.config.synthesis, None) is changed.config.synthesis
    scheduler = json.loads((store.pipeline / "scheduler" / "scheduler_config.json").read_text())
    before = json.loads((tiny_run[0] / "run" / layout.PIPELINE / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == before


def test_a_network_that_acts_in_some_steps_only_is_refused(tiny_run: TinyRun) -> None:
    with pytest.raises(ConfigError, match="a student's few steps have no such parts"):
        resolve(project=tiny_run[1], overrides=[*OVERRIDES, "synthesis.control_guidance_end=0.5"])
