from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import linalg
from scipy.stats import wasserstein_distance
from sklearn.metrics import mutual_info_score

from defectory.engine.features.neighbourhoods import density_and_coverage
from defectory.evaluation.config import EvaluationConfig
from defectory.evaluation.image_metrics import (
    fid,
    kid,
    kid_interval,
    l2_distance,
    mutual_information_nats,
    score_diversity,
    score_image_sets,
    tones,
)


def features(seed: int, count: int, *, dimension: int = 6, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, dimension)) + shift


def test_kid_is_the_unbiased_sum_over_pairs() -> None:
    first, second = features(0, 5), features(1, 7, shift=0.5)

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 6 + 1) ** 3)

    xx = [k(first[i], first[j]) for i in range(5) for j in range(5) if i != j]
    yy = [k(second[i], second[j]) for i in range(7) for j in range(7) if i != j]
    xy = [k(a, b) for a in first for b in second]
    assert kid(first, second) == pytest.approx(np.mean(xx) + np.mean(yy) - 2 * np.mean(xy))


def test_kid_is_torchmetrics_polynomial_mmd() -> None:
    from torchmetrics.image.kid import poly_mmd

    first, second = features(0, 40), features(1, 40, shift=0.3)
    expected = poly_mmd(torch.from_numpy(first), torch.from_numpy(second), degree=3, gamma=None, coef=1.0)
    assert kid(first, second) == pytest.approx(float(expected), abs=1e-9)


def test_kid_is_near_zero_for_one_distribution_and_grows_with_distance() -> None:
    near, same = kid(features(0, 300), features(1, 300)), kid(features(0, 300), features(2, 300))
    far, farther = (kid(features(0, 300), features(1, 300, shift=shift)) for shift in (0.5, 1.0))
    assert abs(near) < 0.05
    assert abs(same) < 0.05
    assert 0.1 < far < farther


def test_the_interval_is_seeded_and_holds_kid() -> None:
    first, second = features(0, 60), features(1, 80, shift=0.5)
    low, high = kid_interval(first, second, num_samples=100, seed=3)
    assert low < kid(first, second) < high
    assert kid_interval(first, second, num_samples=100, seed=3) == (low, high)
    assert kid_interval(first, second, num_samples=100, seed=4) != (low, high)


def test_fid_is_the_closed_form() -> None:
    first, second = features(0, 50), features(1, 70, shift=0.4) * 1.5
    mean = first.mean(axis=0) - second.mean(axis=0)
    a, b = np.cov(first.T), np.cov(second.T)
    expected = mean @ mean + np.trace(a + b - 2 * np.real(linalg.sqrtm(a @ b)))
    assert fid(first, second) == pytest.approx(expected, rel=1e-6)
    assert fid(first, first) == pytest.approx(0.0, abs=1e-6)


def test_fid_is_stable_where_there_are_fewer_images_than_features() -> None:
    first, second = features(0, 5, dimension=40), features(1, 6, dimension=40)
    assert 0.0 <= fid(first, first) < 1e-4
    assert fid(first, second) == pytest.approx(fid(second, first), rel=1e-6)
    shifted = first + 2.0
    assert fid(first, shifted) == pytest.approx(4.0 * 40, rel=1e-6)


def test_tones_are_mean_and_deviation_of_grey() -> None:
    image = np.zeros((4, 6, 3), np.uint8)
    image[:, :3] = (30, 60, 90)
    means, deviations = tones([image])
    assert (float(means[0]), float(deviations[0])) == (30.0, 30.0)


def test_scores_of_sets_carry_floors_and_wasserstein_is_scipys() -> None:
    rng = np.random.default_rng(0)

    def images(count: int, level: int) -> list[np.ndarray]:
        return [np.clip(rng.normal(level, 10 + 3 * i, (12, 20, 3)), 0, 255).astype(np.uint8) for i in range(count)]

    made, train, test = images(5, 150), images(6, 104), images(7, 100)
    sets = features(0, 5, shift=1.0), features(1, 6), features(2, 7)
    scores = score_image_sets(
        synthetic=made,
        real_train=train,
        real_test=test,
        features=sets,
        test_files=["a", "b", "b", "c", "d", "d", "e"],
        encoder_name="embedded-v1",
        config=EvaluationConfig(bootstrap_samples=20),
        seed=0,
    )
    assert scores.encoder == "embedded-v1"
    assert (scores.kid, scores.kid_floor) == (kid(sets[0], sets[2]), kid(sets[1], sets[2]))
    low, high = scores.kid_floor_interval
    assert low < high
    gaps = np.sqrt(np.square(sets[2][:, None] - sets[1][None]).sum(axis=2)).min(axis=1)
    of_image = {
        name: max(gaps[list(places)])
        for name, places in {"a": (0,), "b": (1, 2), "c": (3,), "d": (4, 5), "e": (6,)}.items()
    }
    assert scores.images_least_like_train == tuple(sorted(of_image, key=of_image.__getitem__, reverse=True)[:3])
    assert (scores.fid, scores.fid_floor) == pytest.approx((fid(sets[0], sets[2]), fid(sets[1], sets[2])), abs=1e-4)

    def statistics(images: list[np.ndarray]) -> tuple[list[float], list[float]]:
        return [i.mean() for i in images], [i.mean(axis=2).std() for i in images]

    for index, name in enumerate(("mean", "std")):
        made_values, train_values, test_values = (statistics(s)[index] for s in (made, train, test))
        assert getattr(scores, f"{name}_wasserstein") == pytest.approx(wasserstein_distance(made_values, test_values))
        assert getattr(scores, f"{name}_wasserstein_floor") == pytest.approx(
            wasserstein_distance(train_values, test_values)
        )
    assert 40 < scores.mean_wasserstein < 60
    assert (scores.num_synthetic, scores.num_real) == (5, 7)
    assert (scores.density, scores.coverage) == density_and_coverage(sets[0], sets[2])
    assert (scores.density_train, scores.coverage_train) == density_and_coverage(sets[1], sets[2])


def samples(seed: int, count: int, *, spread: float) -> list[np.ndarray]:
    """Noisy versions of one picture, RGB uint8 [24,40,3]."""
    rng = np.random.default_rng(seed)
    picture = np.linspace(20, 220, 24 * 40).reshape(24, 40, 1).repeat(3, axis=2)
    return [np.clip(rng.normal(picture, spread), 0, 255).astype(np.uint8) for _ in range(count)]


def test_l2_distance_is_the_norm_at_512_pixels() -> None:
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 256, (512, 512, 3), np.uint8) for _ in range(2))
    expected = np.linalg.norm(first.astype(float).ravel() / 255 - second.astype(float).ravel() / 255)
    assert l2_distance(first, second) == pytest.approx(expected, rel=1e-9)
    # the same picture at another size is as far away
    small = [np.full((24, 40, 3), level, np.uint8) for level in (100, 120)]
    large = [np.full((48, 80, 3), level, np.uint8) for level in (100, 120)]
    assert l2_distance(small[0], small[1]) == pytest.approx(l2_distance(large[0], large[1]))


@pytest.mark.parametrize("spread", [1.0, 20.0, 80.0])
def test_mutual_information_is_that_of_scikit_learn(spread: float) -> None:
    first, second = samples(1, 2, spread=spread)
    bins = [(image.astype(int).sum(axis=2) // 3 // 8).ravel() for image in (first, second)]
    assert mutual_information_nats(first, second) == pytest.approx(mutual_info_score(bins[0], bins[1]), abs=1e-9)


def test_diversity_is_the_mean_over_drivers_of_the_mean_over_pairs() -> None:
    wide, narrow = samples(2, 3, spread=40.0), samples(3, 4, spread=5.0)
    scores = score_diversity([wide, narrow, samples(4, 1, spread=9.0)])
    assert scores is not None
    means = [np.mean([l2_distance(of[i], of[j]) for i in range(len(of)) for j in range(i)]) for of in (wide, narrow)]
    assert scores.l2 == pytest.approx(np.mean(means))
    assert (scores.num_drivers, scores.num_samples) == (2, 7)
    more, less = score_diversity([wide]), score_diversity([narrow])
    assert more is not None
    assert less is not None
    assert more.l2 > less.l2
    assert more.mutual_information_nats < less.mutual_information_nats


def test_equal_samples_have_no_distance_and_single_samples_no_diversity() -> None:
    image = samples(0, 1, spread=30.0)[0]
    same = score_diversity([[image, image]])
    assert same is not None
    assert same.l2 == 0.0
    assert score_diversity([[image], []]) is None
