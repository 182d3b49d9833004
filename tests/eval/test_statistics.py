"""Intervals cover, tests are calibrated, a planted difference is found."""

import numpy as np
import pytest
from scipy import stats

from eval.metrics.frechet import frechet_of_clips, kernel_distance
from eval.statistics import (
    SetPair,
    half_split_distance,
    holm,
    jackknife_se,
    mean_interval,
    paired_test,
    sign_flip_p,
    swap_label_p,
)


def test_interval_is_reproducible_and_covers_the_true_mean() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(3.0, 1.5, size=(200, 40))
    intervals = [mean_interval(sample, resamples=500) for sample in samples]
    assert mean_interval(samples[0], resamples=500) == intervals[0]
    covered = np.mean([i.low <= 3.0 <= i.high for i in intervals])
    assert 0.89 <= covered <= 0.99


def test_interval_of_constant_and_empty_samples() -> None:
    constant = mean_interval([2.0, 2.0, 2.0])
    assert (constant.low, constant.mean, constant.high, constant.sd) == (2.0, 2.0, 2.0, 0.0)
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_p_values_of_equal_methods_are_uniform() -> None:
    rng = np.random.default_rng(1)
    tests = []
    for _ in range(200):
        clip = rng.normal(6, 1.5, size=24)
        a, b = clip + rng.normal(0, 1, 24), clip + rng.normal(0, 1, 24)
        tests.append(paired_test(a, b, resamples=200))
    for name in ("p_wilcoxon", "p_t", "p_permutation", "p_greater"):
        assert stats.kstest([getattr(t, name) for t in tests], "uniform").pvalue > 0.01, name


def test_planted_half_point_of_sync_c_over_100_clips_is_found() -> None:
    rng = np.random.default_rng(2)
    found = 0
    for _ in range(60):
        clip = rng.normal(6, 1.3, 100)
        a, b = clip + 0.5 + rng.normal(0, 1.1, 100), clip + rng.normal(0, 1.1, 100)
        found += paired_test(a, b, resamples=100).p_wilcoxon < 0.05
    assert found >= 0.8 * 60


def test_paired_test_of_a_method_with_itself() -> None:
    values = [1.0, 5.0, 3.0, 2.0]
    test = paired_test(values, values)
    assert (test.difference, test.win_rate, test.p_wilcoxon, test.p_t, test.p_permutation) == (0.0, 0.5, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="2 and 2"):
        paired_test([1.0, 2.0], [1.0, 2.0])


def test_sign_flip_is_exact_for_few_clips() -> None:
    # All five differences positive: 2 of the 2^5 sign patterns are as extreme.
    assert sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0])) == pytest.approx(2 / 32)


def test_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(3).normal(size=17)
    clips = [np.array([[v]]) for v in values]
    se = jackknife_se(lambda a, b: float(np.mean(np.concatenate(a))), clips, clips)
    assert se == pytest.approx(values.std(ddof=1) / np.sqrt(17))


def test_swapping_labels_of_equal_methods_is_uniform_and_of_unequal_ones_is_not() -> None:
    rng = np.random.default_rng(4)

    def draw(shift: float) -> float:
        real = [rng.normal(size=(1, 6)) for _ in range(16)]
        a, b = ([r + rng.normal(s, 0.5, size=(1, 6)) for r in real] for s in (0.0, shift))
        return swap_label_p(kernel_distance, SetPair(a, b, real), draws=99)

    assert stats.kstest([draw(0.0) for _ in range(60)], "uniform").pvalue > 0.01
    assert draw(2.0) <= 0.02


def test_halves_of_one_set_show_the_bias_of_the_frechet_distance() -> None:
    rng = np.random.default_rng(5)
    clips = [rng.normal(size=(1, 24)) for _ in range(40)]
    assert half_split_distance(frechet_of_clips, clips).mean() > 5
    assert abs(half_split_distance(kernel_distance, clips).mean()) < 0.5


def test_holm_steps_down_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
