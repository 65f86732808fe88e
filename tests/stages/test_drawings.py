from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectory.engine.training.data import augment, augmentation_of
from defectory.errors import ConfigError, ImageError
from defectory.events import StageEnded
from defectory.images.load import load_rgb
from defectory.images.save import save_png
from defectory.runs.stage import Run
from defectory.stages.all import run_all, stages_of
from defectory.stages.parts import drawings as drawings_module
from defectory.stages.parts import leakage
from defectory.stages.parts.drawings import Drawings
from defectory.stages.parts.phase_tiles import phase_tiles
from defectory.stages.parts.pool import pool_tiles
from defectory.tools.drivers import compare_drivers
from defectory.tools.insert import insert_into

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


def drawings_of(project: Run) -> Drawings | None:
    return drawings_module.drawings_of(project.store(), project.config.drivers)


DRAWN = ("drivers.drawings=source/drawings", "drivers.kind=grey", "drivers.grid_px=64")


@pytest.fixture(scope="module")
def copied(tiny_run: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    shutil.copytree(tiny_run[0], folder / "copy")
    return folder / "copy"


@pytest.fixture(scope="module")
def project(copied: Path, tiny_run: TinyRun, open_tiny: Opened) -> Run:
    return open_tiny(copied, tiny_run[1], *DRAWN)


def likeness(a: Any, b: Any) -> float:
    return float(np.corrcoef(a.mean(axis=2).ravel(), b.mean(axis=2).ravel())[0, 1])


@pytest.mark.parametrize("tiling", [(), ("tiling.mode=tile", "tiling.tile_px=32", "tiling.scale=0.8")])
def test_drawings_are_cut_where_their_tiles_are(
    copied: Path, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path, tiling: tuple[str, ...]
) -> None:
    shutil.copytree(copied, tmp_path / "copy")
    # the photos themselves serve as drawings, so that equal cuts give equal tiles
    photos = tmp_path / "copy" / "photos"
    shutil.copytree(tmp_path / "copy" / "source" / "images", photos)
    project = open_tiny(tmp_path / "copy", tiny_run[1], "drivers.drawings=photos", *tiling)
    for _ in run_all(project, only=["import", "split", "tiles"]):
        pass
    drawings = drawings_of(project)
    assert drawings is not None
    for tile in project.store().tiles.tileset.tiles:
        height, width = tile.valid_hw
        photo = load_rgb(project.folder / "tiles" / tile.file_name)
        assert np.array_equal(drawings.of(tile)[:height, :width], photo[:height, :width])


def test_training_tiles_take_their_geometry_from_drawings_that_move_with_them(project: Run) -> None:
    tiles, held_out = phase_tiles(project.store(), drawings_of(project))
    assert all(tile.drawing is not None and tile.geometry is tile.drawing for tile in [*tiles, *held_out])
    assert tiles[0].digest() != replace(tiles[0], drawing=tiles[1].drawing).digest()
    with_it: list[float] = []
    without: list[float] = []
    for tile in tiles[:8]:
        for variant in (1, 2, 3):
            moved = augment(tile, augmentation_of(tile, variant, seed=0, flip=True))
            with_it.append(likeness(moved.image, moved.geometry))
            without.append(likeness(moved.image, tile.geometry))
    assert min(with_it) > 0.6
    assert np.mean(with_it) > np.mean(without) + 0.02


def test_drivers_of_drafts_come_from_drawings_and_show_no_fill(project: Run) -> None:
    job = next(job for job in project.store().plan.jobs if job.augmentation_seed is not None)
    pool = pool_tiles(project.store(), project.config)
    driver, empty, image = pool.drivers(job)
    tile = pool.tile(job)
    height, width = tile.valid_hw
    assert likeness(empty[:height, :width], image[:height, :width]) > 0.6
    assert (driver != empty).any()
    drawings = drawings_of(project)
    assert drawings is not None
    plain = job.model_copy(update={"augmentation_seed": None})
    low = cv2.resize(pool.drivers(plain)[1][:height, :width, 0].astype(np.float32), (width, height))
    drawn = drawings.of(tile)[:height, :width].mean(axis=2) * 50 / 255
    assert np.abs(low - drawn).mean() < 3, "grey geometry is the drawing, dimmed, under masks too"


def test_a_run_with_drawings_trains_and_synthesizes_and_a_changed_drawing_is_noticed(
    copied: Path, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    shutil.copytree(copied, tmp_path / "copy")
    stages = ["learn-condition", "plan", "calibrate", "synthesize", "curate", "export"]

    def ran() -> set[str]:
        events = run_all(open_tiny(tmp_path / "copy", tiny_run[1], *DRAWN, "synthesis.num_images=3"), only=stages)
        return {event.stage for event in events if isinstance(event, StageEnded) and not event.skipped}

    assert ran() == set(stages)
    assert ran() == set()
    path = sorted((tmp_path / "copy" / "source" / "drawings").glob("*.png"))[0]
    save_png(path, 255 - load_rgb(path))
    assert "learn-condition" in ran()


def test_a_changed_drawing_makes_all_that_reads_it_stale(
    copied: Path, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    shutil.copytree(copied, tmp_path / "copy")
    project = open_tiny(tmp_path / "copy", tiny_run[1], *DRAWN)
    inputs_of = {stage.name: stage.cache_key for stage in stages_of(project.config)}

    def keys() -> dict[str, str]:
        again = open_tiny(tmp_path / "copy", tiny_run[1], *DRAWN)
        return {name: repr(of(again.config, again.sources)) for name, of in inputs_of.items()}

    before = keys()
    path = sorted((tmp_path / "copy" / "source" / "drawings").glob("*.png"))[0]
    save_png(path, 255 - load_rgb(path))
    after = keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed >= {"learn-condition", "calibrate", "synthesize", "report"}
    # the drawings lie in the data set's folder, so the import is checked again too
    assert not changed & {"split", "tiles", "learn-concept"}


def test_comparison_and_leakage_see_drawings(project: Run) -> None:
    defective, free = leakage.driver_samples(project.store(), project.config)
    assert all(sample.drawing is not None for sample in [*defective, *free])
    sample = defective[0]
    other = np.ascontiguousarray(sample.image[::-1])
    changed = replace(sample, image=other)
    assert np.array_equal(sample.geometry(project.config.drivers), changed.geometry(project.config.drivers))
    assert compare_drivers(project, num_tiles=1).shape[1] > 7 * 160


def test_insertion_needs_the_drawing_of_its_frame(
    project: Run, tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    dataset = project.store().data.dataset
    record = dataset.image(project.store().split.pool[0])
    frame = project.folder / "data" / "images" / record.file_name
    drawing = project.sources.folder / "source" / "drawings" / record.file_name
    common: dict[str, Any] = {"out": tmp_path / "out", "count": 1, "class_name": None, "region_file": None, "seed": 0}
    with pytest.raises(ConfigError, match="option --drawing: is missing"):
        list(insert_into(project, frame, **common))
    save_png(tmp_path / "small.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(ImageError, match=r"is 9x9, its image 64x88"):
        list(insert_into(project, frame, drawing_file=tmp_path / "small.png", **common))
    plain = open_tiny(tiny_run[0], tiny_run[1])
    with pytest.raises(ConfigError, match="geometry from images"):
        list(insert_into(plain, frame, drawing_file=drawing, **common))
    list(insert_into(project, frame, drawing_file=drawing, **common))
    assert (tmp_path / "out" / "annotations.json").is_file()


def test_missing_and_misfit_drawings_are_told_in_one_line(copied: Path, tiny_run: TinyRun, open_tiny: Opened) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        drawings_of(open_tiny(copied, tiny_run[1], "drivers.drawings=nowhere"))
    some = copied / "some"
    shutil.copytree(copied / "source" / "drawings", some)
    project = open_tiny(copied, tiny_run[1], "drivers.drawings=some")
    name = project.store().data.dataset.image(project.store().split.train[0]).file_name
    save_png(some / name, np.zeros((10, 12), np.uint8))
    with pytest.raises(ImageError, match=r"is 10x12, its image 64x88 \(height x width\)"):
        drawings_of(project)
    (some / name).unlink()
    with pytest.raises(ConfigError, match=f"no drawing of {name}"):
        drawings_of(project)
    with pytest.raises(ConfigError, match="choose another kind, or leave drawings out"):
        open_tiny(copied, tiny_run[1], "drivers.drawings=some", "drivers.kind=image")
