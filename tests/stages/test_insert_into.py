from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defectory.artifacts.split import Split
from defectory.errors import ConfigError, ImageError, OutputError
from defectory.events import StageEnded
from defectory.formats.coco import load_coco
from defectory.geometry import distance_to
from defectory.images.frames import load_frame, load_native
from defectory.images.load import load_rgb
from defectory.images.save import encode_png, save_png
from defectory.images.tiff import encode_tiff
from defectory.images.valuerange import ValueRange
from defectory.rle import decode
from defectory.runs.stage import Run
from defectory.runs.store import RunStore
from defectory.stages.all import run_all
from defectory.stages.parts.regions import tile_regions
from defectory.tools.insert import insert_into

Opened = Callable[..., Run]
TinyRun = tuple[Path, dict[str, Any], list[StageEnded]]


@pytest.fixture(autouse=True)
def network_that_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the condition network random weights: after six steps it draws no defect yet."""
    from defectory.condition import load

    def load_network(*given: Any) -> Any:
        network, generator = as_trained(*given), torch.Generator().manual_seed(0)
        for parameter in network.module.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        return network

    as_trained = load.load_network
    monkeypatch.setattr(load, "load_network", load_network)


@pytest.fixture(scope="module")
def project(tiny_run: TinyRun, open_tiny: Opened) -> Run:
    folder, settings, _ = tiny_run
    return open_tiny(folder, settings, "synthesis.insert_margin_px=4")


def frame(kind: str, size_hw: tuple[int, int], seed: int = 0) -> Any:
    """Return a frame of a kind: channels, then number type, then `12` for 12 bits of 16."""
    rng = np.random.default_rng(seed)
    channels = {"grey": 1, "la": 2, "rgb": 3, "rgba": 4}[kind.split(" ")[0]]
    levels = rng.integers(60, 200, (*size_hw, channels)).astype(np.float64)
    dtype = kind.split(" ")[1] if " " in kind else "u1"
    factor = (
        11.84
        if kind.endswith(" 12")
        else {"u1": 1, "u2": 257, "i2": 100, "u4": 2**24, "f4": 1 / 255, "f8": 1000}[dtype]
    )
    values = (levels * factor).astype(dtype)
    return values[..., 0] if channels == 1 else values


def inserted(project: Run, path: Path, out: Path, **changes: Any) -> list[tuple[Any, list[Any]]]:
    given: dict[str, Any] = {"count": 2, "class_name": None, "region_file": None, "seed": 0} | changes
    list(insert_into(project, path, out=out, **given))
    raw = load_coco(out / "annotations.json", image_root=out / "images")
    return [(load_native(image.path), [decode(i.rle) for i in image.instances]) for image in raw.images]


@pytest.mark.parametrize(
    ("kind", "suffix", "size_hw"),
    [
        ("grey", ".png", (71, 93)),
        ("rgb", ".png", (64, 88)),
        ("rgba", ".png", (64, 88)),
        ("la", ".png", (50, 70)),
        ("rgb", ".tif", (64, 88)),
        ("grey u2", ".png", (121, 67)),
        ("grey u2 12", ".png", (64, 88)),
        ("rgb u2", ".png", (64, 88)),
        ("rgba u2 12", ".png", (64, 88)),
        ("la u2", ".png", (40, 88)),
        ("grey u2", ".tif", (64, 88)),
        ("rgb u2", ".tif", (64, 88)),
        ("grey i2", ".tif", (64, 88)),
        ("grey u4", ".tif", (64, 88)),
        ("grey f4", ".tif", (64, 88)),
        ("rgb f4", ".tif", (64, 88)),
        ("grey f8", ".tif", (64, 88)),
    ],
)
def test_a_frame_keeps_size_depth_range_and_every_pixel_beyond_the_margin(
    project: Run, tmp_path: Path, kind: str, suffix: str, size_hw: tuple[int, int]
) -> None:
    pixels = frame(kind, size_hw)
    path = tmp_path / f"frame{suffix}"
    path.write_bytes(encode_png(pixels) if suffix == ".png" else encode_tiff(pixels))
    found = inserted(project, path, tmp_path / "out")
    assert len(found) == 2
    assert {file.suffix for file in (tmp_path / "out" / "images").iterdir()} == {suffix}
    native_px = max(size_hw) / project.store().tiles.tileset.tiling.tile_px
    # a deep frame in a project of 8 bit is read in the bit depth that holds its values
    white = load_frame(path).value_range
    for image, (label,) in found:
        assert (image.shape, image.dtype) == (pixels.shape, pixels.dtype)
        changed = (image != pixels).reshape(*size_hw, -1).any(axis=2)
        assert changed[label].any()
        assert not changed[distance_to(label) > (4 + 1) * native_px + 1].any()
        if kind.startswith(("la", "rgba")):
            np.testing.assert_array_equal(image[..., -1], pixels[..., -1])
        if white is not None:
            assert image.max() <= white.high
    assert not np.array_equal(found[0][0], found[1][0]), "each has a place, a mask and noise of its own"
    sheet = load_rgb(tmp_path / "out" / "sheet.jpg")
    assert 60 < np.median(sheet[30:200, 30:200]) < 200, "the sheet shows deep frames as they look"


def test_a_big_endian_tiff_stays_one(project: Run, tmp_path: Path) -> None:
    pixels = frame("grey u2", (64, 88))
    (tmp_path / "frame.tif").write_bytes(encode_tiff(pixels, big_endian=True))
    ((image, _),) = inserted(project, tmp_path / "frame.tif", tmp_path / "out", count=1)
    assert (image != pixels).any()
    assert next((tmp_path / "out" / "images").iterdir()).read_bytes()[:4] == b"MM\0*"


def test_changes_are_in_units_of_the_sets_range(project: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = project.store().data

    def with_range(high: float) -> Any:
        value_range = ValueRange(low=0, high=high)
        return replace(plain, dataset=plain.dataset.model_copy(update={"value_range": value_range}))

    levels = frame("grey", (64, 88))
    save_png(tmp_path / "eight.png", levels)
    save_png(tmp_path / "deep.png", levels.astype(np.uint16) * 9)
    save_png(tmp_path / "full.png", levels.astype(np.uint16) * 257)
    ((eight, _),) = inserted(project, tmp_path / "eight.png", tmp_path / "a", count=1)
    # the data set alone is another, not what was made from it
    monkeypatch.setattr(Split, "require_dataset", lambda *_args, **_names: None)
    monkeypatch.setattr(RunStore, "descriptors", project.store().descriptors)
    monkeypatch.setattr(RunStore, "data", with_range(255 * 9))
    ((deep, _),) = inserted(project, tmp_path / "deep.png", tmp_path / "b", count=1)
    ((again, _),) = inserted(project, tmp_path / "eight.png", tmp_path / "c", count=1)
    np.testing.assert_allclose(deep, eight.astype(float) * 9, atol=5)  # 8-bit values are rounded after the change
    np.testing.assert_array_equal(again, eight)
    events = list(
        insert_into(
            project, tmp_path / "full.png", out=tmp_path / "d", count=1, class_name=None, region_file=None, seed=0
        )
    )
    np.testing.assert_allclose(
        load_native(next((tmp_path / "d" / "images").iterdir())), eight.astype(float) * 257, atol=129
    )
    told = [event.summary for event in events if isinstance(event, StageEnded)]
    assert "do not match the data set's range (black 0, white 2295): read as black 0, white 65535" in told[0]


def test_a_turned_frame_comes_out_upright_with_a_remark(project: Run, tmp_path: Path) -> None:
    pixels = frame("rgb", (64, 88))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "frame.png", exif=exif)
    events = list(
        insert_into(
            project, tmp_path / "frame.png", out=tmp_path / "out", count=1, class_name=None, region_file=None, seed=0
        )
    )
    image = load_native(next((tmp_path / "out" / "images").iterdir()))
    assert (image == pixels[::-1, ::-1]).mean() > 0.5
    assert any("EXIF half-turn applied" in event.summary for event in events if isinstance(event, StageEnded))


@pytest.mark.parametrize(("mode", "kind"), [("P", "PNG"), ("1", "PNG"), ("CMYK", "TIFF")])
def test_frames_that_cannot_be_written_again_are_refused(project: Run, tmp_path: Path, mode: str, kind: str) -> None:
    Image.fromarray(frame("rgb", (64, 88))).convert(mode).save(tmp_path / "frame.bin", kind)
    with pytest.raises(ImageError, match="without changing its kind; save it as grey or RGB first"):
        inserted(project, tmp_path / "frame.bin", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_the_users_is_left_alone(project: Run, tmp_path: Path) -> None:
    save_png(tmp_path / "frames" / "frame.png", frame("rgb", (64, 88)))
    before = (tmp_path / "frames" / "frame.png").read_bytes()
    with pytest.raises(OutputError):
        inserted(project, tmp_path / "frames" / "frame.png", tmp_path / "frames")
    assert [path.name for path in (tmp_path / "frames").iterdir()] == ["frame.png"]
    assert (tmp_path / "frames" / "frame.png").read_bytes() == before


def test_the_same_seed_gives_the_same_images(project: Run, tmp_path: Path) -> None:
    save_png(tmp_path / "frame.png", frame("rgb", (64, 88)))
    first, again, other = (
        inserted(project, tmp_path / "frame.png", tmp_path / name, seed=seed, count=1)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert np.array_equal(first[0][0], again[0][0])
    assert not np.array_equal(first[0][0], other[0][0])


def test_a_defect_lies_in_the_region_that_was_drawn(project: Run, tmp_path: Path) -> None:
    save_png(tmp_path / "frame.png", frame("rgb", (64, 88)))
    region = np.zeros((64, 88), np.uint8)
    region[:, 50:] = 255
    save_png(tmp_path / "region.png", region)
    Image.fromarray(region).convert("RGB").save(tmp_path / "painted.png")
    for number, file in enumerate(("region.png", "painted.png")):
        out = tmp_path / f"out{number}"
        for _, (label,) in inserted(project, tmp_path / "frame.png", out, region_file=tmp_path / file, count=4):
            assert label[:, 50:].sum() > 0
            assert not label[:, :48].any()


def test_a_painted_mask_is_the_label_to_the_pixel(project: Run, tmp_path: Path) -> None:
    mask = np.zeros((121, 167), np.uint8)
    mask[40:47, 90:131] = 255
    for name in ("a", "b"):
        save_png(tmp_path / "frames" / f"{name}.png", frame("rgb", (121, 167)))
        save_png(tmp_path / "masks" / f"{name}.png", mask if name == "a" else mask[::-1])
    out, given = tmp_path / "out", {"class_name": "gouge", "count": 2}
    painted = tmp_path / "masks" / "a.png"
    for image, (label,) in inserted(project, tmp_path / "frames" / "a.png", out, mask_file=painted, **given):
        np.testing.assert_array_equal(label, mask > 0)
        assert (image != frame("rgb", (121, 167))).any(axis=2)[label].any()
    with pytest.raises(ConfigError, match=r"option --mask: is one file, and there are several images"):
        inserted(project, tmp_path / "frames", tmp_path / "two", mask_file=painted, **given)
    found = inserted(project, tmp_path / "frames", tmp_path / "two", mask_file=tmp_path / "masks", **given)
    for (_, (label,)), wanted in zip(found, (mask, mask, mask[::-1], mask[::-1]), strict=True):
        np.testing.assert_array_equal(label, wanted > 0)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(ConfigError, match=r"masks holds no file named as b\.png; add one"):
        inserted(project, tmp_path / "frames", tmp_path / "three", mask_file=tmp_path / "masks", **given)
    with pytest.raises(ConfigError, match=r"does not say which class it is of; give --class, one of hairline, "):
        inserted(project, tmp_path / "frames" / "a.png", tmp_path / "three", mask_file=painted)
    assert not (tmp_path / "three").exists()


def test_class_numbers_in_a_mask_are_a_defect_each(project: Run, tmp_path: Path) -> None:
    mask = np.zeros((64, 88), np.uint8)
    mask[10:20, 12:30], mask[40:50, 50:80] = 2, 4
    save_png(tmp_path / "frame.png", frame("rgb", (64, 88)))
    save_png(tmp_path / "mask.png", mask)
    inserted(project, tmp_path / "frame.png", tmp_path / "out", mask_file=tmp_path / "mask.png", count=1)
    found = json.loads((tmp_path / "out" / "annotations.json").read_bytes())["annotations"]
    assert [annotation["category_id"] for annotation in found] == [2, 4]
    (image,) = load_coco(tmp_path / "out" / "annotations.json", image_root=tmp_path / "out" / "images").images
    for value, instance in zip((2, 4), image.instances, strict=True):
        np.testing.assert_array_equal(decode(instance.rle), mask == value)
    save_png(tmp_path / "mask.png", np.where(mask == 4, np.uint8(6), mask))
    with pytest.raises(ConfigError, match="holds class 6 of 5"):
        inserted(project, tmp_path / "frame.png", tmp_path / "out", mask_file=tmp_path / "mask.png", count=1)


def test_bad_input_is_told_and_nothing_is_written(project: Run, tmp_path: Path) -> None:
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
    record = project.store().data.dataset.image(project.store().split.test[0])
    with pytest.raises(ImageError, match="is an image of validation or test"):
        inserted(project, (project.folder / "data" / "images" / record.file_name), out)
    assert not out.exists()
    assert not list(tmp_path.glob(".out*"))


def test_a_run_that_inserts_exports_pool_images_with_labels_in_their_frame(
    tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path
) -> None:
    folder, settings, _ = tiny_run
    shutil.copytree(folder, tmp_path / "copy")
    project = open_tiny(
        tmp_path / "copy", settings, "synthesis.mode=insert", "synthesis.insert_margin_px=4", "synthesis.num_images=4"
    )
    for _ in run_all(project, only=["plan", "calibrate", "synthesize", "curate", "export"]):
        pass
    records = [
        json.loads(line) for line in (project.folder / "synthetic" / "provenance.jsonl").read_text().splitlines()
    ]
    raw = load_coco(
        (project.folder / "synthetic" / "annotations.json"), image_root=(project.folder / "synthetic" / "images")
    )
    assert len(raw.images) == 4
    for image, record in zip(raw.images, records, strict=True):
        original = load_native(project.folder / "data" / "images" / record["pool"]["file_name"])
        pixels = load_native(image.path)
        assert pixels.shape == original.shape
        label = np.any([decode(i.rle) for i in image.instances], axis=0)
        changed = (pixels != original).any(axis=2)
        assert changed.any()
        scale = project.store().tiles.tileset.tiling.scale
        assert not changed[distance_to(label) > (4 + 1) / scale + 1].any()


def test_drawn_regions_of_pool_images_follow_their_tiles(tiny_run: TinyRun, open_tiny: Opened, tmp_path: Path) -> None:
    folder, settings, _ = tiny_run
    drawn = folder / "regions-of-a-test"
    drawn.mkdir(exist_ok=True)
    project = open_tiny(folder, settings, f'masks.regions="{drawn.name}"')
    tileset = project.store().tiles.tileset
    tile = tileset.of("pool")[0]
    record = project.store().data.dataset.image(tile.image_id)
    region = np.zeros(record.size_hw, np.uint8)
    region[:, : record.size_hw[1] // 2] = 255
    try:
        with pytest.raises(ConfigError, match="holds no image file"):
            tile_regions(project.store(), project.config)
        save_png(drawn / f"{Path(record.file_name).stem}.png", region)
        region_of = tile_regions(project.store(), project.config)
        shown = region_of(tile, None)
        assert shown is not None
        half = round(tile.valid_hw[1] / 2)
        assert shown[: tile.valid_hw[0], : half - 1].all()
        assert not shown[:, half + 1 :].any()
        turned = region_of(tile, 3)
        assert turned is not None
        assert not np.array_equal(turned, shown)
        assert region_of(tileset.of("pool")[-1], None) is None
        save_png(drawn / ".ipynb_checkpoints" / "nobody.png", region)
        assert region_of(tile, None) is not None
        shutil.rmtree(drawn / ".ipynb_checkpoints")
        save_png(drawn / "nobody.png", region)
        with pytest.raises(ConfigError, match="no image is named so"):
            tile_regions(project.store(), project.config)
        (drawn / "nobody.png").unlink()
        Image.new("L", (5, 5), 255).save(drawn / f"{Path(record.file_name).stem}.png")
        with pytest.raises(ImageError, match="is 5x5, its image"):
            tile_regions(project.store(), project.config)
    finally:
        for path in drawn.glob("*.png"):
            path.unlink()
        drawn.rmdir()
    with pytest.raises(ConfigError, match="no such folder"):
        tile_regions(project.store(), project.config)


def test_inpainting_wants_the_image_as_driver(tiny_run: TinyRun, open_tiny: Opened) -> None:
    folder, settings, _ = tiny_run
    with pytest.raises(ConfigError, match=r"set drivers\.kind to image"):
        open_tiny(folder, settings, "synthesis.mode=inpaint")
    assert open_tiny(folder, settings, "synthesis.mode=inpaint", "drivers.kind=image").config.drivers.kind == "image"
