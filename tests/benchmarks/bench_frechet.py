"""FID's distance between Gaussians."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm

from eval.metrics.frechet import frechet_distance
from tests.benchmarks.measure import Row, compare


def test_frechet_distance(report: Callable[[Row], None]) -> None:
    """200 against 150 rows of 512; the peer takes the matrix square root, as pytorch-fid does."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(200, 512)), 1.3 * rng.normal(size=(150, 512)) + 0.1

    def ours() -> float:
        return frechet_distance(first, second)

    def peer() -> float:
        one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        shift = first.mean(0) - second.mean(0)
        return float(shift @ shift + np.trace(one) + np.trace(other) - 2 * np.trace(sqrtm(one @ other).real))

    assert ours() == pytest.approx(peer(), rel=1e-4)
    report(compare("Frechet distance, 200 and 150 x 512", "scipy sqrtm", ours, peer, aim=0.35))
