"""Paired tests of two methods, also of two runs: values from their tables, set distances from their feature caches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from common.errors import UserError
from common.runs import RunFolder, read_json, sha256_file
from eval.config import FeatureConfig, ScoreConfig
from eval.features.extract import is_lost, load_arrays
from eval.features.extractors import EXTRACTORS, Extractor
from eval.features.records import SET_METRICS
from eval.manifest import ManifestError, read_manifest
from eval.scoring.compare import ALPHA, POWER, Difference, adjusted, clip_count, difference
from eval.scoring.eval_table import FEWEST_CLIPS, REAL, CompareError, Table, by_clip, check_protocols
from eval.scoring.set_metrics import DISTANCES, FeatureSets
from eval.scoring.statistics import Triple, jackknife_se, swap_test

SUMMARY_SETTINGS = ("resamples", "swap_draws", "jackknife_groups", "seed")


class FeaturesMissingError(UserError, ValueError):
    """The features of a run are not in its cache."""


@dataclass(frozen=True)
class CachedFeatures:
    """What one extractor computed for a method when its run was judged; no video is decoded again.

    `own`: clip_id -> rows (n, d) of the method's videos, the first seed of each clip; `real`: those of the real videos
    they are compared with; `weights`: hash of the network; `scores`: how the run summed up its numbers.
    """

    own: Mapping[str, np.ndarray]
    real: Mapping[str, np.ndarray]
    weights: str
    scores: ScoreConfig


def compare_methods(
    tables: tuple[Table, Table],
    methods: tuple[str, str],
    names: tuple[str, str],
    metrics: Sequence[str],
    groups: Mapping[str, str] | None = None,
    runs: tuple[RunFolder, RunFolder] | None = None,
) -> list[Difference]:
    """Every metric that a method of one table and one of another both have, with Holm's correction over them.

    `names` are what the two are called in the result. With the `runs` of the tables, distances of whole sets are tested
    on cached features; without, they are two numbers. Raises CompareError when a method is not in its table, the
    protocols differ, or nothing is shared.
    """
    check_protocols(*tables)
    for rows, method in zip(tables, methods, strict=True):
        judged = sorted({row["method"] for row in rows})
        if method not in judged:
            raise CompareError(f"Method {method!r} was not judged there; the methods are {', '.join(judged)}.")
    differences = []
    for metric in metrics:
        values = (by_clip(tables[0], methods[0], metric), by_clip(tables[1], methods[1], metric))
        between = difference(metric, names, values, groups)
        if between is not None and runs is not None and metric in SET_METRICS:
            between = _tested(between, runs, methods, groups or {})
        if between is not None:
            differences.append(between)
    if not differences:
        raise CompareError(f"{names[0]} and {names[1]} have no clip in common; judge both on the same test set.")
    return adjusted(differences)


def _tested(
    distances: Difference, runs: tuple[RunFolder, RunFolder], methods: tuple[str, str], groups: Mapping[str, str]
) -> Difference:
    """The difference of two set distances, tested on cached features where there are any, else with the reason."""
    extractor = SET_METRICS[distances.metric].extractor
    try:
        features = cached_features(runs[0], methods[0], extractor), cached_features(runs[1], methods[1], extractor)
        tested = set_difference(distances.metric, (distances.a, distances.b), features, groups)
    except FeaturesMissingError as reason:
        return replace(distances, rests_on=f"one distance each: {reason}")
    return tested or replace(distances, rests_on=f"one distance each: fewer than {FEWEST_CLIPS} clips in common")


def set_difference(
    metric: str, names: tuple[str, str], features: tuple[CachedFeatures, CachedFeatures], groups: Mapping[str, str]
) -> Difference | None:
    """The difference of two methods in a distance of whole sets, over the clips both have; None below three.

    `p` is of a permutation test that swaps the methods' labels within clips, the interval from a jackknife over clips,
    both with the settings of the first run. Both distances are to the same real videos: a clip that is held against
    different ones in the two runs is removed. Raises FeaturesMissingError when the networks differ.
    """
    a, b = features
    if a.weights != b.weights:
        raise FeaturesMissingError("the two runs were judged with different weights")
    real = {clip: a.real[clip] for clip in a.real if clip in b.real and np.array_equal(a.real[clip], b.real[clip])}
    sets = FeatureSets.joined({"a": a.own, "b": b.own, REAL: real}, lambda clip: groups.get(clip, clip))
    clips, n = Triple(sets.where["a"], sets.where["b"], sets.where[REAL]), len(sets.where[REAL])
    if n < FEWEST_CLIPS:
        return None
    config, distance = a.scores, DISTANCES[metric](sets.clips)

    def gap(chosen: np.ndarray, _: np.ndarray) -> float:
        return distance(clips.a[chosen], clips.real[chosen]) - distance(clips.b[chosen], clips.real[chosen])

    test = swap_test(distance, clips, config.swap_draws, config.seed)
    error = jackknife_se(gap, np.arange(n), np.arange(n), config.jackknife_groups)
    reach = stats.t.ppf(1 - ALPHA / 2, n - 1) * error
    means = distance(clips.a, clips.real), distance(clips.b, clips.real)
    removed = len(set(a.own) | set(b.own)) - sets.n
    untested = Difference(
        metric, *names, sets.n, removed, *means, test.difference, test.difference - reach, test.difference + reach
    )
    if not config.swap_draws:
        return replace(untested, rests_on=clip_count(sets.n, n))
    quantiles = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
    how = f"{test.draws} swaps of {clip_count(sets.n, n)}"
    return replace(untested, p=test.p, detectable=quantiles * test.spread, rests_on=how)


def cached_features(run: RunFolder, method: str, extractor: str) -> CachedFeatures:
    """One extractor's output for a method's videos, as cached when the run was judged; clips without any are left out.

    Raises FeaturesMissingError where none are left: the run was not judged by this extractor, its manifest or videos
    are gone, or its cache was emptied.
    """
    (chosen,) = (each for each in EXTRACTORS if each.name == extractor)
    path = Path(run.root) / "report" / "scores.json"
    scores = read_json(path) if path.is_file() else {}
    if chosen.missing(scores.get("models", {})):
        raise FeaturesMissingError(f"{run.root} was not judged with {' and '.join(chosen.needs)}")
    try:
        rows = [row for row in read_manifest(run) if row["method"] == method]
    except ManifestError as error:
        raise FeaturesMissingError(str(error)) from error
    first_seed = {row["clip_id"]: row for row in reversed(rows)}
    features = partial(_video_features, run, chosen, scores)
    own = {clip: features(row["video"]) for clip, row in sorted(first_seed.items())}
    real = {clip: features(row["reference"]) for clip, row in sorted(first_seed.items()) if row["reference"]}
    if not any(rows is not None for rows in own.values()):
        raise FeaturesMissingError(f"no features of {method} are in the cache of {run.root}; judge it again")
    settings = {name: scores["config"]["scores"][name] for name in SUMMARY_SETTINGS}
    return CachedFeatures(_present(own), _present(real), scores["models"][chosen.needs[0]], ScoreConfig(**settings))


def _video_features(run: RunFolder, extractor: Extractor, scores: Mapping[str, Any], video: str) -> np.ndarray | None:
    """Feature rows (n, d) of a video under the settings and weights of scores.json; None where there are none."""
    path = Path(run.root) / video
    if not path.is_file():
        return None
    config = replace(FeatureConfig(), **{name: scores["config"]["features"][name] for name in extractor.settings})
    key = extractor.key(config, scores["models"], {"video_sha256": sha256_file(path)})
    file = run.cache / "features" / extractor.name / f"{key}.npz"
    return None if is_lost(file) else load_arrays(file).get("features")


def _present(by_clip: Mapping[str, np.ndarray | None]) -> dict[str, np.ndarray]:
    return {clip: rows for clip, rows in by_clip.items() if rows is not None}
