from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from defectory.engine.features.neighbourhoods import density_and_coverage


@pytest.mark.parametrize("seed", range(4))
def test_density_and_coverage_are_those_of_the_paper(seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, made = rng.normal(size=(37, 5)), rng.normal(size=(23, 5)) * 0.7 + 1.0
    # the tile itself is the first of its six nearest
    radius = NearestNeighbors(n_neighbors=6).fit(real).kneighbors(real)[0][:, -1]
    inside = np.linalg.norm(made[:, None] - real[None], axis=2) < radius[None]
    density = sum(inside[j, i] for j in range(23) for i in range(37)) / (5 * 23)
    coverage = np.mean([any(inside[j, i] for j in range(23)) for i in range(37)])
    assert 0.05 < coverage < 0.95
    assert density_and_coverage(made, real) == pytest.approx((density, coverage), abs=1e-9)


def test_density_and_coverage_are_one_for_the_same_distribution_and_nought_far_away() -> None:
    rng = np.random.default_rng(1)
    real, same = rng.normal(size=(400, 4)), rng.normal(size=(400, 4))
    density, coverage = density_and_coverage(same, real)
    assert density == pytest.approx(1.0, abs=0.1)
    assert coverage > 0.9
    assert density_and_coverage(same + 50, real) == (0.0, 0.0)
    # one mode alone is dense and covers little
    assert density_and_coverage(same[:1].repeat(400, axis=0), real)[1] < 0.1
