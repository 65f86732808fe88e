from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category, Instance
from defectory.artifacts.plan import Job, MaskBank, MaskBankEntry, Plan
from defectory.artifacts.tiles import Tile, TileInstance, TileSet, Tiling
from defectory.errors import ConfigError
from defectory.masks.config import MaskConfig
from defectory.masks.placement import Site, borders_of, place
from defectory.masks.sources import MaskSources
from defectory.rle import decode, encode
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.plan import PlanDigests, PlanMaterial, make_plan, mix_weights, mixes_of_train, plan_summary
from defectory.tones import contrast_steps

SIZE_HW = (40, 56)
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
Mask = NDArray[np.bool_]


def instance(category_id: int, top: int = 6) -> Instance:
    mask = np.zeros(SIZE_HW, bool)
    mask[top : top + 6, 8 : 20 if category_id == 1 else 14] = True
    return Instance(category_id=category_id, rle=encode(mask))


def numbered(instances: tuple[Instance, ...]) -> tuple[TileInstance, ...]:
    return tuple(TileInstance(**dict(instance), number=number) for number, instance in enumerate(instances))


def tile(tile_id: str, image_id: int, subset: Any, *instances: Instance) -> Tile:
    return Tile(
        id=tile_id,
        file_name=f"{tile_id}.png",
        image_id=image_id,
        subset=subset,
        offset_xy=(0, 0),
        scale=1,
        valid_hw=SIZE_HW,
        instances=numbered(instances),
    )


TRAIN = (
    tile("t0", 1, "train", instance(1)),
    tile("t1", 2, "train", instance(1)),
    tile("t2", 3, "train", instance(1)),
    tile("t3", 4, "train", instance(2), instance(2, top=24)),
)
BANK = MaskBank(
    split_digest="s",
    entries=tuple(
        MaskBankEntry(id=f"{t.id}-m{n}", tile_id=t.id, image_id=t.image_id, category_id=i.category_id, mask=i)
        for t in TRAIN
        for n, i in enumerate(t.instances)
    ),
)


def tileset(num_pool: int, train: tuple[Tile, ...] = TRAIN) -> TileSet:
    pool = tuple(tile(f"p{i}", 10 + i, "pool") for i in range(num_pool))
    return TileSet(
        tiling=Tiling(mode="tile", tile_px=56, scale=1, reason=""),
        categories=CATEGORIES,
        split_digest="s",
        tiles=(*train, *pool),
    )


def allowed(_: Tile, __: int | None) -> Mask:
    result = np.zeros(SIZE_HW, bool)
    result[3:37, 4:50] = True
    return result


def plan_of(
    num_pool: int = 4,
    *,
    train: tuple[Tile, ...] = TRAIN,
    bank: MaskBank = BANK,
    keep_place: bool = False,
    tone_of: Any = lambda tile: f"tone-{tile.id}",
    tone_distance: Any = lambda tone, other: 0,
    even_classes: bool = False,
    seed: int = 0,
    earlier: tuple[Job, ...] = (),
    **config: Any,
) -> Plan:
    masks = MaskSources(bank, (), config=MaskConfig(keep_place=keep_place), names={1: "crack", 2: "blowhole"})
    material = PlanMaterial(
        draw_mask=masks.draw,
        even_classes=even_classes,
        place=lambda mask, _class, site, taken, rng: place(
            mask, size_hw=SIZE_HW, allowed=site.allowed, taken=taken, rng=rng
        ),
        site_of=lambda tile, seed: Site(allowed=allowed(tile, seed), borders=borders_of(allowed(tile, seed))),
        prompt_of=lambda names, tone: f"an image of a {tone} sks" + (" with " + " and ".join(names) if names else ""),
        tone_of=tone_of,
        tone_distance=tone_distance,
        keep_place=keep_place,
    )
    return make_plan(
        tileset(num_pool, train),
        config=SynthesisConfig(mode="full", **config),
        seed=seed,
        digests=PlanDigests(concept="c", control="k", driver_config="d"),
        material=material,
        earlier=earlier,
    )


def drivers_of(plan: Plan) -> dict[tuple[Any, ...], list[str]]:
    drivers: dict[tuple[Any, ...], list[str]] = {}
    for job in plan.jobs:
        drivers.setdefault((job.tile_id, job.augmentation_seed, job.mask_sources, job.instances), []).append(job.id)
    return drivers


def test_the_same_seed_gives_the_same_plan_and_another_seed_another() -> None:
    assert plan_of(num_images=30) == plan_of(num_images=30)
    assert plan_of(num_images=30).digest() != plan_of(num_images=30, seed=1).digest()


def test_batch_size_sampler_and_steps_change_no_job() -> None:
    changed = plan_of(num_images=30, batch_size=3, num_inference_steps=7, scheduler="ddpm", guidance_scale=2.0)
    assert changed.digest() == plan_of(num_images=30, batch_size=16).digest()


def test_every_job_has_a_seed_and_an_id_of_its_own() -> None:
    jobs = plan_of(num_images=120, max_seeds_per_driver=15, augmentations_per_image=2).jobs
    assert len(jobs) == 120
    assert len({job.seed for job in jobs}) == 120
    assert [job.id for job in jobs] == sorted({job.id for job in jobs})


@pytest.mark.parametrize(
    ("num_images", "num_pool", "augmentations"), [(100, 3, 2), (100, 40, 10), (7, 2, 0), (400, 2, 3)]
)
def test_a_driver_serves_a_limited_number_of_jobs(num_images: int, num_pool: int, augmentations: int) -> None:
    plan = plan_of(num_pool, num_images=num_images, augmentations_per_image=augmentations, max_seeds_per_driver=15)
    sizes = [len(ids) for ids in drivers_of(plan).values()]
    assert sum(sizes) == num_images
    assert max(sizes) <= 15
    assert plan_summary(plan)["drivers"] == len(sizes) >= min(num_images, num_pool * max(1, augmentations))


def test_a_number_of_drivers_is_met_and_each_serves_as_many_jobs() -> None:
    plan = plan_of(40, num_images=100, num_drivers=10)
    assert sorted(len(ids) for ids in drivers_of(plan).values()) == [10] * 10


def test_a_pool_tile_has_at_most_the_configured_versions() -> None:
    plan = plan_of(3, num_images=150, augmentations_per_image=4, max_seeds_per_driver=2)
    versions: dict[str, set[int | None]] = {}
    for job in plan.jobs:
        versions.setdefault(job.tile_id, set()).add(job.augmentation_seed)
    assert {len(seeds) for seeds in versions.values()} == {4}
    as_they_are = plan_of(3, num_images=9, augmentations_per_image=0)
    assert {job.augmentation_seed for job in as_they_are.jobs} == {None}


def test_pool_tiles_are_used_evenly() -> None:
    uses = Counter(job.tile_id for job in plan_of(7, num_images=35).jobs)
    assert uses == {f"p{i}": 5 for i in range(7)}


def test_classes_and_counts_follow_the_train_tiles() -> None:
    plan = plan_of(40, num_images=400)
    mixes = Counter(tuple(i.category_id for i in job.instances) for job in plan.jobs)
    assert set(mixes) <= {(1,), (2, 2), (2,)}  # (2,): the second found no place
    assert mixes[(1,)] / 400 == pytest.approx(0.75, abs=0.07)
    assert mixes[(2, 2)] > 5 * mixes[(2,)]
    assert all(
        job.prompt.split(" with ")[1].split(" and ")[0] == CATEGORIES[job.instances[0].category_id - 1].name
        for job in plan.jobs
    )


def test_slivers_and_crowds_of_a_train_tile_are_no_defects_of_its_own() -> None:
    def seen(index: int, **changes: Any) -> TileInstance:
        return TRAIN[3].instances[index].model_copy(update=changes)

    def counts(*instances: TileInstance) -> set[int]:
        train = (TRAIN[3].model_copy(update={"instances": instances}),)
        return {len(job.instances) for job in plan_of(train=train, num_images=12).jobs}

    assert counts(seen(0), seen(1)) == {2}
    assert counts(seen(0), seen(1, visible_share=0.3)) == {1}
    assert counts(seen(0), seen(1, is_crowd=True)) == {1}
    # where every defect is larger than a tile, its parts count
    assert counts(seen(0, visible_share=0.2), seen(1, visible_share=0.3)) == {2}


def test_a_job_has_the_tones_of_a_train_tile_with_its_classes() -> None:
    for job in plan_of(num_images=60).jobs:
        tone = job.prompt.split(" ")[4]
        assert tone in (("tone-t3",) if job.instances[0].category_id == 2 else ("tone-t0", "tone-t1", "tone-t2"))
        assert job.prompt_without == f"an image of a {tone} sks"


def test_a_job_is_drawn_on_a_pool_tile_of_like_tones_unless_they_are_used_up() -> None:
    """One pool tile in five is harsh, three train tiles in four are: the harsh ones serve more, but not alone."""
    tones = {"t0": "dim harsh", "t1": "dim harsh", "t2": "black harsh", "t3": "dim flat"} | {
        f"p{i}": "dim flat" for i in range(2, 10)
    }

    def apart(plan: Plan) -> list[int]:
        return [
            contrast_steps(job.prompt.split(" with ")[0].removeprefix("an image of a "), tone_of(job.tile_id))
            for job in plan.jobs
        ]

    def tone_of(tile_id: str) -> str:
        return tones.get(tile_id, "white harsh")

    def made(**changes: Any) -> Plan:
        return plan_of(10, num_images=80, augmentations_per_image=10, tone_of=lambda tile: tone_of(tile.id), **changes)

    matched, unmatched = made(tone_distance=contrast_steps), made()
    uses = Counter(job.tile_id for job in matched.jobs)
    assert np.mean(apart(matched)) < 0.5 * np.mean(apart(unmatched))
    harsh, flat = [uses["p0"], uses["p1"]], [uses[f"p{i}"] for i in range(2, 10)]
    assert min(harsh) > 2 * max(flat)
    assert max(flat) - min(flat) <= 1
    assert min(flat) >= 1


def test_labels_lie_on_allowed_pixels_apart_and_name_their_source() -> None:
    sources = {entry.id: entry.category_id for entry in BANK.entries}
    for job in plan_of(num_images=60).jobs:
        masks = [decode(i.rle) for i in job.instances]
        assert all(
            mask.shape == SIZE_HW and mask.any() and not (mask & ~allowed(tileset(1).tiles[0], None)).any()
            for mask in masks
        )
        assert sum(int(mask.sum()) for mask in masks) == np.any(masks, axis=0).sum()
        assert [sources[s.bank_id] for s in job.mask_sources] == [i.category_id for i in job.instances]


def test_masks_may_keep_their_place() -> None:
    originals = {entry.mask.rle.counts for entry in BANK.entries}
    assert {i.rle.counts for job in plan_of(num_images=20, keep_place=True).jobs for i in job.instances} <= originals


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Any) -> None:
    plan = plan_of(num_images=5)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


def test_without_pool_or_masks_there_is_no_plan() -> None:
    with pytest.raises(ConfigError, match=r"pool: no defect-free tile; add defect-free images"):
        plan_of(0)
    with pytest.raises(ConfigError, match=r"train tiles: none shows a defect"):
        plan_of(train=(tile("t0", 1, "train"),))
    with pytest.raises(ConfigError, match=r"pool: no mask finds a place"):
        plan_of(bank=MaskBank(split_digest="s", entries=()))


def test_classes_can_be_made_to_come_equally_often() -> None:
    counts = Counter(
        i.category_id for job in plan_of(40, num_images=300, even_classes=True).jobs for i in job.instances
    )
    assert counts[1] / counts[2] == pytest.approx(1, abs=0.25)
    as_in_train = Counter(i.category_id for job in plan_of(40, num_images=300).jobs for i in job.instances)
    assert as_in_train[1] / as_in_train[2] > 1.3


def test_a_pool_tile_serves_at_most_the_configured_images_and_a_smaller_pool_is_refused() -> None:
    uses = Counter(job.tile_id for job in plan_of(6, num_images=24, max_images_per_tile=4).jobs)
    assert uses == {f"p{i}": 4 for i in range(6)}
    with pytest.raises(ConfigError, match=r"synthesis.num_images 25: 6 pool tiles give 24 images at 4 each") as caught:
        plan_of(6, num_images=25, max_images_per_tile=4)
    assert "\n" not in str(caught.value)


def test_the_summary_counts() -> None:
    plan = plan_of(4, num_images=20, augmentations_per_image=1)
    summary = plan_summary(plan)
    assert (summary["images"], summary["pool_tiles"], summary["drivers"]) == (20, 4, 4)
    per_class: Any = summary["instances_per_class"]
    assert sum(per_class.values()) == sum(len(job.instances) for job in plan.jobs)


def test_a_further_round_continues_ids_and_has_seeds_of_its_own() -> None:
    settings: dict[str, Any] = {"num_images": 20, "augmentations_per_image": 2, "max_seeds_per_driver": 4}
    first = plan_of(**settings).jobs
    second = plan_of(**settings, earlier=first).jobs
    assert [job.id for job in (*first, *second)] == [f"{number:06d}" for number in range(40)]
    assert len({job.seed for job in (*first, *second)}) == 40
    drawn = [{source.perturbation_seed for job in jobs for source in job.mask_sources} for jobs in (first, second)]
    assert not drawn[0] & drawn[1]


def test_the_limit_per_pool_tile_holds_over_all_rounds_and_tiles_stay_even() -> None:
    settings: dict[str, Any] = {"num_images": 8, "max_images_per_tile": 6, "augmentations_per_image": 3}
    first = plan_of(4, **settings).jobs
    second = plan_of(4, **settings, earlier=first).jobs
    third = plan_of(4, **settings, earlier=(*first, *second)).jobs
    assert Counter(job.tile_id for job in (*first, *second, *third)) == {f"p{i}": 6 for i in range(4)}
    with pytest.raises(ConfigError, match="4 pool tiles give 24 images at 6 each"):
        plan_of(4, **settings, earlier=(*first, *second, *third))


def test_mixes_of_weight_zero_are_not_taken_unless_all_are_zero() -> None:
    mixes = mixes_of_train(tileset(1), lambda _: "")
    found = mix_weights(mixes, even_classes=False, weight_of=lambda tile: float(tile.id == "t3"))
    assert found is not None
    assert found.tolist() == [0, 0, 0, 1]
    assert mix_weights(mixes, even_classes=False, weight_of=lambda _: 0.0) is None
