from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pycocotools import mask as oracle
from scipy.ndimage import gaussian_filter

from defectory.errors import ImageError, OutputError
from defectory.files import atomic_path, digest_folder, write_json
from defectory.folders.swap import atomic_folder
from defectory.geometry import Augmentation, Border, border_of, width_px
from defectory.images.load import load_class_mask, load_image, load_rgb
from defectory.images.save import save_png
from defectory.rle import box_xyxy, decode, encode

masks = arrays(np.bool_, st.tuples(st.integers(1, 13), st.integers(1, 17)))


@settings(max_examples=60, deadline=None)
@given(masks)
def test_rle_is_what_pycocotools_writes_and_reads_back(mask: np.ndarray) -> None:
    rle = encode(mask)
    assert rle.counts.encode() == oracle.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]
    np.testing.assert_array_equal(decode(rle), mask)


@settings(max_examples=40, deadline=None)
@given(masks)
def test_box_is_tight_with_ends_exclusive(mask: np.ndarray) -> None:
    x0, y0, x1, y1 = box_xyxy(mask)
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    if mask.any():
        assert all(side.any() for side in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]))


def test_a_failed_write_leaves_the_earlier_file_and_nothing_else(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"kept": True})
    before = digest_folder(tmp_path)
    with pytest.raises(OutputError, match="cannot be written"), atomic_path(tmp_path / "a.json") as temporary:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(ValueError, match="stop"), atomic_folder(tmp_path / "folder", kind="dataset") as folder:
        (folder / "x").write_text("half")
        raise ValueError("stop")
    assert digest_folder(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_folder_digest_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = digest_folder(tmp_path)
    (tmp_path / "a").write_text("2")
    second = digest_folder(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert len({first, second, digest_folder(tmp_path)}) == 3


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[0, 0] = 255
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    loaded = load_image(tmp_path / "a.png")
    assert loaded.rgb.shape == (30, 20, 3)
    assert loaded.rgb[0, -1].tolist() == [255, 255, 255]
    assert "EXIF" in loaded.conversion


@pytest.mark.parametrize(
    ("make", "expected", "said"),
    [
        (lambda: Image.fromarray(np.full((4, 6), 257 * 100, np.uint16)), (100, 100, 100), "16 bit"),
        (lambda: Image.fromarray(np.full((4, 6), 70, np.uint8)), (70, 70, 70), "grey"),
        (lambda: Image.new("RGBA", (6, 4), (200, 100, 50, 0)), (200, 100, 50), "alpha"),
        (lambda: Image.new("RGBA", (6, 4), (200, 100, 50, 255)), (200, 100, 50), "alpha"),
        (lambda: Image.new("RGB", (6, 4), (9, 8, 7)), (9, 8, 7), "none"),
        (lambda: Image.new("RGB", (6, 4), (255, 0, 0)).convert("P"), (255, 0, 0), "palette"),
    ],
)
def test_each_kind_of_image_loads_with_its_conversion_stated(make, expected, said, tmp_path: Path) -> None:
    make().save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert loaded.rgb.shape == (4, 6, 3)
    assert loaded.rgb[1, 2].tolist() == list(expected)
    assert said in loaded.conversion


def test_palette_masks_give_indices_and_rgb_masks_are_refused(tmp_path: Path) -> None:
    indices = np.zeros((5, 7), np.uint8)
    indices[2, 3] = 4
    image = Image.fromarray(indices).convert("P")
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(load_class_mask(tmp_path / "m.png"), indices)
    save_png(tmp_path / "rgb.png", np.zeros((5, 7, 3), np.uint8))
    with pytest.raises(ImageError, match="mode RGB"):
        load_class_mask(tmp_path / "rgb.png")


def test_png_round_trip_is_exact_and_bytes_are_the_same(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (9, 14, 3)).astype(np.uint8)
    save_png(tmp_path / "a.png", image)
    save_png(tmp_path / "b.png", image)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("strength", ["train", "offline"])
def test_image_and_mask_move_together_inside_the_valid_window(strength) -> None:
    size, valid = (64, 80), (50, 80)
    mask = np.zeros(size, bool)
    mask[15:35, 20:50] = True
    image = np.zeros((*size, 3), np.uint8)
    image[mask] = 255
    image[50:] = 77
    for seed in range(10):
        augmentation = Augmentation.sample(seed, valid, strength=strength)
        moved_image, moved_mask = augmentation.apply_image(image), augmentation.apply_mask(mask)
        seen = moved_image[:50].mean(axis=2) > 127
        assert (seen & moved_mask[:50]).sum() / (seen | moved_mask[:50]).sum() > 0.97
        assert (moved_image[50:] == 77).all()
        assert not moved_mask[50:].any()
        again = Augmentation.sample(seed, valid, strength=strength).apply_image(image)
        np.testing.assert_array_equal(again, moved_image)


@pytest.mark.parametrize("strength", ["train", "offline"])
def test_augmentation_keeps_the_grain_of_a_surface(strength) -> None:
    white = np.random.default_rng(0).standard_normal((96, 120))
    grain = gaussian_filter(white, 0.8)
    image = np.round(128 + 30 * grain / grain.std()).clip(0, 255).astype(np.uint8)[..., None].repeat(3, axis=2)
    for seed in range(10):
        geometric = Augmentation.sample(seed, (96, 120), strength=strength).geometric
        # zoomed in, the same grain is coarser: neighbours differ less by the zoom
        zoom = np.sqrt(abs(np.linalg.det(np.array(geometric.matrix)[:, :2])))
        moved = geometric.apply_image(image)[10:-10, 10:-10, 0].astype(float)
        assert moved.std() == pytest.approx(30, rel=0.05)
        assert np.abs(np.diff(moved)).mean() == pytest.approx(
            np.abs(np.diff(image[..., 0].astype(float))).mean() * zoom, rel=0.08
        )


def test_a_round_view_gets_no_second_one_beside_it() -> None:
    ys, xs = np.mgrid[0:60, 0:84]
    view = np.where((np.hypot(ys - 30, xs - 42) < 36)[..., None], 130, 5).astype(np.uint8).repeat(3, axis=2)
    surface = np.random.default_rng(0).integers(60, 200, (60, 84, 3)).astype(np.uint8)
    assert (border_of(view, (60, 84)), border_of(surface, (60, 84))) == ("replicate", "reflect")
    padded = np.zeros((84, 84, 3), np.uint8)
    padded[:60] = surface
    assert border_of(padded, (60, 84)) == "reflect"

    def false_share(border: Border) -> float:
        """Bright pixels where the view, seen whole, has none."""
        shares: list[float] = []
        for seed in range(40):
            augmentation = Augmentation.sample(seed, (60, 84), strength="offline", border=border)
            x, y = np.array(augmentation.matrix) @ np.stack([xs.ravel(), ys.ravel(), np.ones(xs.size)])
            truth = np.hypot(y - 30, x - 42).reshape(60, 84) < 38
            shares.append(float(((augmentation.apply_image(view).mean(axis=2) > 60) & ~truth).mean()))
        return float(np.mean(shares))

    assert false_share("replicate") < 0.5 * false_share("reflect")


def test_augmentation_keeps_the_tones_of_a_vignetted_frame() -> None:
    ys, xs = np.mgrid[0:60, 0:84]
    inside = np.hypot((ys - 30) / 28, (xs - 42) / 40) < 1
    image = np.where(inside[..., None], 130, 5).astype(np.uint8).repeat(3, axis=2)
    moved = [Augmentation.sample(seed, (60, 84), strength="offline").apply_image(image) for seed in range(40)]
    np.testing.assert_allclose(np.mean([m.mean() for m in moved]), image.mean(), rtol=0.08)
    np.testing.assert_allclose(np.mean([m.std() for m in moved]), image.std(), rtol=0.08)


def test_width_is_that_of_the_thickest_part_in_any_direction() -> None:
    slanted = np.zeros((96, 128), np.uint8)
    cv2.line(slanted, (10, 10), (100, 80), 1, 3)
    assert width_px(slanted > 0) == pytest.approx(slanted.sum() / np.hypot(90, 70), abs=0.3), "area by length"
    disc = np.zeros((96, 128), np.uint8)
    cv2.circle(disc, (60, 50), 10, 1, -1)
    assert width_px(disc > 0) == pytest.approx(20, abs=1.5)
    assert width_px(np.zeros((96, 128), bool)) == 0.0
