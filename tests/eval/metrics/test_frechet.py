"""Closed forms of the Fréchet and kernel distances."""

import numpy as np
import pytest
from scipy.linalg import sqrtm

from eval.metrics.frechet import FeatureSetError, Gaussian, frechet_between, kernel_between


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    return Gaussian.fit(first).distance(Gaussian.fit(second))


def with_statistics(mean: np.ndarray, root: np.ndarray, seed: int, n: int = 200) -> np.ndarray:
    """Rows (n, d) whose sample mean and unbiased covariance are exactly `mean` and root^T root."""
    rows = np.random.default_rng(seed).normal(size=(n, len(mean)))
    centred = rows - rows.mean(0)
    q, _ = np.linalg.qr(centred)
    return q * np.sqrt(n - 1) @ root + mean


def test_identical_sets_are_at_distance_zero() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 8))
    assert frechet_distance(rows, rows) == pytest.approx(0.0, abs=1e-10)


def test_equal_covariance_leaves_the_squared_mean_distance() -> None:
    mean = np.array([1.0, -2.0, 0.5, 3.0])
    first, second = with_statistics(np.zeros(4), np.eye(4), 1), with_statistics(mean, np.eye(4), 2)
    assert frechet_distance(first, second) == pytest.approx(float(mean @ mean), rel=1e-10)


def test_diagonal_covariances_differ_by_their_standard_deviations() -> None:
    s1, s2, shift = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 3.0]), np.array([0.0, 1.0, 0.0])
    first, second = with_statistics(np.zeros(3), np.diag(s1), 3), with_statistics(shift, np.diag(s2), 4)
    expected = float(np.sum((s1 - s2) ** 2) + shift @ shift)
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("n", "m", "d"), [(200, 200, 12), (20, 20, 64), (200, 20, 64)])
def test_equals_the_matrix_square_root_form(n: int, m: int, d: int) -> None:
    rng = np.random.default_rng(5)
    first, second = rng.normal(size=(n, d)), rng.normal(size=(m, d)) * 1.4 + 0.2
    cov1, cov2 = np.cov(first.T), np.cov(second.T)
    delta = first.mean(0) - second.mean(0)
    root = np.real(sqrtm(cov1 @ cov2))
    expected = float(delta @ delta + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root))
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_a_feature_that_never_changes_is_left_out_of_the_distance() -> None:
    rng = np.random.default_rng(9)
    first, second = rng.normal(size=(80, 6)), 2 * rng.normal(size=(90, 6))
    still = [np.column_stack([rows, np.full(len(rows), 0.1)]) for rows in (first, second)]
    assert frechet_distance(*still) == pytest.approx(frechet_distance(first, second), rel=1e-9)


def test_features_of_half_precision_are_summed_in_double() -> None:
    rows = (1000 + np.random.default_rng(10).normal(size=(64, 5))).astype(np.float16)
    assert frechet_distance(rows, rows + np.float16(2)) == pytest.approx(5 * 4.0, rel=1e-12)


def test_symmetry_order_sign_and_scale() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(30, 10)), rng.normal(size=(40, 10)) + 0.3
    value = frechet_distance(first, second)
    assert frechet_distance(second, first) == pytest.approx(value)
    assert frechet_distance(first[::-1], second) == pytest.approx(value)
    assert frechet_distance(-first, -second) == pytest.approx(value)
    assert frechet_distance(3 * first, 3 * second) == pytest.approx(9 * value)


def test_bad_pairs_name_what_came() -> None:
    with pytest.raises(FeatureSetError, match="width 3 and 4"):
        frechet_distance(np.zeros((5, 3)), np.zeros((5, 4)))
    with pytest.raises(FeatureSetError, match=r"\(1, 3\)"):
        frechet_distance(np.zeros((1, 3)), np.zeros((5, 3)))
    with pytest.raises(FeatureSetError, match="3 and 2 clips"):
        kernel_between([np.zeros((1, 3))] * 5)(np.arange(3), np.arange(3, 5))


def test_kernel_distance_equals_the_double_loop_over_different_clips() -> None:
    rng = np.random.default_rng(7)
    first = [rng.normal(size=(rows, 5)) for rows in (2, 3, 1, 4)]
    second = [rng.normal(size=(rows, 5)) + 0.5 for rows in (1, 2, 2, 3)]

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.mean([(a @ b / 5 + 1) ** 3 for a in x for b in y]))

    pairs = [(i, j) for i in range(4) for j in range(4) if i != j]
    terms = [k(first[i], first[j]) + k(second[i], second[j]) - 2 * k(first[i], second[j]) for i, j in pairs]
    value = kernel_between(first + second)(np.arange(4), np.arange(4, 8))
    assert value == pytest.approx(float(np.mean(terms)))


def test_kernel_distance_is_flat_in_n_where_the_frechet_distance_is_not() -> None:
    rng = np.random.default_rng(8)

    def both(n: int) -> tuple[float, float]:
        draws = [[rng.normal(size=(1, 32)) for _ in range(2 * n)] for _ in range(60)]
        sides = np.arange(n), np.arange(n, 2 * n)
        return (
            float(np.mean([kernel_between(clips)(*sides) for clips in draws])),
            float(np.mean([frechet_between(clips)(*sides) for clips in draws])),
        )

    (kernel_few, frechet_few), (kernel_many, frechet_many) = both(12), both(48)
    assert abs(kernel_few) < 0.1 and abs(kernel_many) < 0.1
    assert frechet_few > 2 * frechet_many > 5
