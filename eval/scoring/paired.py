"""The features that set distances of a judged run rest on, found again in its cache: no video is decoded."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.runs import RunFolder, read_json, sha256_file
from eval.config import FeatureConfig, ScoreConfig
from eval.features.extract import is_lost, load_arrays
from eval.features.extractors import EXTRACTORS, Extractor
from eval.manifest import ManifestError, read_manifest

SUMMING = ("resamples", "swap_draws", "jackknife_groups", "seed")


class FeaturesMissingError(UserError, ValueError):
    """The features of a run are not in its cache."""


@dataclass(frozen=True)
class KeptFeatures:
    """clip_id -> rows (n, d) of a method's videos, the first seed of each clip, in `own`, and of the real ones they are
    compared with in `real`; the hash of the `weights` that saw them, and how the run summed up its numbers."""

    own: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray]
    weights: str
    scores: ScoreConfig


def kept_features(run: RunFolder, method: str, extractor: str) -> KeptFeatures:
    """What one extractor saw of a method's videos when the run was judged; clips of which nothing is kept, as nothing
    was seen of them, are left out.

    Raises FeaturesMissingError where nothing is known any more: the run was not judged by this extractor, its manifest
    or videos are gone, or its cache was emptied.
    """
    (chosen,) = (each for each in EXTRACTORS if each.name == extractor)
    path = Path(run.root) / "report" / "scores.json"
    made = read_json(path) if path.is_file() else {}
    if chosen.missing(made.get("models", {})):
        raise FeaturesMissingError(f"{run.root} was not judged with {' and '.join(chosen.needs)}")
    try:
        rows = [row for row in read_manifest(run) if row["method"] == method]
    except ManifestError as error:
        raise FeaturesMissingError(str(error)) from error
    first = {row["clip_id"]: row for row in reversed(rows)}
    features = partial(_rows, run, chosen, made)
    own = {clip: features(row["video"]) for clip, row in sorted(first.items())}
    real = {clip: features(row["reference"]) for clip, row in sorted(first.items()) if row["reference"]}
    if not any(rows is not None for rows in own.values()):
        raise FeaturesMissingError(f"no features of {method} are in the cache of {run.root}; judge it again")
    summing = {name: made["config"]["scores"][name] for name in SUMMING}
    return KeptFeatures(_present(own), _present(real), made["models"][chosen.needs[0]], ScoreConfig(**summing))


def _rows(run: RunFolder, extractor: Extractor, made: Mapping[str, Any], video: str) -> np.ndarray | None:
    """Feature rows (n, d) of a video under the settings and weights of scores.json; None where there are none."""
    path = Path(run.root) / video
    if not path.is_file():
        return None
    config = replace(FeatureConfig(), **{name: made["config"]["features"][name] for name in extractor.settings})
    key = extractor.key(config, made["models"], {"video_sha256": sha256_file(path)})
    file = run.cache / "features" / extractor.name / f"{key}.npz"
    return None if is_lost(file) else load_arrays(file).get("features")


def _present(found: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {clip: rows for clip, rows in found.items() if rows is not None}
