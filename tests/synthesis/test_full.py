from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Job, Plan
from defectory.condition.networks.controlnet import ControlNet
from defectory.engine.backbones.load import load_base
from defectory.engine.sampling.models import SamplingModels
from defectory.files import digest_folder
from defectory.images.load import load_rgb
from defectory.rle import decode, encode
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.drafts import draft_paths
from defectory.synthesis.full import DraftInput, batches_of, synthesize

SIZE_HW = (32, 48)
VALID_HW = (32, 40)
CONFIG = SynthesisConfig(num_inference_steps=3, batch_size=4)


@pytest.fixture(scope="module")
def models(tiny_base_folder: Path) -> SamplingModels:
    backbone = load_base(tiny_base_folder)
    return SamplingModels(backbone=backbone, network=ControlNet(backbone.controlnet))


def make_plan(count: int = 7) -> Plan:
    jobs: list[Job] = []
    for index in range(count):
        mask = np.zeros(SIZE_HW, bool)
        mask[8:16, 4 + 3 * index : 12 + 3 * index] = True
        jobs.append(
            Job(
                id=f"{index:06d}",
                tile_id="p",
                augmentation_seed=None,
                instances=(Instance(category_id=1, rle=encode(mask)),),
                mask_sources=(),
                prompt="an image of a sks with a crack",
                prompt_without="an image of a sks",
                seed=100 + index,
            )
        )
    return Plan(
        concept_digest="c",
        control_digest="k",
        driver_config_digest="d",
        categories=(Category(id=1, name="crack"),),
        jobs=tuple(jobs),
    )


def input_of(job: Job) -> DraftInput:
    empty = np.zeros((*SIZE_HW, 3), np.uint8)
    empty[::4] = 50
    driver = empty.copy()
    driver[decode(job.instances[0].rle)] = (255, 0, 0)
    return DraftInput(
        driver=driver,
        empty_driver=empty,
        tile=np.full((*SIZE_HW, 3), 77, np.uint8),
        valid_hw=VALID_HW,
        mask_guidance=np.full(SIZE_HW, 2, np.float32),
    )


def draw(models: SamplingModels, out: Path, *, plan: Plan | None = None, **changes: Any) -> list[Any]:
    config = CONFIG.model_copy(update=changes)
    return list(
        synthesize(plan or make_plan(), models=models, class_noun="surface", input_of=input_of, config=config, out=out)
    )


def pictures(out: Path, which: int) -> NDArray[np.int64]:
    return np.stack([load_rgb(draft_paths(out, job.id)[which]).astype(np.int64) for job in make_plan().jobs])


def test_every_job_gets_its_image_its_half_without_mask_and_its_driver(models: SamplingModels, tmp_path: Path) -> None:
    events = draw(models, tmp_path)
    assert [(e.done, e.total, e.resumed_at) for e in events] == [(4, 7, 0), (7, 7, 0)]
    for job in make_plan().jobs:
        image, without, driver = (load_rgb(path) for path in draft_paths(tmp_path, job.id))
        assert image.shape == without.shape == (*SIZE_HW, 3)
        assert np.array_equal(driver, input_of(job).driver)
        assert (image != without).any(), "the mask changes the picture"
        assert np.ptp(image[:, : VALID_HW[1]]) > 0


def test_padding_stays_the_tiles(models: SamplingModels, tmp_path: Path) -> None:
    draw(models, tmp_path)
    for which in (0, 1):
        drawn = pictures(tmp_path, which)
        assert (drawn[:, :, VALID_HW[1] :] == 77).all()
        assert (drawn[:, :, : VALID_HW[1]] != 77).mean() > 0.5


@pytest.mark.parametrize("scheduler", ["base", pytest.param("ddpm", marks=pytest.mark.long)])
def test_another_batch_size_gives_the_same_pictures(models: SamplingModels, tmp_path: Path, scheduler: str) -> None:
    for size in (1, 3, 7):
        draw(models, tmp_path / str(size), batch_size=size, scheduler=scheduler)
    for which in (0, 1):
        reference = pictures(tmp_path / "1", which)
        assert len(np.unique(reference.reshape(7, -1), axis=0)) == 7, "every seed draws a picture of its own"
        for size in (3, 7):
            difference = np.abs(pictures(tmp_path / str(size), which) - reference)
            assert (difference <= 1).mean() >= 0.999


def test_drafts_of_grey_tiles_are_grey_and_of_coloured_ones_coloured(models: SamplingModels, tmp_path: Path) -> None:
    def coloured(job: Job) -> DraftInput:
        return replace(input_of(job), tile=np.full((*SIZE_HW, 3), (77, 80, 90), np.uint8))

    draw(models, tmp_path / "grey")
    list(
        synthesize(
            make_plan(),
            models=models,
            class_noun="surface",
            input_of=coloured,
            config=CONFIG,
            out=tmp_path / "coloured",
        )
    )
    grey, colour = pictures(tmp_path / "grey", 0), pictures(tmp_path / "coloured", 0)
    assert (grey == grey[..., :1]).all()
    drawn = colour[:, :, : VALID_HW[1]]
    assert (drawn != drawn[..., :1]).any(axis=-1).mean() > 0.5
    assert np.abs(grey[:, :, : VALID_HW[1], 0] - drawn.mean(axis=-1)).max() <= 0.5 + 1e-6


def test_mask_guidance_changes_the_half_with_mask_alone(models: SamplingModels, tmp_path: Path) -> None:
    def strongly(job: Job) -> DraftInput:
        return replace(input_of(job), mask_guidance=np.full(SIZE_HW, 8, np.float32))

    draw(models, tmp_path / "as_set")
    list(
        synthesize(
            make_plan(), models=models, class_noun="surface", input_of=strongly, config=CONFIG, out=tmp_path / "strong"
        )
    )
    assert (pictures(tmp_path / "as_set", 0) != pictures(tmp_path / "strong", 0)).any()
    assert (pictures(tmp_path / "as_set", 1) == pictures(tmp_path / "strong", 1)).all()


def test_both_halves_start_from_the_same_noise(models: SamplingModels, tmp_path: Path) -> None:
    """With equal drivers and prompts the two halves are one picture."""

    def same(job: Job) -> DraftInput:
        item = input_of(job)
        return replace(item, driver=item.empty_driver)

    plan = make_plan()
    plan = plan.model_copy(
        update={"jobs": tuple(job.model_copy(update={"prompt_without": job.prompt}) for job in plan.jobs)}
    )
    list(synthesize(plan, models=models, class_noun="surface", input_of=same, config=CONFIG, out=tmp_path))
    assert (np.abs(pictures(tmp_path, 0) - pictures(tmp_path, 1)) <= 1).mean() >= 0.999


def test_only_batches_that_lack_a_file_are_drawn_again(models: SamplingModels, tmp_path: Path) -> None:
    draw(models, tmp_path)
    whole = digest_folder(tmp_path)
    untouched, lost = draft_paths(tmp_path, "000001")[0], draft_paths(tmp_path, "000005")
    untouched.write_bytes(untouched.read_bytes())
    before = untouched.stat().st_mtime_ns
    lost[1].unlink()
    events = draw(models, tmp_path)
    assert [(e.done, e.resumed_at) for e in events] == [(7, 4)]
    assert untouched.stat().st_mtime_ns == before
    assert digest_folder(tmp_path) == whole
    assert draw(models, tmp_path) == []


def test_batches_hold_all_jobs_in_order() -> None:
    plan = make_plan(7)
    assert [len(batch) for batch in batches_of(plan, 3)] == [3, 3, 1]
    assert [job for batch in batches_of(plan, 3) for job in batch] == list(plan.jobs)


@pytest.mark.long
def test_killed_three_times_it_ends_with_the_same_files(
    tiny_base_folder: Path, tmp_path: Path, kill_three_times: Callable[..., tuple[Path, Path]]
) -> None:
    plan = make_plan(12)
    plan.save(tmp_path / "plan.json")
    whole, killed = kill_three_times(
        f"""
        import numpy as np
        from defectory.artifacts.plan import Plan
        from defectory.condition.networks.controlnet import ControlNet
        from defectory.engine.backbones.load import load_base
        from defectory.engine.sampling.models import SamplingModels
        from defectory.rle import decode
        from defectory.synthesis.config import SynthesisConfig
        from defectory.synthesis.full import DraftInput, synthesize
        plan = Plan.load(Path({str(tmp_path / "plan.json")!r}))
        def input_of(job):
            empty = np.zeros((32, 48, 3), np.uint8)
            driver = empty.copy()
            driver[decode(job.instances[0].rle)] = 255
            guidance = np.full((32, 48), 2, np.float32)
            return DraftInput(driver=driver, empty_driver=empty, tile=empty, valid_hw=(32, 48), mask_guidance=guidance)
        def stage(out):
            (out / "images").mkdir(parents=True, exist_ok=True)
            (out / "images" / ".defectory-12-0123abcd.tmp.png").write_bytes(b"left by a killed write")
            config = SynthesisConfig(num_inference_steps=4, batch_size=2)
            backbone = load_base(Path({str(tiny_base_folder)!r}))
            models = SamplingModels(backbone=backbone, network=ControlNet(backbone.controlnet))
            for _ in synthesize(plan, models=models, class_noun="surface", input_of=input_of, config=config, out=out):
                pass
        """
    )
    assert len(list(whole.rglob("*.png"))) == 36
    assert digest_folder(killed) == digest_folder(whole)
