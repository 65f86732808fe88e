"""Synthetic sets of whole images, from a run that cuts images into tiles."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from defectory.artifacts.dataset import Dataset, image_path
from defectory.dataset.tile_plan import scaled_size_hw
from defectory.errors import ConfigError, FirewallError, StageError
from defectory.events import StageEnded
from defectory.files import digest_file
from defectory.formats.coco import load_coco
from defectory.geometry import distance_to
from defectory.images.frames import load_native
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.rle import box_of, decode
from defectory.runs.stage import Run
from defectory.segmentation.sizing import Sizing
from defectory.stages.all import run_all
from defectory.stages.export import frame_source
from defectory.stages.parts.drawing_mode import synthesis_of
from defectory.stages.parts.pool import corner_of, pool_tiles
from defectory.stages.parts.segmenter_images import made_images
from defectory.stages.parts.synthetic_set import load_synthetic
from defectory.tools.insert import insert_into

Open = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]
OVERRIDES = ("tiling.mode=tile", "synthesis.insert_margin_px=2", "synthesis.num_images=12")
UNTIL_EXPORT = ["tiles", "learn-concept", "learn-condition", "plan", "calibrate", "synthesize", "curate", "export"]


@pytest.fixture(scope="module")
def tile_run(tiny_run: TinyRun, open_tiny: Open, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[str]]:
    """The tiny run in tile mode up to its export, and what its stages said; do not write into it."""
    folder, settings, _ = tiny_run
    copy = tmp_path_factory.mktemp("tile_run") / "copy"
    shutil.copytree(folder, copy)
    run = open_tiny(copy, settings, *OVERRIDES)
    ended = [event.summary for event in run_all(run, only=UNTIL_EXPORT) if isinstance(event, StageEnded)]
    return run, ended


def records(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "synthetic" / "provenance.jsonl").read_text().splitlines()]


def test_cut_into_tiles_a_run_delivers_whole_defect_free_images_with_defects(tile_run: tuple[Run, list[str]]) -> None:
    run, ended = tile_run
    store = run.store()
    assert synthesis_of(store, run.config).mode == "insert"
    assert "12 drafts on squares of" in ended[3]
    assert "with 12 drafts in synthetic/annotations.json" in ended[-1]
    made = load_synthetic(run.folder / "synthetic")
    assert 1 < len(made) < 12
    assert sorted(draft["job"] for of in made for draft in of.drafts) == [job.id for job in store.plan.jobs]
    split = store.split
    for of in made:
        record = store.data.dataset.image(of.provenance["pool"]["image_id"])
        assert record.id in {*split.pool, *split.train}
        assert not record.instances
        original = load_native(image_path(run.folder / "data", record))
        pixels = load_native(of.path)
        assert pixels.shape == original.shape
        label = np.any([decode(i.rle) for i in of.instances], axis=0)
        assert np.array_equal(pixels[distance_to(label) >= 2], original[distance_to(label) >= 2])


def test_no_label_is_cut_by_its_square_and_squares_lie_anywhere(tile_run: tuple[Run, list[str]]) -> None:
    run, _ = tile_run
    store = run.store()
    pool = pool_tiles(store, run.config)
    assert any(job.offset_xy is not None for job in store.plan.jobs)
    for job in store.plan.jobs:
        ends, side = pool.ends(pool.tile(job)), store.tiles.tileset.tiling.tile_px
        for instance in job.instances:
            x0, y0, x1, y1 = box_of(instance.rle)
            assert (y0 >= 6 or ends.top) and (x0 >= 6 or ends.left)  # noqa: PT018
            assert (y1 <= side - 6 or ends.bottom) and (x1 <= side - 6 or ends.right)  # noqa: PT018


def test_a_square_shows_its_image_to_the_pixel(tile_run: tuple[Run, list[str]]) -> None:
    run, _ = tile_run
    store = run.store()
    pool, tiling = pool_tiles(store, run.config), store.tiles.tileset.tiling
    assert tiling.scale == 1
    rng = np.random.default_rng(0)
    corners: set[tuple[int, int]] = set()
    for tile in store.tiles.tileset.of("pool"):
        square = pool.square_near(tile, rng)
        (y, x), record = corner_of(square), store.data.dataset.image(tile.image_id)
        image = load_rgb(image_path(run.folder / "data", record), store.data.dataset.value_range)
        assert image.shape[:2] == scaled_size_hw(record, tiling)
        shown = pool.image(square, None)
        assert np.array_equal(shown[: tile.valid_hw[0], : tile.valid_hw[1]], image[y : y + 32, x : x + 32])
        corners.add((y, x))
    assert len(corners) > 5


def test_a_square_never_shows_ground_that_no_pool_tile_shows(tile_run: tuple[Run, list[str]]) -> None:
    run, _ = tile_run
    store = run.store()
    first = store.tiles.tileset.of("pool")[0]
    alone = store.tiles.tileset.model_copy(update={"tiles": (first,)})
    pool = pool_tiles(store, run.config)
    folder = type(store.tiles)(tileset=alone, folder=store.tiles.folder)
    pool = type(pool)(
        folder, drivers=run.config.drivers, flip=True, drawings=None, sizes_hw={first.image_id: TINY_IMAGE_HW}
    )
    rng = np.random.default_rng(0)
    assert all(pool.square_near(first, rng).offset_xy == first.offset_xy for _ in range(10))


TINY_IMAGE_HW = (64, 88)


def test_segmenters_see_the_frames_with_all_their_defects(tile_run: tuple[Run, list[str]]) -> None:
    run, _ = tile_run
    made = load_synthetic(run.folder / "synthetic")
    windows = made_images(run.folder / "synthetic", run.store(), Sizing(scale=1.0, input_px=64), seed=0)
    assert [len(window.instances) for window in windows] == [len(of.instances) for of in made]
    assert all(window.image.shape == (*TINY_IMAGE_HW, 3) for window in windows)
    assert [window.image_ids for window in windows] == [of.image_ids for of in made]


def test_another_export_is_the_same_bytes(tile_run: tuple[Run, list[str]], open_tiny: Open, tmp_path: Path) -> None:
    run, _ = tile_run
    before = {path.name: digest_file(path) for path in (run.folder / "synthetic").rglob("*.*") if path.is_file()}
    shutil.copytree(run.folder.parent, tmp_path / "copy")
    again = Run(config=run.config, folder=tmp_path / "copy" / "run", sources=run.sources)
    shutil.rmtree(again.folder / "synthetic")
    list(run_all(again, only=["export"]))
    after = {path.name: digest_file(path) for path in (again.folder / "synthetic").rglob("*.*") if path.is_file()}
    own = {"stage.json", ".defectory.json"}
    assert {n: d for n, d in after.items() if n not in own} == {n: d for n, d in before.items() if n not in own}


def test_frames_are_left_alone_where_full_tiles_are_asked_for(
    tile_run: tuple[Run, list[str]], open_tiny: Open, tiny_run: TinyRun, tmp_path: Path
) -> None:
    run, _ = tile_run
    shutil.copytree(run.folder.parent, tmp_path / "copy")
    full = open_tiny(tmp_path / "copy", tiny_run[1], *OVERRIDES, "synthesis.mode=full")
    list(run_all(full, only=["plan", "calibrate", "synthesize", "curate", "export"]))
    made = load_synthetic(full.folder / "synthetic")
    assert [len(of.drafts) for of in made] == [1] * 12
    assert not any(of.is_frame for of in made)
    assert {of.size_hw for of in made} == {(32, 32)}
    assert all(job.offset_xy is None for job in full.store().plan.jobs)


def test_a_pool_image_with_a_defect_stops_the_export(tile_run: tuple[Run, list[str]]) -> None:
    run, _ = tile_run
    store = run.store()
    used = {draft["pool"]["image_id"] for draft in records(run)}
    defective = next(record for record in store.data.dataset.images if record.instances)
    images = tuple(
        record.model_copy(update={"instances": defective.instances}) if record.id in used else record
        for record in store.data.dataset.images
    )
    bad: Any = SimpleNamespace(
        data=SimpleNamespace(dataset=Dataset(**{**dict(store.data.dataset), "images": images})),
        tiles=store.tiles,
        split=store.split,
        plan=store.plan,
    )
    pool = pool_tiles(store, run.config)
    assert frame_source(store, run.config, pool) is not None
    with pytest.raises(StageError, match="shows defects"):
        frame_source(bad, run.config, pool)
    moved = store.split.model_copy(update={"pool": (), "train": (), "test": (*store.split.test, *store.split.pool)})
    bad.split = moved
    with pytest.raises(FirewallError):
        frame_source(bad, run.config, pool)


def test_inserted_into_a_large_frame_no_label_is_cut(tile_run: tuple[Run, list[str]], tmp_path: Path) -> None:
    run, _ = tile_run
    large = np.random.default_rng(0).integers(90, 140, (150, 210, 3)).astype(np.uint8)
    save_png(tmp_path / "large.png", large)
    list(insert_into(run, tmp_path / "large.png", out=tmp_path / "out", count=6))
    raw = load_coco(tmp_path / "out" / "annotations.json", image_root=tmp_path / "out" / "images")
    for image in raw.images:
        changed = (load_native(image.path) != large).any(axis=2)
        label = decode(image.instances[0].rle)
        assert not changed[distance_to(label) >= 2].any()
        x0, y0, x1, y1 = box_of(image.instances[0].rle)
        assert max(x1 - x0, y1 - y0) <= 32 - 2 * 6 or 0 in (x0, y0) or y1 == 150 or x1 == 210


def test_a_mask_without_room_for_its_margin_is_refused(tile_run: tuple[Run, list[str]], tmp_path: Path) -> None:
    run, _ = tile_run
    save_png(tmp_path / "large.png", np.full((150, 210, 3), 120, np.uint8))
    mask = np.zeros((150, 210), np.uint8)
    mask[60:90, 60:64] = 255
    save_png(tmp_path / "mask.png", mask)
    name = run.store().data.dataset.categories[0].name
    with pytest.raises(ConfigError, match="its mask is 30x4 px, a tile shows 28 px and a margin"):
        list(
            insert_into(
                run,
                tmp_path / "large.png",
                out=tmp_path / "out",
                count=1,
                class_name=name,
                mask_file=tmp_path / "mask.png",
            )
        )
