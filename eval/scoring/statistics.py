"""Statistics: bootstrap intervals over clips, jackknife errors of set distances, paired tests between methods."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from eval.metrics.frechet import ClipDistance


@dataclass(frozen=True)
class Interval:
    """A mean over clips with its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float
    sd: float
    median: float
    n: int


@dataclass(frozen=True)
class PairedTest:
    """Method a against method b on the clips both have a value for.

    `difference` is mean(a - b) with its interval; `p_wilcoxon`, `p_t` and `p_permutation` are two-sided,
    `p_greater` is the one-sided Wilcoxon p of a > b; `win_rate` counts ties as half. The tests see one mean difference
    for each of the `groups` (videos or speakers) that the `n` clips are of.
    """

    n: int
    groups: int
    difference: float
    low: float
    high: float
    win_rate: float
    p_wilcoxon: float
    p_t: float
    p_permutation: float
    p_greater: float


def mean_interval(
    values: Sequence[float] | np.ndarray, resamples: int = 10_000, seed: int = 0, groups: Sequence[str] | None = None
) -> Interval:
    """Mean over clips with a 95 % BCa bootstrap interval (Efron 1987); the same seed gives the same interval.

    Clips of one of `groups` (one name per clip) are drawn together; a single group has no spread, so the
    interval is then infinite.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) == 0:
        raise ValueError("An interval needs at least one value and got none.")
    mean, sd = float(data.mean()), float(data.std(ddof=1)) if len(data) > 1 else 0.0
    low = high = mean
    sums, counts = _grouped(data, groups)
    # BCa divides by the spread, which a constant sample does not have: its interval is the point itself.
    if np.ptp(data) > 0:
        low, high = _bootstrap(sums, counts, resamples, seed) if len(sums) > 1 else (-np.inf, np.inf)
    return Interval(mean, float(low), float(high), sd, float(np.median(data)), len(data))


def _grouped(data: np.ndarray, groups: Sequence[str] | None) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number (g,) of the values in each group, every value being its own without `groups`."""
    if groups is None:
        return data, np.ones(len(data))
    _, member = np.unique(np.asarray(groups), return_inverse=True)
    return np.bincount(member, data), np.bincount(member).astype(float)


def _bootstrap(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """BCa interval of the mean over all values of whole groups drawn with replacement."""
    rng = np.random.default_rng(seed)
    # Independent clips: a plain mean, which scipy resamples vectorised.
    if (counts == 1).all():
        return tuple(stats.bootstrap((sums,), np.mean, n_resamples=resamples, rng=rng).confidence_interval)
    if np.ptp(sums / counts) == 0:  # all group means are equal: BCa has no spread to divide by
        return float(sums[0] / counts[0]), float(sums[0] / counts[0])

    def mean(drawn_sums: np.ndarray, drawn_counts: np.ndarray, axis: int) -> np.ndarray:
        return drawn_sums.sum(axis=axis) / drawn_counts.sum(axis=axis)

    drawn = stats.bootstrap((sums, counts), mean, n_resamples=resamples, paired=True, rng=rng)
    return tuple(drawn.confidence_interval)


def paired_test(
    a: Sequence[float],
    b: Sequence[float],
    resamples: int = 10_000,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> PairedTest:
    """Compare two methods on the same clips, `a[i]` and `b[i]` from one clip, which is of `groups[i]`.

    Raises ValueError below 3 clips or groups.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape or len(first) < 3:
        raise ValueError(f"A paired test got {len(first)} and {len(second)} values; give the same clips, at least 3.")
    clips = first - second
    sums, counts = _grouped(clips, groups)
    if len(sums) < 3:
        raise ValueError(f"A paired test got {len(sums)} videos or speakers; clips of at least 3 are needed.")
    # One observation per group: clips of one speaker are not independent, so tests on clips would be too sure.
    difference = sums / counts
    interval = mean_interval(clips, resamples, seed, groups)
    wins = float(np.mean((clips > 0) + 0.5 * (clips == 0)))
    if not difference.any():  # scipy's Wilcoxon refuses a sample of zeros
        return PairedTest(len(first), len(sums), interval.mean, interval.low, interval.high, wins, 1.0, 1.0, 1.0, 1.0)
    # The t statistic of a constant, non-zero difference is infinite.
    p_t = float(stats.ttest_1samp(difference, 0.0).pvalue) if np.ptp(difference) > 0 else 0.0
    return PairedTest(
        n=len(first),
        groups=len(sums),
        difference=interval.mean,
        low=interval.low,
        high=interval.high,
        win_rate=wins,
        p_wilcoxon=float(stats.wilcoxon(difference).pvalue),
        p_t=p_t,
        p_permutation=sign_flip_p(difference, resamples, seed),
        p_greater=float(stats.wilcoxon(difference, alternative="greater").pvalue),
    )


def sign_flip_p(difference: np.ndarray, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided permutation p of mean difference 0: exact where there are no more than `draws` sign patterns."""
    result = stats.permutation_test(
        (difference,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=draws,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def jackknife_se(distance: ClipDistance, first: np.ndarray, second: np.ndarray, groups: int = 100) -> float:
    """Standard error of a distance between two paired choices of n clips: delete one clip, or one of `groups` groups.

    The naive bootstrap is wrong in location for FID and FVD (duplicates shrink the support), the jackknife is not.
    """
    # Both sides lose the same positions: a generated clip leaves together with its real one.
    blocks = np.array_split(np.arange(len(first)), min(groups, len(first)))
    values = np.array([distance(np.delete(first, block), np.delete(second, block)) for block in blocks])
    return float(np.sqrt((len(blocks) - 1) / len(blocks) * np.sum((values - values.mean()) ** 2)))


def half_split_distances(distance: ClipDistance, clips: np.ndarray, splits: int = 20, seed: int = 0) -> np.ndarray:
    """Distances (splits,) between disjoint random halves of one choice of clips: the value where nothing differs."""
    rng, half = np.random.default_rng(seed), len(clips) // 2
    orders = [rng.permutation(clips) for _ in range(splits)]
    return np.array([distance(order[:half], order[half : 2 * half]) for order in orders])


@dataclass(frozen=True)
class Triple:
    """Positions of two methods' clips and of the real clips they stand for, all (n,) and in the same order."""

    a: np.ndarray
    b: np.ndarray
    real: np.ndarray


@dataclass(frozen=True)
class SwapTest:
    """`difference`: how much farther from the real clips method a is than b; its two-sided `p`, and `spread`, the
    standard deviation of what swapped labels give instead, from `draws` swaps."""

    difference: float
    p: float
    spread: float
    draws: int


def swap_test(distance: ClipDistance, clips: Triple, draws: int = 499, seed: int = 0, enough: int = 50) -> SwapTest:
    """Are methods a and b equally far from the real clips? Labels a and b of clips are swapped at random.

    Exact under the null, and the small-sample bias of the distance cancels in the difference. Swapping ends
    after `draws` swaps, or earlier at the `enough`-th that separates the methods as far as observed: p is then large,
    and each swap costs two distances of whole sets. p is the share of such swaps (Besag and Clifford 1991).
    """
    rng = np.random.default_rng(seed)

    def gap(a: np.ndarray, b: np.ndarray) -> float:
        return distance(a, clips.real) - distance(b, clips.real)

    observed, hits = gap(clips.a, clips.b), 0
    gaps: list[float] = []
    # 1e-12: a swap of no clip must count as extreme as the observation, whatever the rounding of the sum.
    while len(gaps) < draws and hits < enough:
        swap = rng.random(len(clips.real)) < 0.5
        gaps.append(gap(np.where(swap, clips.b, clips.a), np.where(swap, clips.a, clips.b)))
        hits += abs(gaps[-1]) >= abs(observed) - 1e-12
    # Besag and Clifford: stopped early, the share of hits is unbiased; else the observation counts as one of the draws.
    p = hits / len(gaps) if hits == enough else (hits + 1) / (len(gaps) + 1)
    # Every pattern of swaps has its mirror image, so the mean is 0 by construction and the spread is the RMS.
    return SwapTest(observed, p, float(np.sqrt(np.mean(np.square(gaps)))) if gaps else math.nan, len(gaps))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given (Holm 1979)."""
    order = np.argsort(p_values, kind="stable")
    adjusted, running = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        # Adjusted values may not decrease: a larger p is never more significant than a smaller one.
        running = max(running, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = running
    return adjusted
