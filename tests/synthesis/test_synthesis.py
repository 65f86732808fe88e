from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Decision, Decisions, Fidelity, Job, MaskBank, MaskBankEntry, Plan
from defectory.artifacts.tiles import Tile, TileSet, Tiling
from defectory.errors import ConfigError
from defectory.imageio import load_rgb, save_png
from defectory.rle import decode, encode
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.export import export_synthetic
from defectory.synthesis.full import DraftInput, synthesize
from defectory.synthesis.plan import make_plan, plan_summary

SIZE_HW = (32, 48)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="burn"))


def mask_of(index: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, bool)
    mask[5 : 12 + index, 6:14] = True
    return mask


def tileset(num_pool: int = 4) -> TileSet:
    def tile(name: str, part: str, *categories: int) -> Tile:
        instances = tuple(Instance(category_id=c, rle=encode(mask_of(c))) for c in categories)
        return Tile(
            id=name,
            file_name=f"images/{name}.png",
            image_id=hash(name) % 1000,
            part=part,
            offset_xy=(0, 0),
            scale=1.0,
            valid_hw=SIZE_HW,
            instances=instances,
        )

    tiles = [tile(f"pool{i}", "pool") for i in range(num_pool)] + [tile("a", "train", 1), tile("b", "train", 1, 1), tile("c", "train", 2)]
    return TileSet(
        tiling=Tiling(mode="tile", tile_px=48, scale=1.0, reason="t"), categories=CATEGORIES, split_digest="s", tiles=tuple(tiles)
    )


def bank() -> MaskBank:
    entries = tuple(
        MaskBankEntry(id=f"m{c}{i}", tile_id="a", image_id=1, category_id=c, mask=Instance(category_id=c, rle=encode(mask_of(c + i))))
        for c in (1, 2)
        for i in range(3)
    )
    return MaskBank(split_digest="s", entries=entries)


def place(mask: np.ndarray, allowed: np.ndarray, taken: np.ndarray, rng: np.random.Generator) -> np.ndarray | None:
    shifted = np.roll(mask, (int(rng.integers(0, 12)), int(rng.integers(0, 30))), (0, 1)) & allowed
    return None if (shifted & taken).any() else shifted


def plan_of(config: SynthesisConfig, *, num_pool: int = 4) -> Plan:
    return make_plan(
        tileset(num_pool), bank(), config=config, perturb=lambda mask, _seed: mask, place=place, allowed_of=lambda _tile, _seed: np.ones(SIZE_HW, bool),
        prompt_of=lambda names: f"with a {' and a '.join(names)}", concept_digest="c", control_digest="n", driver_config_digest="d",
    )  # fmt: skip


def test_a_plan_is_a_function_of_its_seed_and_batch_size_plays_no_part() -> None:
    first = plan_of(SynthesisConfig(num_images=12, seed=5))
    assert plan_of(SynthesisConfig(num_images=12, seed=5, batch_size=3)) == first
    assert plan_of(SynthesisConfig(num_images=12, seed=6)) != first
    assert len({job.seed for job in first.jobs}) == len({job.id for job in first.jobs}) == 12


def test_more_images_leave_earlier_seeds_as_they_are() -> None:
    short, long = plan_of(SynthesisConfig(num_images=5, seed=5)), plan_of(SynthesisConfig(num_images=40, seed=5))
    assert [job.seed for job in short.jobs] == [job.seed for job in long.jobs[:5]]


def test_a_driver_serves_at_most_fifteen_images_and_the_pool_is_used_evenly() -> None:
    plan = plan_of(SynthesisConfig(num_images=90, augmentations_per_image=2, max_seeds_per_driver=15), num_pool=3)
    drivers = Counter((job.tile_id, job.augmentation_seed, job.mask_sources) for job in plan.jobs)
    assert max(drivers.values()) <= 15
    assert len({(job.tile_id, job.augmentation_seed) for job in plan.jobs}) == 6
    assert plan_summary(plan)["drivers"] == len(drivers)
    tiles = Counter(job.tile_id for job in plan.jobs)
    assert max(tiles.values()) - min(tiles.values()) <= 15


def test_the_mix_of_classes_is_the_train_tiles() -> None:
    plan = plan_of(SynthesisConfig(num_images=300, augmentations_per_image=10, max_seeds_per_driver=1), num_pool=30)
    counts = Counter(i.category_id for job in plan.jobs for i in job.instances)
    assert counts[1] / counts[2] == pytest.approx(3, rel=0.35)


def test_masks_of_one_draft_do_not_overlap() -> None:
    for job in plan_of(SynthesisConfig(num_images=60, max_seeds_per_driver=1)).jobs:
        assert np.sum([decode(i.rle) for i in job.instances], axis=0).max() == 1


def test_an_empty_pool_or_bank_says_what_to_add() -> None:
    with pytest.raises(ConfigError, match="defect-free"):
        plan_of(SynthesisConfig(), num_pool=0)


def tiny_plan(count: int = 6) -> Plan:
    jobs = tuple(
        Job(
            id=f"{i:06d}", tile_id="p", augmentation_seed=None, instances=(Instance(category_id=1, rle=encode(mask_of(i % 3))),), mask_sources=(),
            prompt="an image of a sks with a crack", seed=100 + i,
        )
        for i in range(count)
    )  # fmt: skip
    return Plan(concept_digest="c", control_digest="n", driver_config_digest="d", categories=CATEGORIES, jobs=jobs)


def input_of(job: Job) -> DraftInput:
    driver = np.zeros((*SIZE_HW, 3), np.uint8)
    empty = driver.copy()
    driver[decode(job.instances[0].rle)] = (255, 0, 0)
    return DraftInput(driver=driver, empty_driver=empty, tile=np.full((*SIZE_HW, 3), 9, np.uint8), valid_hw=(28, 48))


def draw(base: Path, out: Path, **changes: int) -> list[np.ndarray]:
    from defectory.engine.base.load import load_base, load_controlnet

    models = replace(load_base(base), controlnet=load_controlnet(base / "controlnet"))
    config = SynthesisConfig(num_steps=3, **changes)
    for _ in synthesize(tiny_plan(), models=models, input_of=input_of, prompt_without="an image of a sks", config=config, out=out):
        pass
    return [load_rgb(out / folder / f"{job.id}.png") for job in tiny_plan().jobs for folder in ("images", "without")]


def test_another_batch_size_gives_the_same_pictures(tiny_base_folder: Path, tmp_path: Path) -> None:
    whole, small = draw(tiny_base_folder, tmp_path / "a", batch_size=6), draw(tiny_base_folder, tmp_path / "b", batch_size=2)
    for first, second in zip(whole, small, strict=True):
        near = np.abs(first.astype(int) - second) <= 1
        assert near.mean() >= 0.999
        assert np.ptp(first[:28]) > 0
        assert (first[28:] == 9).all()


def test_the_two_halves_differ_by_the_mask_alone(tiny_base_folder: Path, tmp_path: Path) -> None:
    images = draw(tiny_base_folder, tmp_path / "a", batch_size=6)
    assert any((a != b).any() for a, b in zip(images[::2], images[1::2], strict=True))


def test_drafts_on_disk_are_not_drawn_again(tiny_base_folder: Path, tmp_path: Path) -> None:
    before = draw(tiny_base_folder, tmp_path / "a", batch_size=2)
    lost = tmp_path / "a" / "images" / "000003.png"
    lost.unlink()
    kept = (tmp_path / "a" / "images" / "000000.png").stat().st_mtime_ns
    after = draw(tiny_base_folder, tmp_path / "a", batch_size=2)
    assert (tmp_path / "a" / "images" / "000000.png").stat().st_mtime_ns == kept
    for first, second in zip(before, after, strict=True):
        np.testing.assert_array_equal(first, second)


def test_export_holds_accepted_drafts_with_provenance(tmp_path: Path) -> None:
    plan = tiny_plan(3)
    for job in plan.jobs:
        save_png(tmp_path / "drafts" / "images" / f"{job.id}.png", np.full((*SIZE_HW, 3), 50, np.uint8))
    fidelity = Fidelity(iou=0.5, per_instance_iou=(0.5,), outside_fraction=0.1, f1_2px=(None,))
    decisions = Decisions(
        plan_digest=plan.digest(), threshold=0.35,
        decisions=tuple(Decision(job_id=job.id, status="accepted" if i != 1 else "rejected", reason="r", fidelity=fidelity) for i, job in enumerate(plan.jobs)),
    )  # fmt: skip
    count = export_synthetic(
        plan, decisions, drafts=tmp_path / "drafts", out=tmp_path / "synthetic", base_digest="b",
        pool_image_of=lambda _job: {"image_id": 7, "file_name": "p.png", "sha256": "x"}, valid_hw_of=lambda _job: (28, 48),
    )  # fmt: skip
    assert count == 2
    coco = json.loads((tmp_path / "synthetic" / "annotations.json").read_text())
    assert len(coco["images"]) == len({image["file_name"] for image in coco["images"]}) == 2
    records = [json.loads(line) for line in (tmp_path / "synthetic" / "provenance.jsonl").read_text().splitlines()]
    text = json.dumps(records[0])
    for value in ("an image of a sks with a crack", '"b"', '"c"', '"n"', "p.png", "100"):
        assert value in text
