"""FID's distance between Gaussians."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.linalg import sqrtm

from eval.metrics.frechet import Gaussian
from tests.benchmarks.measure import Row, compare


@pytest.mark.parametrize(("n", "m"), [(200, 150), (2000, 1500)])
def test_frechet_distance(report: Callable[[Row], None], n: int, m: int) -> None:
    """Fewer and more rows than the 512 features; the peer takes the matrix square root, as pytorch-fid does."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(n, 512)), 1.3 * rng.normal(size=(m, 512)) + 0.1

    def ours() -> float:
        return Gaussian.fit(first).distance(Gaussian.fit(second))

    def peer() -> float:
        one, other = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
        shift = first.mean(0) - second.mean(0)
        return float(shift @ shift + np.trace(one) + np.trace(other) - 2 * np.trace(sqrtm(one @ other).real))

    assert ours() == pytest.approx(peer(), rel=1e-4)
    report(compare(f"Frechet distance, {n} and {m} x 512", "scipy sqrtm", ours, peer, aim=0.35))
