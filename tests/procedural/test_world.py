from __future__ import annotations

from collections import Counter

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectory.procedural.camera import draw_light, shade_relief
from defectory.procedural.defects import DEFECT_WORDS
from defectory.procedural.materials import MATERIALS
from defectory.procedural.noise import grain, streaks, value_noise
from defectory.procedural.parts import PARTS
from defectory.procedural.world import Sample, render, render_pair
from defectory.tones import tone_words

SIZE_HW = (72, 104)
SEEDS = range(60)


def near(mask: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * px + 1, 2 * px + 1), np.uint8)) > 0


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Sample, Sample]]:
    return [render_pair(seed, SIZE_HW) for seed in SEEDS]


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [render(seed, SIZE_HW) for seed in SEEDS]


def test_an_image_is_a_function_of_its_seed_and_size() -> None:
    for seed in (0, 3_000_000_001):
        first, second = render(seed, SIZE_HW), render(seed, SIZE_HW)
        assert first.image.tobytes() == second.image.tobytes()
        assert first.class_map.tobytes() == second.class_map.tobytes()
        assert first.caption == second.caption
    assert render(0, SIZE_HW).image.tobytes() != render(1, SIZE_HW).image.tobytes()


def test_rendering_leaves_the_global_generators_alone() -> None:
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = render(5, SIZE_HW)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.seed(4)  # noqa: NPY002
    assert render(5, SIZE_HW).image.tobytes() == first.image.tobytes()


def test_images_are_whole_and_never_blank(samples: list[Sample]) -> None:
    for sample in samples:
        assert (sample.image.shape, sample.image.dtype) == ((*SIZE_HW, 3), np.uint8)
        assert sample.image.std() > 1
    means = [sample.image.mean() for sample in samples]
    assert min(means) < 60
    assert max(means) > 170


def test_masks_class_map_words_and_caption_say_the_same(samples: list[Sample]) -> None:
    with_defect = [s for s in samples if s.instances]
    assert 0.4 < len(with_defect) / len(samples) < 0.9
    for sample in samples:
        assert tuple(word for word, _ in sample.instances) == sample.defect_words
        union = np.zeros(SIZE_HW, bool)
        for word, mask in sample.instances:
            assert mask.any()
            assert not (mask & union).any(), "instances do not overlap"
            assert (sample.class_map[mask] == DEFECT_WORDS.index(word) + 1).all()
            assert f"a {word}" in sample.caption
            union |= mask
        assert np.array_equal(sample.class_map > 0, union)
        assert sample.material in sample.caption
        assert sample.caption.endswith("without defect") != bool(sample.instances)
        assert sample.tone == tone_words(sample.image, without=union)
        assert f"a {sample.tone} " in sample.caption


def test_with_and_without_defect_can_be_asked_for() -> None:
    assert all(not render(seed, SIZE_HW, with_defect=False).instances for seed in range(20))
    asked = [bool(render(seed, SIZE_HW, with_defect=True).instances) for seed in range(20)]
    assert sum(asked) >= 18, "a scene of little surface may have no room"


def test_a_pair_differs_in_and_beside_its_masks_alone(pairs: list[tuple[Sample, Sample]]) -> None:
    checked = 0
    for shown, hidden in pairs:
        assert hidden.instances == ()
        assert (hidden.material, hidden.part) == (shown.material, shown.part)
        if not shown.instances:
            continue
        difference = np.abs(shown.image.astype(int) - hidden.image).max(axis=2)
        union = np.any([mask for _, mask in shown.instances], axis=0)
        far = ~near(union, 10)
        if (difference[far] > 0).mean() > 0.02:
            # lossy compression spreads a change over its blocks, faintly
            assert difference[far].mean() < 3
        else:
            assert difference[far].max(initial=0) < 70
        if far.any():
            assert np.mean(difference[union]) > 4 * np.mean(difference[far])
        checked += 1
    assert checked > 50


def test_every_defect_of_a_pair_is_visible(pairs: list[tuple[Sample, Sample]]) -> None:
    visible = [
        np.abs(shown.image.astype(int) - hidden.image).max(axis=2)[mask].mean()
        for shown, hidden in pairs
        for _, mask in shown.instances
    ]
    assert np.mean(np.array(visible) > 12) > 0.95


def test_all_materials_parts_and_defects_occur() -> None:
    seen: Counter[str] = Counter()
    for seed in range(400):
        sample = render(seed, (40, 56))
        seen.update([sample.material, sample.part, *sample.defect_words])
    assert set(seen) >= set(MATERIALS) | set(PARTS)
    assert len(set(DEFECT_WORDS) & set(seen)) >= 8


def test_noise_fields_have_the_range_they_name() -> None:
    rng = np.random.default_rng(0)
    value = value_noise(rng, SIZE_HW, 12, 3)
    assert (value.shape, float(value.min()), float(value.max())) == (SIZE_HW, 0.0, pytest.approx(1.0))
    for field in (grain(rng, SIZE_HW, 1.5), streaks(rng, SIZE_HW, 15, 30), streaks(rng, SIZE_HW, 15, 0)):
        assert field.shape == SIZE_HW
        assert (field.dtype, float(field.mean()), float(field.std())) == (
            np.float32,
            pytest.approx(0, abs=1e-3),
            pytest.approx(1, abs=1e-3),
        )


@pytest.mark.parametrize("length_px", [3.0, 15.0, 60.0])
def test_streaks_are_noise_blurred_by_their_length_and_thickness(length_px: float) -> None:
    side = int(np.ceil(np.hypot(*SIZE_HW))) + 2
    noise = np.random.default_rng(3).standard_normal((side, side), dtype=np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=length_px, sigmaY=0.9)
    top, left = (side - SIZE_HW[0]) // 2, (side - SIZE_HW[1]) // 2
    expected = blurred[top : top + SIZE_HW[0], left : left + SIZE_HW[1]]
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(streaks(np.random.default_rng(3), SIZE_HW, length_px, 0.0, 0.9), expected, atol=2e-3)


@pytest.mark.parametrize("part", [np.s_[0:9, 0:20], np.s_[30:72, 60:104], np.s_[11:12, 40:41], np.s_[0:72, 0:104]])
def test_relief_of_a_part_is_a_part_of_the_relief(part: tuple[slice, slice]) -> None:
    rng = np.random.default_rng(0)
    light, height = draw_light(rng, SIZE_HW), grain(rng, SIZE_HW, 1.0)
    np.testing.assert_array_equal(shade_relief(height, light, part=part), shade_relief(height, light)[part])


def test_streaks_run_along_their_angle() -> None:
    flat, steep = (streaks(np.random.default_rng(0), SIZE_HW, 15, angle) for angle in (0.0, 90.0))
    assert np.abs(np.diff(flat, axis=1)).mean() < 0.5 * np.abs(np.diff(flat, axis=0)).mean()
    assert np.abs(np.diff(steep, axis=0)).mean() < 0.5 * np.abs(np.diff(steep, axis=1)).mean()


def test_the_world_has_colour_and_grey() -> None:
    images = [render(seed, (72, 96)).image for seed in range(30)]
    chroma = [float((image.max(axis=2).astype(int) - image.min(axis=2)).mean()) for image in images]
    assert np.quantile(chroma, 0.75) > 15
    assert np.quantile(chroma, 0.1) < 8
