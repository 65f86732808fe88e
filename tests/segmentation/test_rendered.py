from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.masks.config import MaskConfig
from defectory.procedural.noise import grain
from defectory.rle import decode, encode
from defectory.segmentation.copy_paste import RING_PX, Cutout
from defectory.segmentation.data import SegmentationImage
from defectory.segmentation.rendered import look_of, rendered
from defectory.stages.parts.copy_paste import procedural_images

SIZE_HW = (70, 110)


def cutout(
    size_hw: tuple[int, int], *, levels: Sequence[float], roughness: float = 0.0, grain_px: float = 0.0
) -> Cutout:
    """A rectangular defect whose grey levels go from the first of `levels` at its outline to the last in its middle."""
    mask = np.pad(np.ones(size_hw, bool), RING_PX)
    y, x = np.mgrid[: size_hw[0], : size_hw[1]]
    depth = np.minimum(np.minimum(y, size_hw[0] - 1 - y), np.minimum(x, size_hw[1] - 1 - x)).astype(np.float32)
    tone = np.interp(depth / depth.max(), np.linspace(0, 1, len(levels)), levels).astype(np.float32)
    difference = np.zeros((*mask.shape, 3), np.float32)
    inside = (slice(RING_PX, -RING_PX), slice(RING_PX, -RING_PX))
    difference[inside] = tone[..., None] * np.float32([1.0, 0.5, 0.0])
    rng = np.random.default_rng(5)
    difference += roughness * grain(rng, (mask.shape[0], mask.shape[1]), grain_px)[..., None].astype(np.float32)
    return Cutout(category_id=2, difference=difference, mask=mask, spread=4.0, image_ids=(7,))


def test_the_contrast_is_measured_from_the_outline_to_the_middle() -> None:
    look = look_of(cutout((41, 61), levels=(20, -80)))
    assert look.profile[0, 0] == pytest.approx(20, abs=10)
    assert look.profile[-1, 0] == pytest.approx(-80, abs=10)
    assert np.all(np.diff(look.profile[:, 0]) < 0)
    assert look.profile[:, 1] == pytest.approx(look.profile[:, 0] / 2, abs=0.1), "of each channel"
    assert look.profile[:, 2] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("grain_px", [0.0, 0.7, 1.4])
def test_roughness_and_coarseness_are_measured(grain_px: float) -> None:
    of = cutout((60, 90), levels=(-50, -50), roughness=9.0, grain_px=grain_px)
    smooth_around = of.difference * of.mask[..., None]
    look = look_of(replace(of, difference=smooth_around))
    assert look.roughness == pytest.approx(9, rel=0.2)
    assert look.grain_px == pytest.approx(grain_px, abs=0.35)
    assert look.patchiness < 3
    assert look_of(of).roughness < 3, "surroundings that are as rough show through"


def test_patches_are_measured_apart_from_grain() -> None:
    look = look_of(cutout((60, 90), levels=(-50, -50), roughness=9.0, grain_px=6.0))
    assert look.patchiness == pytest.approx(7, abs=2)
    assert look.roughness < 3


def test_a_rendered_defect_has_the_look_but_not_the_pixels() -> None:
    rough = cutout((41, 61), levels=(-20, -70), roughness=6.0, grain_px=1.0)
    source = replace(rough, difference=rough.difference * rough.mask[..., None])
    look = look_of(source)
    made = [rendered(look, np.ones((41, 61), bool), np.random.default_rng(seed), image_ids=(9,)) for seed in range(24)]
    for of in made:
        assert np.array_equal(of.mask, source.mask)
        assert of.category_id == 2
        assert of.image_ids == (7, 9)
        assert not np.allclose(of.difference, source.difference, atol=2)
    again = [look_of(of) for of in made]
    assert np.mean([of.profile[:, 0] for of in again], axis=0) == pytest.approx(look.profile[:, 0], rel=0.25)
    strengths = [of.profile[:, 0].mean() for of in again]
    assert np.std(strengths) > 3, "some are stronger than others"


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 9), (3, 2)])
def test_the_smallest_defects_can_be_rendered(size_hw: tuple[int, int]) -> None:
    mask = np.pad(np.ones(size_hw, bool), RING_PX)
    tiny = Cutout(
        category_id=1,
        difference=np.where(mask[..., None], -40, 0).repeat(3, 2).astype(np.float32),
        mask=mask,
        spread=2.0,
        image_ids=(1,),
    )
    made = rendered(look_of(tiny), np.ones(size_hw, bool), np.random.default_rng(0), image_ids=())
    assert np.isfinite(made.difference).all()
    assert made.difference[made.mask].mean() < -15


def surface(level: float, seed: int) -> NDArray[np.uint8]:
    values = np.random.default_rng(seed).normal(level, 4, (*SIZE_HW, 1)).repeat(3, 2)
    return np.clip(values.round(), 0, 255).astype(np.uint8)


def test_images_with_procedural_defects_show_them_where_their_labels_say() -> None:
    mask = np.zeros(SIZE_HW, bool)
    mask[30:40, 40:70] = True
    image = surface(180, 0).astype(np.float32)
    image[mask] -= 70
    pixels = image.clip(0, 255).astype(np.uint8)
    real = [SegmentationImage(id="r", image=pixels, instances=((3, encode(mask)),), image_ids=(7,))]
    free = [SegmentationImage(id="f", image=surface(180, 1), image_ids=(8,))]
    masks = MaskConfig()
    made = procedural_images(real, free, count=6, masks=masks, seed=0)
    assert len(made) == 6
    for of in made:
        assert of.image_ids == (7, 8)
        ((category_id, rle),) = of.instances
        label = decode(rle)
        assert category_id == 3
        assert of.image[label].mean() < of.image[~label].mean() - 25
    shapes = {decode(of.instances[0][1]).sum() for of in made}
    assert len(shapes) > 1, "shapes are perturbed"
    assert [of.digest() for of in procedural_images(real, free, count=6, masks=masks, seed=0)] == [
        of.digest() for of in made
    ]
    assert [of.digest() for of in procedural_images(real, free, count=3, masks=masks, seed=0)] == [
        of.digest() for of in made[:3]
    ], "one seed per image"
    assert procedural_images([free[0]], free, count=3, masks=masks, seed=0) == []
