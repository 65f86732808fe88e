"""KID, FID and tones of image sets, computed on features of a named encoder (numpy, float64)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from scipy.stats import wasserstein_distance

from defectory.artifacts.scores import ImageSetScores
from defectory.evaluation.config import EvaluationConfig

Features = NDArray[np.float64]
Image = NDArray[np.uint8]


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


def score_image_sets(
    *,
    synthetic: Sequence[Image],
    real_train: Sequence[Image],
    real_test: Sequence[Image],
    features: tuple[Features, Features, Features],
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
        encoder_name: name of the encoder, stored with the scores.
        config: settings of the bootstrap.
        seed: seed of the bootstrap.
    """
    made, train, test = features
    mean_s, std_s = tones(synthetic)
    mean_r, std_r = tones(real_train)
    mean_t, std_t = tones(real_test)
    return ImageSetScores(
        encoder=encoder_name,
        kid=kid(made, test),
        kid_interval=kid_interval(made, test, num_samples=config.bootstrap_samples, seed=seed),
        kid_floor=kid(train, test),
        # further digits depend on the number of threads that decompose the covariances
        fid=round(fid(made, test), 4),
        fid_floor=round(fid(train, test), 4),
        mean_wasserstein=float(wasserstein_distance(mean_s, mean_t)),
        mean_wasserstein_floor=float(wasserstein_distance(mean_r, mean_t)),
        std_wasserstein=float(wasserstein_distance(std_s, std_t)),
        std_wasserstein_floor=float(wasserstein_distance(std_r, std_t)),
        num_synthetic=len(synthetic),
        num_real=len(real_test),
    )
