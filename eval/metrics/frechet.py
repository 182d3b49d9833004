"""Distances between two sets of features: Fréchet (FID, FVD) and unbiased polynomial MMD (KID, KVD).

A set is a list of clips, each clip a float array (rows, d): frames for FID, windows for FVD. Clips are the unit of
every error estimate, because more frames of one clip are not more data.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.linalg import LinAlgError, cholesky, qr, svdvals

from common.errors import UserError

FeatureSet = Sequence[np.ndarray]
# A distance between two choices of clips, given as two arrays of positions in one common list, as resampling needs it.
ClipDistance = Callable[[np.ndarray, np.ndarray], float]


class FeatureSetError(UserError, ValueError):
    """Two feature sets that no distance can be computed from."""


@dataclass(frozen=True)
class Gaussian:
    """Mean (d,) and a matrix R with R^T R = unbiased covariance, both float64: the centred rows where there are no more
    than d of them (`full` is then False), else d rows."""

    mean: np.ndarray
    root: np.ndarray
    full: bool

    @classmethod
    def fit(cls, features: np.ndarray) -> "Gaussian":
        """The Gaussian of feature rows (n, d). Raises FeatureSetError for fewer than two rows."""
        if features.ndim != 2 or len(features) < 2:
            raise FeatureSetError(f"A feature matrix of shape {features.shape} came; (n, d) with n >= 2 is needed.")
        rows = features.astype(np.float64)
        centred = (rows - rows.mean(0)) / np.sqrt(len(rows) - 1)
        if len(centred) <= centred.shape[1]:
            return cls(rows.mean(0), centred, False)
        try:
            return cls(rows.mean(0), cholesky(centred.T @ centred, check_finite=False), True)
        except LinAlgError:  # a feature that never changes, or is a sum of others
            return cls(rows.mean(0), qr(centred, mode="r", check_finite=False)[0][: centred.shape[1]], False)

    def distance(self, other: "Gaussian") -> float:
        """Fréchet distance (Heusel et al. 2017, eq. 6). Raises FeatureSetError when the widths differ.

        tr (Sx Sy)^(1/2) is the nuclear norm of Rx Ry^T: exact, never complex, right for n < d, and without a matrix
        square root.
        """
        if len(self.mean) != len(other.mean):
            widths = f"{len(self.mean)} and {len(other.mean)}"
            raise FeatureSetError(f"Features of width {widths} came; both sides must come from the same network.")
        apart = float(np.sum((self.mean - other.mean) ** 2))
        traces = float(np.sum(self.root**2) + np.sum(other.root**2))
        cross = self.root @ other.root.T
        # Rounding can leave identical sets a hair below zero; a squared distance cannot be.
        return max(0.0, apart + traces - 2.0 * _nuclear_norm(cross, self.full and other.full))


def _nuclear_norm(matrix: np.ndarray, full: bool) -> float:
    """Sum of the singular values. Those of a matrix of `full` rank are the roots of eigenvalues, found in half the
    time; near zero the roots lose half their digits, so where zeros are expected they are computed directly."""
    if not full:
        return float(svdvals(matrix).sum())
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T), 0.0)).sum())


def frechet_between(clips: FeatureSet) -> ClipDistance:
    """Fréchet distance between two choices of `clips`, all rows of the chosen clips pooled."""

    # Resampling keeps one side fixed: the last two fits are cached, more would not fit into memory.
    @lru_cache(maxsize=2)
    def fitted(chosen: tuple[int, ...]) -> Gaussian:
        return Gaussian.fit(np.concatenate([clips[i] for i in chosen]))

    return lambda first, second: fitted(tuple(first)).distance(fitted(tuple(second)))


def kernel_between(clips: FeatureSet) -> ClipDistance:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 between two equally long choices of `clips`.

    Only pairs of different positions enter, so neither frames of one clip nor a generated clip and its own original at
    the same position pull the value down. It is flat in n where the Fréchet distance is biased, and may be slightly
    negative. Source: Gretton et al. 2012, Lemma 6 (U-statistic); Binkowski et al. 2018 (kernel).
    The distance raises FeatureSetError when the choices differ in length or hold fewer than two clips.
    """
    gram = _clip_gram(clips)

    def distance(first: np.ndarray, second: np.ndarray) -> float:
        n = len(first)
        if n != len(second) or n < 2:
            raise FeatureSetError(f"The kernel distance got {n} and {len(second)} clips; give as many, at least 2.")
        cross = gram[np.ix_(first, second)]
        h = gram[np.ix_(first, first)] + gram[np.ix_(second, second)] - cross - cross.T
        return float((h.sum() - np.trace(h)) / (n * (n - 1)))

    return distance


def _clip_gram(clips: FeatureSet) -> np.ndarray:
    """Kernel averaged over the rows of each pair of clips, (n, n); one clip's rows at a time."""
    columns = np.concatenate(clips).astype(np.float64)
    sizes = np.array([len(clip) for clip in clips])
    starts = np.cumsum(sizes) - sizes
    rows = []
    for clip in clips:
        base = clip.astype(np.float64) @ columns.T / columns.shape[1] + 1.0
        rows.append(np.add.reduceat((base * base * base).mean(0), starts) / sizes)
    return np.stack(rows)
