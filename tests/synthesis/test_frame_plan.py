from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.artifacts.annotation import Category
from defectory.artifacts.plan import Job, MaskOrigin, Plan
from defectory.artifacts.tiles import Tile, TileInstance, TileSet, Tiling
from defectory.errors import ConfigError
from defectory.masks.placement import Sides, place, site_of_square
from defectory.rle import box_of, encode
from defectory.synthesis.config import SynthesisConfig
from defectory.synthesis.frame_plan import Squares, make_frame_plan
from defectory.synthesis.frames import Box, FrameSizes, change_boxes, overlap
from defectory.synthesis.plan import PlanDigests, PlanMaterial

TILE_PX, IMAGE_HW, MARGIN_PX = 48, (110, 150), 4
CATEGORIES = (Category(id=1, name="crack"), Category(id=2, name="blowhole"))
Mask = NDArray[np.bool_]


def tile(tile_id: str, image_id: int, subset: Any, corner_yx: tuple[int, int], *category_ids: int) -> Tile:
    instances = []
    for number, category_id in enumerate(category_ids):
        mask = np.zeros((TILE_PX, TILE_PX), bool)
        mask[8 * number : 8 * number + 5, 10:20] = True
        instances.append(TileInstance(category_id=category_id, rle=encode(mask), number=number))
    return Tile(
        id=tile_id,
        file_name=f"{tile_id}.png",
        image_id=image_id,
        subset=subset,
        offset_xy=(corner_yx[1], corner_yx[0]),
        scale=1,
        valid_hw=(TILE_PX, TILE_PX),
        instances=tuple(instances),
    )


def tileset(num_images: int) -> TileSet:
    corners = [(y, x) for y in (0, 31, 62) for x in (0, 34, 68, 102)]
    pool = [
        tile(f"p{image}-{n}", 10 + image, "pool", at) for image in range(num_images) for n, at in enumerate(corners)
    ]
    train = [tile("t0", 1, "train", (0, 0), 1), tile("t1", 2, "train", (0, 0), 1, 2), tile("t2", 3, "train", (0, 0), 2)]
    return TileSet(
        tiling=Tiling(mode="tile", tile_px=TILE_PX, scale=1, reason=""),
        categories=CATEGORIES,
        split_digest="s",
        tiles=(*train, *pool),
    )


def corner_of(of: Tile) -> tuple[int, int]:
    return int(of.offset_xy[1]), int(of.offset_xy[0])


def near(of: Tile, rng: np.random.Generator) -> Tile:
    y, x = (
        int(np.clip(at + rng.integers(-24, 25), 0, limit - TILE_PX))
        for at, limit in zip(corner_of(of), IMAGE_HW, strict=True)
    )
    return of.model_copy(update={"offset_xy": (float(x), float(y))})


def site(of: Tile, _: int | None) -> Any:
    y, x = corner_of(of)
    ends = Sides(top=y == 0, left=x == 0, bottom=y + TILE_PX >= IMAGE_HW[0], right=x + TILE_PX >= IMAGE_HW[1])
    image = np.full((TILE_PX, TILE_PX, 3), 120, np.uint8)
    return site_of_square(image, (TILE_PX, TILE_PX), ends=ends, margin_px=MARGIN_PX + 2)


def draw(category_id: int, rng: np.random.Generator) -> tuple[Mask, MaskOrigin]:
    mask = np.ones((int(rng.integers(3, 9)), int(rng.integers(3, 14))), bool)
    return mask, MaskOrigin(bank_id=f"b{category_id}", perturbation_seed=0)


def plan_of(
    num_images: int = 6,
    *,
    draw_mask: Any = draw,
    sizes: FrameSizes | None = None,
    seed: int = 0,
    earlier: tuple[Job, ...] = (),
    **config: Any,
) -> Plan:
    material = PlanMaterial(
        draw_mask=draw_mask,
        place=lambda mask, _class, at, taken, rng: place(
            mask, size_hw=(TILE_PX, TILE_PX), allowed=at.allowed, taken=taken, rng=rng, within=at.within
        ),
        site_of=site,
        prompt_of=lambda names, tone: f"{tone} " + " ".join(names),
        tone_of=lambda of: f"tone-{of.offset_xy[0]:.0f}",
        tone_distance=lambda tone, other: 0,
    )
    return make_frame_plan(
        tileset(num_images),
        config=SynthesisConfig(mode="insert", insert_margin_px=MARGIN_PX, **config),
        sizes=sizes or FrameSizes([1, 2, 4], drafts_per_frame="auto", seed=seed),
        seed=seed,
        digests=PlanDigests(concept="c", control="k", driver_config="d"),
        material=material,
        squares=Squares(near=near, corner_of=corner_of),
        earlier=earlier,
    )


def image_of(job: Job) -> str:
    return job.tile_id.split("-")[0]


def boxes_of(job: Job) -> list[Box]:
    own = {of.id: of for of in tileset(6).of("pool")}[job.tile_id]
    x, y = job.offset_xy or own.offset_xy
    size_hw = TILE_PX, TILE_PX
    return change_boxes(
        job.instances, margin_px=MARGIN_PX, corner_yx=(int(y), int(x)), valid_hw=size_hw, size_hw=size_hw
    )


def runs_of(plan: Plan) -> list[list[Job]]:
    runs: list[list[Job]] = []
    for job in plan.jobs:
        if runs and image_of(runs[-1][0]) == image_of(job):
            runs[-1].append(job)
        else:
            runs.append([job])
    return runs


def test_drafts_of_one_image_follow_each_other_and_never_overlap() -> None:
    plan = plan_of(seed=1)
    runs = runs_of(plan)
    assert max(len(run) for run in runs) > 1
    for run in runs[:6]:
        for at, first in enumerate(run):
            for second in run[at + 1 :]:
                assert not overlap(boxes_of(first), boxes_of(second))


def test_an_image_gets_as_many_defects_as_asked() -> None:
    plan = plan_of(sizes=FrameSizes([3], drafts_per_frame="auto", seed=0))
    counts = Counter(sum(len(job.instances) for job in run) for run in runs_of(plan)[:5])
    assert set(counts) == {3}
    plan = plan_of(sizes=FrameSizes([3], drafts_per_frame=2, seed=0))
    assert {len(run) for run in runs_of(plan)[:5]} == {2}


def test_the_same_seed_gives_the_same_plan_and_settings_of_drawing_change_nothing() -> None:
    assert plan_of() == plan_of(batch_size=3, num_inference_steps=7)
    assert plan_of() != plan_of(seed=1)


def test_no_label_is_cut_by_its_square() -> None:
    for job in plan_of().jobs:
        own = {of.id: of for of in tileset(6).of("pool")}[job.tile_id]
        x, y = job.offset_xy or own.offset_xy
        for instance in job.instances:
            x0, y0, x1, y1 = box_of(instance.rle)
            assert y0 >= MARGIN_PX + 2 or y == 0
            assert x0 >= MARGIN_PX + 2 or x == 0
            assert y1 <= TILE_PX - MARGIN_PX - 2 or y + TILE_PX == IMAGE_HW[0]
            assert x1 <= TILE_PX - MARGIN_PX - 2 or x + TILE_PX == IMAGE_HW[1]


def test_squares_lie_all_over_the_images_and_the_prompt_names_their_tones() -> None:
    jobs = plan_of().jobs
    assert sum(job.offset_xy is not None for job in jobs) > 0.8 * len(jobs)
    for job in jobs:
        if job.offset_xy is not None:
            assert job.prompt.startswith(f"tone-{job.offset_xy[0]:.0f} ")


def test_masks_that_never_fit_are_named_in_one_line() -> None:
    def too_large(category_id: int, rng: np.random.Generator) -> tuple[Mask, MaskOrigin]:
        return np.ones((47, 47), bool), MaskOrigin(bank_id="b", perturbation_seed=0)

    with pytest.raises(ConfigError, match="no mask with its margin finds a place"):
        plan_of(draw_mask=too_large)


def test_a_tile_serves_as_often_as_it_may() -> None:
    uses = Counter(job.tile_id for job in plan_of(max_images_per_tile=3).jobs)
    assert max(uses.values()) <= 3


def test_a_further_round_continues_ids_seeds_and_the_use_of_images() -> None:
    first = plan_of(num_images=6).jobs
    second = plan_of(num_images=6, earlier=first).jobs
    both = (*first, *second)
    assert [job.id for job in both] == [f"{number:06d}" for number in range(len(both))]
    assert len({job.seed for job in both}) == len(both)
    runs = Counter(image_of(of[0]) for of in runs_of(Plan(**{**dict(plan_of(num_images=6)), "jobs": both})))
    assert max(runs.values()) - min(runs.values()) <= 1, "images are used evenly over both rounds"
    assert plan_of(num_images=6, earlier=first) == plan_of(num_images=6, earlier=first)
