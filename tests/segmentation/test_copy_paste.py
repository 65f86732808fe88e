from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.rle import decode, encode
from defectory.segmentation.copy_paste import BLEND_PX, Cutout, cutouts_of, pasted, varied
from defectory.segmentation.data import SegmentationImage
from defectory.stages.parts.copy_paste import copy_paste_images

SIZE_HW = (90, 120)


def surface(level: float, *, seed: int = 0, noise: float = 4.0) -> NDArray[np.uint8]:
    values = np.random.default_rng(seed).normal(level, noise, (*SIZE_HW, 1)).repeat(3, 2)
    return np.clip(values.round(), 0, 255).astype(np.uint8)


def part(level: float, box: tuple[int, int, int, int], *, deep: float = 60, category_id: int = 1) -> SegmentationImage:
    """A surface with a defect that is darker by `deep`."""
    mask = np.zeros(SIZE_HW, bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    image = surface(level).astype(np.float32)
    image[mask] -= deep
    return SegmentationImage(
        id="p", image=image.clip(0, 255).astype(np.uint8), instances=((category_id, encode(mask)),), image_ids=(7,)
    )


def test_a_pasted_defect_differs_from_its_new_surroundings_as_it_did_from_the_old() -> None:
    (cutout,) = cutouts_of(part(180, (40, 30, 60, 45)))
    for level in (90, 140, 220):
        ground = surface(level, seed=3)
        image, label = pasted(ground, cutout, (20, 50), keep=np.zeros(SIZE_HW, bool))
        inner = cv2.erode(label.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert image[inner].mean() == pytest.approx(level - 60, abs=4)
        far = cv2.dilate(label.astype(np.uint8), np.ones((2 * BLEND_PX + 3,) * 2, np.uint8)) == 0
        assert np.array_equal(image[far], ground[far]), "nothing else changes"
        assert int(label.sum()) == 300


def test_holes_and_the_border_are_not_painted_over() -> None:
    (cutout,) = cutouts_of(part(180, (40, 30, 60, 45)))
    ground, hole = surface(200, seed=1), np.zeros(SIZE_HW, bool)
    hole[:, 60:70] = True
    image, label = pasted(ground, cutout, (20, 50), keep=hole)
    assert not (label & hole).any()
    assert np.array_equal(image[hole], ground[hole])
    _, cut = pasted(ground, cutout, (SIZE_HW[0] - 12, 50), keep=np.zeros(SIZE_HW, bool))
    assert 0 < cut.sum() < 300
    same, none = pasted(ground, cutout, (500, 500), keep=np.zeros(SIZE_HW, bool))
    assert not none.any()
    assert np.array_equal(same, ground)


def test_a_defect_that_the_border_cuts_is_not_cut_out() -> None:
    assert cutouts_of(part(180, (0, 30, 20, 45))) == []
    assert cutouts_of(part(180, (100, 30, 120, 45))) == []


def test_cutouts_are_zoomed_and_mirrored_with_their_masks() -> None:
    (cutout,) = cutouts_of(part(180, (40, 30, 60, 45)))
    areas: list[int] = []
    for seed in range(20):
        other = varied(cutout, np.random.default_rng(seed), flip=True)
        assert other.difference.shape[:2] == other.mask.shape
        inner = cv2.erode(other.mask.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        assert other.difference[inner].mean() == pytest.approx(-60, abs=4)
        areas.append(int(other.mask.sum()))
    assert min(areas) < 300 < max(areas)


def test_images_are_made_from_all_classes_and_name_what_they_show() -> None:
    real = [part(180, (40, 30, 60, 45)) for _ in range(5)] + [part(150, (20, 50, 50, 58), category_id=2)]
    free = [SegmentationImage(id=str(i), image=surface(190, seed=i), image_ids=(20 + i,)) for i in range(3)]
    made = copy_paste_images(real, free, count=30, flip=True, seed=1)
    assert len(made) == 30
    labels = [category_id for image in made for category_id, _ in image.instances]
    assert 0.25 < labels.count(2) / len(labels) < 0.75, "the rare class comes as often"
    for image in made:
        assert image.image.shape == (*SIZE_HW, 3)
        assert set(image.image_ids) <= {7, 20, 21, 22}
        assert 7 in image.image_ids
        for _, rle in image.instances:
            mask = decode(rle)
            assert image.image[mask].mean() < 165 < image.image[~mask].mean()
    again = copy_paste_images(real, free, count=30, flip=True, seed=1)
    assert [image.digest() for image in again] == [image.digest() for image in made]
    assert copy_paste_images(free, free, count=3, flip=True, seed=1) == []


def test_without_defect_free_images_defects_are_pasted_beside_those_that_are_there() -> None:
    real = [part(180, (40, 30, 60, 45)), part(180, (10, 10, 30, 20))]
    for image in copy_paste_images(real, [], count=8, flip=True, seed=2):
        masks = [decode(rle) for _, rle in image.instances]
        assert len(masks) >= 2
        assert sum(int(mask.sum()) for mask in masks) == int(np.any(masks, axis=0).sum()), "they do not overlap"


def test_a_cutout_knows_its_surroundings() -> None:
    (cutout,) = cutouts_of(part(180, (40, 30, 60, 45)))
    assert isinstance(cutout, Cutout)
    assert cutout.spread == pytest.approx(4.0, abs=1.0)
    assert cutout.difference[~cutout.mask].mean() == pytest.approx(0, abs=1)
