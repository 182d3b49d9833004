"""CSIM, identity preservation: cosines of ArcFace embeddings (T, E), NaN rows where no face is detected."""

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

    A frame without a face on either side lowers coverage and is left out of the mean. Raises UnscorableError where no
    frame has both.
    """
    frames = len(embeddings) if reference.ndim == 1 else min(len(embeddings), len(reference))
    values = cosines(embeddings[:frames], reference if reference.ndim == 1 else reference[:frames])
    finite = values[np.isfinite(values)]
    if not len(finite):
        raise UnscorableError(f"no face: none of {frames} frames can be compared")
    return Likeness(float(finite.mean()), float(np.percentile(finite, 5)), len(finite) / frames, len(finite))


def first_face(embeddings: np.ndarray) -> np.ndarray:
    """The first embedding (E,) of a detected face. Raises UnscorableError without any."""
    detected = np.flatnonzero(np.isfinite(embeddings).all(axis=1))
    if not len(detected):
        raise UnscorableError("no face: the reference shows none")
    return embeddings[detected[0]]


def cosines(rows: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Cosine of each row (n, E) to `reference` (E,) or to its own row of (n, E); NaN where a side is NaN."""
    first, second = np.asarray(rows, np.float64), np.asarray(reference, np.float64)
    lengths = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(axis=-1) / np.maximum(lengths, 1e-12)
