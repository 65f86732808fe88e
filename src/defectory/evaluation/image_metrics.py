"""How alike image sets are, on features of a named encoder, and how much samples of one driver differ (float64)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from defectory.artifacts.scores import DiversityScores, ImageSetScores
from defectory.engine.features.neighbourhoods import density_and_coverage, distances
from defectory.evaluation.config import EvaluationConfig

Features = NDArray[np.float64]
Image = NDArray[np.uint8]
L2_SIDE_PX = 512
"""Side of the square image that L2 distances are scaled to, the paper's."""
NUM_NAMED = 3
"""Test images that are named as the least like train."""
NUM_BINS = 32
"""Bins of grey levels for mutual information; with more, few pixels share a cell and the estimate grows by chance."""


def kid(first: Features, second: Features) -> float:
    """Return the unbiased squared MMD of features [N,D] and [M,D] (Binkowski et al. 2018).

    The kernel is (x.y / D + 1)^3.
    """
    dimension = first.shape[1]

    def kernel(a: Features, b: Features) -> Features:
        return (a @ b.T / dimension + 1) ** 3

    n, m = len(first), len(second)
    xx, yy, xy = kernel(first, first), kernel(second, second), kernel(first, second)
    return float((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean())


def kid_interval(
    first: Features, second: Features, *, num_samples: int, seed: int, level: float = 0.95
) -> tuple[float, float]:
    """Return a percentile interval of KID over random halves of both sets."""
    rng = np.random.default_rng([81, seed])
    n, m = max(2, len(first) // 2), max(2, len(second) // 2)
    values = [
        kid(first[rng.permutation(len(first))[:n]], second[rng.permutation(len(second))[:m]])
        for _ in range(num_samples)
    ]
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def fid(first: Features, second: Features) -> float:
    """Return the Frechet distance of two Gaussians fitted to features [N,D] and [M,D] (Heusel et al. 2017)."""
    mean = first.mean(axis=0) - second.mean(axis=0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    # tr sqrt(ab) from the eigenvalues of a symmetric product is stable for rank-deficient covariances
    values, vectors = linalg.eigh(a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(linalg.eigvalsh(root @ b @ root), 0, None)).sum()
    # rounding may put equal sets slightly below 0
    return max(0.0, float(mean @ mean + np.trace(a) + np.trace(b) - 2 * cross))


def tones(images: Sequence[Image]) -> tuple[Features, Features]:
    """Return the mean and the standard deviation of each image's grey levels."""
    grey = [image.astype(np.float64).mean(axis=2) for image in images]
    return np.array([g.mean() for g in grey]), np.array([g.std() for g in grey])


def l2_distance(first: Image, second: Image) -> float:
    """Return the Euclidean distance of two RGB images uint8 [H,W,3] with values 0..1, as if they had 512 x 512 pixels.

    It is the root mean square difference times sqrt(3 * 512 * 512), so images of any size compare.
    """
    difference = (first.astype(np.float64) - second.astype(np.float64)) / 255
    return float(np.sqrt(np.square(difference).mean() * 3)) * L2_SIDE_PX


def mutual_information_nats(first: Image, second: Image) -> float:
    """Return the mutual information of the grey levels of two RGB images uint8 [H,W,3], in nats, from 32 x 32 bins."""
    one, two = (_grey_bins(image) for image in (first, second))
    joint = np.bincount(one * NUM_BINS + two, minlength=NUM_BINS**2).reshape(NUM_BINS, NUM_BINS) / len(one)
    apart = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return max(0.0, float(np.sum(joint[seen] * np.log(joint[seen] / apart[seen]))))


def score_diversity(samples: Sequence[Sequence[Image]]) -> DiversityScores | None:
    """Measure how much samples of one driver differ, as in the paper's Table 3 (10 drivers, 10 samples each).

    Every pair of samples of one driver is compared; the scores are means over drivers of the mean over its pairs.

    Args:
        samples: for each driver, samples RGB uint8 [H,W,3] of one size.

    Returns:
        The scores; drivers with a single sample are left out, and None stands for no driver with two.
    """
    drivers = [of for of in samples if len(of) > 1]
    if not drivers:
        return None
    pairs = [list(itertools.combinations(of, 2)) for of in drivers]
    return DiversityScores(
        l2=float(np.mean([np.mean([l2_distance(a, b) for a, b in of]) for of in pairs])),
        mutual_information_nats=float(
            np.mean([np.mean([mutual_information_nats(a, b) for a, b in of]) for of in pairs])
        ),
        num_drivers=len(drivers),
        num_samples=sum(len(of) for of in drivers),
    )


def _farthest(train: Features, test: Features, test_files: Sequence[str]) -> tuple[str, ...]:
    nearest = distances(test, train).min(axis=1)
    # a dict keeps the first of an image's tiles, so its farthest
    found = dict.fromkeys(test_files[int(i)] for i in np.argsort(-nearest, kind="stable"))
    return tuple(found)[:NUM_NAMED]


def _grey_bins(image: Image) -> NDArray[np.int64]:
    grey = image.astype(np.int64).sum(axis=2) // 3
    return grey.ravel() * NUM_BINS // 256


def score_image_sets(
    *,
    synthetic: Sequence[Image],
    real_train: Sequence[Image],
    real_test: Sequence[Image],
    features: tuple[Features, Features, Features],
    test_files: Sequence[str],
    encoder_name: str,
    config: EvaluationConfig,
    seed: int,
) -> ImageSetScores:
    """Score synthetic tiles against real test tiles; real train against real test tiles is the floor.

    Args:
        synthetic: RGB uint8 [H,W,3] each.
        real_train: likewise.
        real_test: likewise.
        features: features of the three sets, [N,D] each; all three standardised in the same way, or none.
        test_files: file name of the image that each test tile is of.
        encoder_name: name of the encoder, stored with the scores.
        config: settings of the bootstrap.
        seed: seed of the bootstrap.
    """
    # scipy.stats takes a fifth of the imports of every command that opens a project
    from scipy.stats import wasserstein_distance

    made, train, test = features
    mean_s, std_s = tones(synthetic)
    mean_r, std_r = tones(real_train)
    mean_t, std_t = tones(real_test)
    (density, coverage), (density_train, coverage_train) = (density_and_coverage(of, test) for of in (made, train))
    return ImageSetScores(
        encoder=encoder_name,
        kid=kid(made, test),
        kid_interval=kid_interval(made, test, num_samples=config.bootstrap_samples, seed=seed),
        kid_floor=kid(train, test),
        kid_floor_interval=kid_interval(train, test, num_samples=config.bootstrap_samples, seed=seed),
        images_least_like_train=_farthest(train, test, test_files),
        # further digits depend on the number of threads that decompose the covariances
        fid=round(fid(made, test), 4),
        fid_floor=round(fid(train, test), 4),
        density=density,
        density_train=density_train,
        coverage=coverage,
        coverage_train=coverage_train,
        mean_wasserstein=float(wasserstein_distance(mean_s, mean_t)),
        mean_wasserstein_floor=float(wasserstein_distance(mean_r, mean_t)),
        std_wasserstein=float(wasserstein_distance(std_s, std_t)),
        std_wasserstein_floor=float(wasserstein_distance(std_r, std_t)),
        num_synthetic=len(synthetic),
        num_real=len(real_test),
    )
