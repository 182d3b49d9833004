"""CSIM: is it still the same face? Cosines of ArcFace embeddings (T, E), NaN rows where no face is seen."""

from dataclasses import dataclass

import numpy as np

from eval.features.records import UnscorableError


@dataclass(frozen=True)
class Likeness:
    """Mean cosine over the `frames` that have one, their 5th percentile, and the share of all frames they are."""

    mean: float
    low: float
    coverage: float
    frames: int


def likeness(embeddings: np.ndarray, reference: np.ndarray) -> Likeness:
    """CSIM of embeddings (T, E) to one face (E,), or frame by frame to (S, E) over the frames that both have.

    A frame without a face on either side counts against coverage, neither as 0 nor not at all. UnscorableError where
    none is left.
    """
    frames = len(embeddings) if reference.ndim == 1 else min(len(embeddings), len(reference))
    found = cosines(embeddings[:frames], reference if reference.ndim == 1 else reference[:frames])
    known = found[np.isfinite(found)]
    if not len(known):
        raise UnscorableError(f"no face: none of {frames} frames can be compared")
    return Likeness(float(known.mean()), float(np.percentile(known, 5)), len(known) / frames, len(known))


def first_face(embeddings: np.ndarray) -> np.ndarray:
    """The first embedding (E,) that there is. UnscorableError without any."""
    seen = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    if not len(seen):
        raise UnscorableError("no face: the reference shows none")
    return embeddings[seen[0]]


def cosines(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of each row (n, E) to `reference` (E,) or to its own row of (n, E); NaN where a side is NaN."""
    first, second = np.asarray(rows, np.float64), np.asarray(reference, np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / np.maximum(lengths, 1e-12)
