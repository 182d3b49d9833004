"""Intervals cover, tests are calibrated, a planted difference is found."""

import numpy as np
import pytest
from scipy import stats

from eval.metrics.frechet import frechet_between, kernel_between
from eval.scoring.statistics import (
    SwapTest,
    Triple,
    half_split_distances,
    holm,
    jackknife_se,
    mean_interval,
    paired_test,
    sign_flip_p,
    swap_test,
)


def paired_methods(
    rng: np.random.Generator, draws: int, clips: int, difference: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sync-C (draws, clips) of two methods on the same clips: sd 1.6 each, correlation 0.6."""
    shared = rng.normal(6, 1.6 * np.sqrt(0.6), (draws, clips))
    a, b = (shared + rng.normal(0, 1.6 * np.sqrt(0.4), (draws, clips)) for _ in range(2))
    return a + difference, b


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
    a, b = paired_methods(rng, draws=200, clips=24, difference=0.0)
    tests = [paired_test(*pair, resamples=200) for pair in zip(a, b, strict=True)]
    for name in ("p_wilcoxon", "p_t", "p_permutation", "p_greater"):
        assert stats.kstest([getattr(t, name) for t in tests], "uniform").pvalue > 0.01, name


def test_planted_half_point_of_sync_c_over_100_clips_is_found() -> None:
    a, b = paired_methods(np.random.default_rng(2), draws=60, clips=100, difference=0.5)
    found = [paired_test(*pair, resamples=100).p_wilcoxon < 0.05 for pair in zip(a, b, strict=True)]
    assert np.mean(found) >= 0.8


def test_clips_of_one_speaker_are_drawn_together() -> None:
    rng = np.random.default_rng(8)
    speakers = np.repeat(np.arange(12), 5)
    covered, alone = [], []
    for _ in range(60):
        values = rng.normal(0, 1, 12)[speakers] + rng.normal(0, 0.3, 60)
        together = mean_interval(values, 400, groups=[str(s) for s in speakers])
        single = mean_interval(values, 400)
        covered.append(together.low <= 0 <= together.high)
        alone.append(single.low <= 0 <= single.high)
    # Sixty clips of twelve people are hardly more than twelve clips.
    assert np.mean(covered) >= 0.85 and np.mean(alone) < 0.75
    assert mean_interval([1.0, 2.0], 50, groups=["a", "a"]).high == np.inf
    assert mean_interval([1.0, 3.0, 2.0], 50, groups=["a", "a", "b"]).low == 2.0


def test_paired_tests_count_speakers_and_not_their_clips() -> None:
    rng = np.random.default_rng(9)
    speakers = np.repeat(np.arange(8), 6)
    names = [str(s) for s in speakers]
    p = []
    for _ in range(120):
        difference = rng.normal(0, 1, 8)[speakers] + rng.normal(0, 0.3, 48)
        test = paired_test(difference, np.zeros(48), 50, groups=names)
        p.append(test.p_t)
    assert stats.kstest(p, "uniform").pvalue > 0.01
    assert (test.n, test.groups) == (48, 8)
    with pytest.raises(ValueError, match="2 videos or speakers"):
        paired_test([1.0, 2, 3], [0.0, 0, 0], groups=["a", "a", "b"])


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
    clips = np.arange(17)
    se = jackknife_se(lambda first, _: float(values[first].mean()), clips, clips)
    assert se == pytest.approx(values.std(ddof=1) / np.sqrt(17))


def test_jackknife_matches_the_spread_of_fresh_draws_where_the_bootstrap_could_not() -> None:
    rng = np.random.default_rng(7)
    n, sides = 30, (np.arange(30), np.arange(30, 60))
    draws = [[rng.normal(size=(1, 12)) for _ in range(2 * n)] for _ in range(60)]
    values = [frechet_between(clips)(*sides) for clips in draws]
    errors = [jackknife_se(frechet_between(clips), *sides) for clips in draws[:12]]
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=0.35)
    grouped = jackknife_se(frechet_between(draws[0]), *sides, groups=10)
    assert grouped == pytest.approx(errors[0], rel=0.8)


def test_swapping_labels_of_equal_methods_is_uniform_and_of_unequal_ones_is_not() -> None:
    rng = np.random.default_rng(4)
    n = 16
    clips = Triple(np.arange(n), np.arange(n, 2 * n), np.arange(2 * n, 3 * n))

    def draw(shift: float) -> float:
        real = rng.normal(size=(n, 1, 6))
        a, b = (real + rng.normal(s, 0.5, size=real.shape) for s in (0.0, shift))
        return swap_test(kernel_between([*a, *b, *real]), clips, draws=99).p

    assert stats.kstest([draw(0.0) for _ in range(80)], "uniform").pvalue > 0.01
    assert draw(2.0) <= 0.02


def test_without_a_difference_few_swaps_give_the_same_answer() -> None:
    rng = np.random.default_rng(9)
    n = 16
    clips = Triple(np.arange(n), np.arange(n, 2 * n), np.arange(2 * n, 3 * n))
    real = rng.normal(size=(n, 1, 6))
    rows = {shift: real + rng.normal(shift, 0.5, size=real.shape) for shift in (0.0, 0.01, 2.0)}

    def between(shift: float, enough: int = 50) -> SwapTest:
        return swap_test(kernel_between([*rows[0.0], *rows[shift], *real]), clips, enough=enough)

    near, all_of_them, far = between(0.01), between(0.01, enough=500), between(2.0)
    assert 50 <= near.draws < 200 and all_of_them.draws == 499
    assert near.p == pytest.approx(all_of_them.p, abs=0.15) and near.spread == pytest.approx(
        all_of_them.spread, rel=0.3
    )
    assert (far.draws, far.p) == (499, 1 / 500)  # 14 tests after Holm: 0.03


def test_halves_of_one_set_show_the_bias_of_the_frechet_distance() -> None:
    rng = np.random.default_rng(5)
    clips = [rng.normal(size=(1, 24)) for _ in range(40)]
    assert half_split_distances(frechet_between(clips), np.arange(40)).mean() > 5
    assert abs(half_split_distances(kernel_between(clips), np.arange(40)).mean()) < 0.5


def test_holm_steps_down_and_keeps_the_order() -> None:
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
