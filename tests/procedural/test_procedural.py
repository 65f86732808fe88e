from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectory.procedural import borescope
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.world import lightness_word, render, render_pair
from defectory.run import digest_folder

SIZE_HW = (72, 96)


def test_an_image_is_a_function_of_its_seed() -> None:
    first, again, other = (render(seed, SIZE_HW) for seed in (4, 4, 5))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.caption == again.caption
    assert (first.image != other.image).any()
    assert first.image.shape == (*SIZE_HW, 3)


@pytest.mark.parametrize("seed", range(12))
def test_masks_are_exact(seed: int) -> None:
    """With and without defects, the images differ inside the masks and, but for blur at the rim, nowhere else."""
    shown, hidden = next(pair for pair in (render_pair(seed + 100 * i, SIZE_HW) for i in range(20)) if pair[0].instances)
    label = np.any([mask for _, mask in shown.instances], axis=0)
    difference = np.abs(shown.image.astype(int) - hidden.image).max(axis=2)
    rim = cv2.dilate(label.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert np.median(difference[label]) > 12
    assert np.mean(difference[~rim] > 12) < 0.02
    assert (shown.class_map > 0).sum() == label.sum()


def test_captions_tell_lightness_and_defects() -> None:
    for seed in range(20):
        sample = render(seed, SIZE_HW)
        assert lightness_word(float(sample.image.mean())) in sample.caption
        for word in sample.defect_words:
            assert word in sample.caption
            assert word in DEFECT_WORDS
        assert ("without defect" in sample.caption) == (not sample.defect_words)


def test_wanted_or_unwanted_defects_are_obeyed() -> None:
    assert all(not render(seed, SIZE_HW, with_defect=False).instances for seed in range(8))
    assert sum(bool(render(seed, SIZE_HW, with_defect=True).instances) for seed in range(8)) >= 7


def test_the_world_has_colour() -> None:
    chroma = [float((i.max(axis=2).astype(int) - i.min(axis=2)).mean()) for i in (render(seed, SIZE_HW).image for seed in range(30))]
    assert np.quantile(chroma, 0.75) > 15
    assert np.quantile(chroma, 0.1) < 8


def test_borescope_frames_are_dark_round_vignettes_with_exact_masks() -> None:
    for seed in range(6):
        shown, hidden = borescope.render_pair(seed, scene_seed=seed, size_hw=(128, 160))
        corners = [shown.image[:6, :6], shown.image[:6, -6:], shown.image[-6:, :6], shown.image[-6:, -6:]]
        assert max(corner.mean() for corner in corners) < 30 < shown.image[50:80, 60:100].mean()
        label = np.any([mask for _, mask in shown.instances], axis=0)
        difference = np.abs(shown.image.astype(int) - hidden.image).max(axis=2)
        rim = cv2.dilate(label.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
        assert np.median(difference[label]) > 10 > np.quantile(difference[~rim], 0.99)


def test_the_demo_data_set_is_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        borescope.write_dataset(tmp_path / name, seed=seed, num_labelled=6, num_defect_free=5, size_hw=(64, 80))
    assert digest_folder(tmp_path / "a") == digest_folder(tmp_path / "b") != digest_folder(tmp_path / "c")
    coco = json.loads((tmp_path / "a" / "annotations.json").read_text())
    assert len(coco["images"]) == 11
    assert {c["name"] for c in coco["categories"]} == set(borescope.CLASSES)
    labelled = {a["image_id"] for a in coco["annotations"]}
    assert len(labelled) <= 6
    assert all(image["group"] for image in coco["images"])
