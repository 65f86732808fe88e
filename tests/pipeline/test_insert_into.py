from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectory.errors import ConfigError, ImageError
from defectory.formats.coco import load_coco
from defectory.geometry import distance_to
from defectory.imageio import load_native, save_png
from defectory.pipeline.insert_into import insert_into
from defectory.pipeline.regions import tile_regions
from defectory.pipeline.run import run_project
from defectory.pipeline.stage import Project, StageEnded
from defectory.pipeline.values import dataset_of, split_of, tileset_of
from defectory.rle import decode

Opened = Callable[..., Project]
Run = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture(scope="module")
def project(tiny_run: Run, open_tiny: Opened) -> Project:
    folder, settings, _ = tiny_run
    return open_tiny(folder, settings, "synthesis.insert_margin_px=4")


def frame(kind: str, size_hw: tuple[int, int], seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    if kind == "grey16":
        return rng.integers(20000, 50000, size_hw).astype(np.uint16)
    return rng.integers(60, 200, size_hw if kind == "grey" else (*size_hw, 3)).astype(np.uint8)


def inserted(project: Project, path: Path, out: Path, **changes: Any) -> list[tuple[Any, list[Any]]]:
    given: dict[str, Any] = {"count": 2, "class_name": None, "region_file": None, "seed": 0} | changes
    list(insert_into(project, path, out=out, **given))
    raw = load_coco(out / "annotations.json", image_root=out / "images")
    return [(load_native(image.path), [decode(i.rle) for i in image.instances]) for image in raw.images]


@pytest.mark.parametrize(("kind", "size_hw"), [("grey", (71, 93)), ("rgb", (64, 88)), ("grey16", (121, 67))])
def test_a_frame_keeps_size_depth_and_every_pixel_beyond_the_margin(
    project: Project, tmp_path: Path, kind: str, size_hw: tuple[int, int]
) -> None:
    pixels = frame(kind, size_hw)
    save_png(tmp_path / "frame.png", pixels)
    found = inserted(project, tmp_path / "frame.png", tmp_path / "out")
    assert len(found) == 2
    native_px = max(size_hw) / tileset_of(project).tiling.tile_px
    for image, (label,) in found:
        assert (image.shape, image.dtype) == (pixels.shape, pixels.dtype)
        changed = (image != pixels).reshape(*size_hw, -1).any(axis=2)
        assert changed[label].any()
        assert not changed[distance_to(label) > (4 + 1) * native_px + 1].any()
    assert not np.array_equal(found[0][0], found[1][0]), "each has a place, a mask and noise of its own"


def test_the_same_seed_gives_the_same_images(project: Project, tmp_path: Path) -> None:
    save_png(tmp_path / "frame.png", frame("rgb", (64, 88)))
    first, again, other = (
        inserted(project, tmp_path / "frame.png", tmp_path / name, seed=seed, count=1) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first[0][0], again[0][0])
    assert not np.array_equal(first[0][0], other[0][0])


def test_a_defect_lies_in_the_region_that_was_drawn(project: Project, tmp_path: Path) -> None:
    save_png(tmp_path / "frame.png", frame("rgb", (64, 88)))
    region = np.zeros((64, 88), np.uint8)
    region[:, 50:] = 255
    save_png(tmp_path / "region.png", region)
    for _, (label,) in inserted(project, tmp_path / "frame.png", tmp_path / "out", region_file=tmp_path / "region.png", count=4):
        assert label[:, 50:].sum() > 0
        assert not label[:, :48].any()


def test_bad_input_is_told_and_nothing_is_written(project: Project, tmp_path: Path) -> None:
    path, out = tmp_path / "frame.png", tmp_path / "out"
    save_png(path, frame("rgb", (64, 88)))
    save_png(tmp_path / "small.png", np.full((10, 10), 255, np.uint8))
    save_png(tmp_path / "none.png", np.zeros((64, 88), np.uint8))
    with pytest.raises(ConfigError, match="class 'dragon': is not one of the project's; choose among"):
        inserted(project, path, out, class_name="dragon")
    with pytest.raises(ImageError, match=r"is 10x10, its image 64x88 \(height x width\)"):
        inserted(project, path, out, region_file=tmp_path / "small.png")
    with pytest.raises(ImageError, match="allows no pixel"):
        inserted(project, path, out, region_file=tmp_path / "none.png")
    with pytest.raises(ImageError, match="no such image file"):
        inserted(project, tmp_path / "missing.png", out)
    record = dataset_of(project).image(split_of(project).test[0])
    with pytest.raises(ImageError, match="is an image of validation or test"):
        inserted(project, project.path("data", "images", record.file_name), out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_run_that_inserts_exports_pool_images_with_labels_in_their_frame(tiny_run: Run, open_tiny: Opened, tmp_path: Path) -> None:
    import shutil

    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    project = open_tiny(tmp_path / "copy", settings, "synthesis.mode=insert", "synthesis.insert_margin_px=4", "synthesis.num_images=4")
    for _ in run_project(project, only=["plan", "calibrate", "synthesize", "curate", "export"]):
        pass
    records = [json.loads(line) for line in project.path("synthetic", "provenance.jsonl").read_text().splitlines()]
    raw = load_coco(project.path("synthetic", "annotations.json"), image_root=project.path("synthetic", "images"))
    assert len(raw.images) == 4
    for image, record in zip(raw.images, records, strict=True):
        original = load_native(project.path("data", "images", record["pool"]["file_name"]))
        pixels = load_native(image.path)
        assert pixels.shape == original.shape
        label = np.any([decode(i.rle) for i in image.instances], axis=0)
        changed = (pixels != original).any(axis=2)
        assert changed.any()
        scale = tileset_of(project).tiling.scale
        assert not changed[distance_to(label) > (4 + 1) / scale + 1].any()


def test_drawn_regions_of_pool_images_follow_their_tiles(tiny_run: Run, open_tiny: Opened, tmp_path: Path) -> None:
    folder, settings, _ = tiny_run
    drawn = folder / "regions-of-a-test"
    drawn.mkdir(exist_ok=True)
    project = open_tiny(folder, settings, f'masks.regions="{drawn.name}"')
    tileset = tileset_of(project)
    tile = tileset.of("pool")[0]
    record = dataset_of(project).image(tile.image_id)
    region = np.zeros(record.size_hw, np.uint8)
    region[:, : record.size_hw[1] // 2] = 255
    try:
        with pytest.raises(ConfigError, match="holds no PNG file"):
            tile_regions(project, tileset.tiling.tile_px)
        save_png(drawn / f"{Path(record.file_name).stem}.png", region)
        region_of = tile_regions(project, tileset.tiling.tile_px)
        shown = region_of(tile, None)
        assert shown is not None
        half = round(tile.valid_hw[1] / 2)
        assert shown[: tile.valid_hw[0], : half - 1].all()
        assert not shown[:, half + 1 :].any()
        turned = region_of(tile, 3)
        assert turned is not None
        assert not np.array_equal(turned, shown)
        assert region_of(tileset.of("pool")[-1], None) is None
        save_png(drawn / "nobody.png", region)
        with pytest.raises(ConfigError, match="no image is named so"):
            tile_regions(project, tileset.tiling.tile_px)
        (drawn / "nobody.png").unlink()
        Image.new("L", (5, 5), 255).save(drawn / f"{Path(record.file_name).stem}.png")
        with pytest.raises(ImageError, match="is 5x5, its image"):
            tile_regions(project, tileset.tiling.tile_px)
    finally:
        for path in drawn.glob("*.png"):
            path.unlink()
        drawn.rmdir()
    with pytest.raises(ConfigError, match="no such folder"):
        tile_regions(project, tileset.tiling.tile_px)


def test_inpainting_wants_the_image_as_driver(tiny_run: Run, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    with pytest.raises(ConfigError, match=r"set drivers\.kind to image"):
        open_tiny(folder, settings, "synthesis.mode=inpaint")
    assert open_tiny(folder, settings, "synthesis.mode=inpaint", "drivers.kind=image").config.drivers.kind == "image"
