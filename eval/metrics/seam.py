"""Visibility of chunk joins: frame differences at the joins of a long video against those around them.

A seam is the number of the first new frame after the kept overlap, as the stitcher cuts it: the jump is between frames
b - 1 and b.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from eval.features.records import UnscorableError

REACH = 12  # frames to each side that a jump is compared with
CLEAR_Z = 3.0
DRAWS = 999
FRAMES_PER_LATENT = 4  # of Wan's VAE
# Grey levels below which the spread of the neighbours is rounding: a still video has none at all.
LEAST_SPREAD = 0.1
TO_SIGMA = 1.4826  # of a normal distribution, from the median absolute deviation


@dataclass(frozen=True)
class SeamJumps:
    """`z` (S,) of each seam against the frames around it, `mean_z`, `share` of seams with z above 3, and `p`: how often
    as many frames drawn at random have a mean z as large; `p_latent` draws them from the seams' own places among the
    four frames of a latent.

    A decoded video moves further where a latent begins than within it, and seams only lie there: `p` alone would find
    jumps also at frames where nothing was joined.
    """

    z: np.ndarray
    mean_z: float
    share: float
    p: float
    p_latent: float


def frame_jumps(frames: Iterable[np.ndarray]) -> np.ndarray:
    """Mean absolute difference (T - 1,) in grey levels of neighbours among frames (T, H, W, 3) uint8, which may come
    one by one; entry b - 1 belongs to frame b."""
    jumps, before = [], None
    for frame in frames:
        now = np.asarray(frame, np.int16)
        if before is not None:
            jumps.append(float(np.abs(now - before).mean()))
        before = now
    return np.array(jumps)


def seam_jumps(jumps: np.ndarray, seams: Sequence[int], draws: int = DRAWS, seed: int = 0) -> SeamJumps:
    """Judge the seams (frame numbers 1..T-1) of a video with these `jumps` (T - 1,).

    Without a visible seam `p` is uniform, `p_latent` also where frames jump in a rhythm of four. Raises UnscorableError
    without a seam in the video or with fewer than twice as many frames as seams and REACH on top.
    """
    joins = np.unique([seam - 1 for seam in seams if 0 < seam <= len(jumps)])
    if not len(joins):
        raise UnscorableError("no seam: the video is one chunk")
    if len(jumps) < 2 * len(joins) + REACH:
        raise UnscorableError(f"too short: {len(jumps) + 1} frames for {len(joins)} seams")
    z = jump_scores(jumps, joins)
    rng = np.random.default_rng(seed)
    p, p_latent = (_chance(z, joins, every, draws, rng) for every in (1, FRAMES_PER_LATENT))
    return SeamJumps(z[joins], float(z[joins].mean()), float((z[joins] > CLEAR_Z).mean()), p, p_latent)


def _chance(z: np.ndarray, joins: np.ndarray, every: int, draws: int, rng: np.random.Generator) -> float:
    """How often as many places as `joins`, drawn from those at the same distance to a multiple of `every`, have as
    large a mean z."""
    phase, counts = np.arange(len(z)) % every, np.bincount(joins % every, minlength=every)
    pools = [(np.flatnonzero(phase == each), count) for each, count in enumerate(counts) if count]
    drawn = [np.concatenate([rng.choice(pool, count, replace=False) for pool, count in pools]) for _ in range(draws)]
    return (1 + int((z[np.array(drawn)].mean(axis=1) >= z[joins].mean() - 1e-12).sum())) / (draws + 1)


def jump_scores(jumps: np.ndarray, joins: np.ndarray) -> np.ndarray:
    """z (n,) of every jump against the median and the spread of the up to 24 around it, itself and `joins` left out."""
    free = np.ones(len(jumps), bool)
    free[joins] = False
    scores = np.zeros(len(jumps))
    for place in range(len(jumps)):
        low = max(0, place - REACH)
        around = np.arange(low, min(len(jumps), place + REACH + 1))
        others = jumps[around[free[around] & (around != place)]]
        middle = np.median(others)
        spread = TO_SIGMA * np.median(np.abs(others - middle))
        scores[place] = (jumps[place] - middle) / max(spread, LEAST_SPREAD)
    return scores
