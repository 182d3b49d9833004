"""Numbers of clips -> numbers of methods: means with intervals, set distances with errors, paired tests, red flags."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.extract import NO_WEIGHTS, Arrays
from eval.metrics.frechet import FeatureSet, frechet_of_clips, kernel_distance
from eval.records import CLIP_METRICS, SET_METRICS, WHOLE_SET, Record
from eval.statistics import (
    SetDistance,
    SetPair,
    half_split_distance,
    holm,
    jackknife_se,
    mean_interval,
    paired_test,
    swap_label_p,
)

DISTANCES: dict[str, SetDistance] = {
    "fid": frechet_of_clips,
    "kid": kernel_distance,
    "fvd": frechet_of_clips,
    "kvd": kernel_distance,
}
TRUTH, FLOOR = "ground_truth", "real_vs_real"


@dataclass(frozen=True)
class ScoreConfig:
    """`comparisons` names pairs "a>b"; `swap_draws` permutations for FID and FVD differences (0 = none), each of
    which costs two distances, so lower it for wide features over many frames."""

    comparisons: tuple[str, ...] = ("adapter>swapped_audio", "adapter>base")
    resamples: int = 10_000
    swap_draws: int = 199
    seed: int = 0

    def __post_init__(self) -> None:
        for pair in self.comparisons:
            if pair.count(">") != 1 or not all(pair.split(">")):
                raise ValueError(f"Comparison '{pair}' is not of the form 'method>method'; write e.g. 'adapter>base'.")


@dataclass(frozen=True)
class Study:
    """All that was seen: per-clip records, arrays per "method/clip_id", and the arrays of each clip's real video."""

    records: Sequence[Record]
    seen: dict[str, dict[str, Arrays]]
    real: dict[str, dict[str, Arrays]]
    protocol: str

    @property
    def methods(self) -> list[str]:
        """Methods in the manifest, sorted."""
        return sorted({record.method for record in self.records})

    def values(self, method: str, metric: str) -> dict[str, float]:
        """clip_id -> value, clips without a value left out."""
        chosen = (r for r in self.records if r.method == method and r.metric == metric)
        return {r.clip_id: r.value for r in chosen if r.value is not None}

    def features(self, method: str, extractor: str) -> dict[str, np.ndarray]:
        """clip_id -> feature rows (n, d) of a method."""
        names = [r.clip_id for r in self.records if r.method == method and r.metric == "sync_c"]
        return _features({clip: self.seen[f"{method}/{clip}"] for clip in names}, extractor)


def _features(arrays: dict[str, dict[str, Arrays]], extractor: str) -> dict[str, np.ndarray]:
    found = {clip: a[extractor]["features"] for clip, a in sorted(arrays.items()) if "features" in a.get(extractor, {})}
    return {clip: features.astype(np.float64) for clip, features in found.items()}


def score_methods(study: Study, config: ScoreConfig) -> tuple[dict[str, Any], list[Record]]:
    """The content of scores.json (methods, comparisons, flags) and the records of the set metrics."""
    methods: dict[str, dict[str, Any]] = {method: _clip_scores(study, method, config) for method in study.methods}
    comparisons = [test for pair in config.comparisons for test in _clip_comparisons(study, pair, config)]
    records = []
    for name in SET_METRICS:
        for method, score in _set_scores(study, name, config).items():
            methods.setdefault(method, {})[name] = score
            row = (score["value"], score["status"], score["n"], study.protocol, 0)
            records.append(Record(method, WHOLE_SET, name, *row))
        comparisons += [test for pair in config.comparisons for test in _set_comparison(study, name, pair, config)]
    for test, adjusted in zip(comparisons, holm([test["p"] for test in comparisons]), strict=True):
        test["p_holm"] = adjusted
    scores = {"methods": methods, "comparisons": comparisons, "flags": _flags(methods), "protocol": study.protocol}
    return scores, records


def _clip_scores(study: Study, method: str, config: ScoreConfig) -> dict[str, Any]:
    """Mean, interval and coverage of each per-clip metric; what has no value is counted by its reason."""
    scores = {}
    for name in CLIP_METRICS:
        rows = [r for r in study.records if r.method == method and r.metric == name]
        values = [r.value for r in rows if r.value is not None]
        reasons: dict[str, int] = {}
        for row in rows:
            if row.status != "ok":
                reasons[row.status] = reasons.get(row.status, 0) + 1
        score: dict[str, Any] = {"value": None, "clips": len(rows), "n": len(values), "coverage": len(values) / len(rows)}
        score |= {"unscored": reasons, "status": "ok" if values else max(reasons, key=lambda r: reasons[r])}
        if values:
            interval = mean_interval(values, config.resamples, config.seed)
            score |= asdict(interval) | {"value": interval.mean}
        scores[name] = score
        if name == "sync_offset" and values:
            score["at_zero"] = float(np.mean(np.array(values) == 0))
    return scores


def _set_scores(study: Study, name: str, config: ScoreConfig) -> dict[str, dict[str, Any]]:
    """Distance of each method to the real clips on the clips all methods have, and the real-against-real floor."""
    distance, extractor = DISTANCES[name], SET_METRICS[name].extractor
    real = _features(study.real, extractor)
    found = {method: study.features(method, extractor) for method in study.methods if method != FLOOR}
    judged = {method: features for method, features in found.items() if method != TRUTH}
    common = sorted(set(real).intersection(*judged.values())) if judged else sorted(real)
    scores = {method: {"value": None, "status": _why_none(study, extractor), "n": 0} for method in judged}
    if len(common) < 3:
        return scores
    real_set = [real[clip] for clip in common]
    for method, features in judged.items():
        mine = [features[clip] for clip in common]
        se = jackknife_se(distance, mine, real_set)
        scores[method] = {"value": distance(mine, real_set), "se": se, "n": len(common), "status": "ok"}
        scores[method]["clips"] = len(features)
    scores[FLOOR] = _floor(study, distance, extractor, real_set, config)
    return scores


def _why_none(study: Study, extractor: str) -> str:
    ran = any(extractor in arrays for arrays in study.seen.values())
    return "too few clips that every method has" if ran else NO_WEIGHTS


def _floor(
    study: Study, distance: SetDistance, extractor: str, real: FeatureSet, config: ScoreConfig
) -> dict[str, Any]:
    """What the metric reads when nothing differs: other real clips if the manifest has them, else disjoint halves."""
    others = list(study.features(FLOOR, extractor).values()) if FLOOR in study.methods else []
    n = min(len(others), len(real))
    if n >= 3:
        first, second = others[:n], list(real[:n])
        se = jackknife_se(distance, first, second)
        return {"value": distance(first, second), "se": se, "n": n, "status": "ok", "how": "other real clips"}
    if len(real) < 6:
        return {"value": None, "n": len(real), "status": "too few clips for halves"}
    values = half_split_distance(distance, real, seed=config.seed)
    spread = float(values.std(ddof=1))
    how = "disjoint halves, mean of 20 splits"
    return {"value": float(values.mean()), "se": spread, "n": len(real) // 2, "status": "ok", "how": how}


def _clip_comparisons(study: Study, pair: str, config: ScoreConfig) -> list[dict[str, Any]]:
    """Paired tests of every per-clip metric on the clips both methods have a value for."""
    a, b = pair.split(">")
    tests = []
    for name, metric in CLIP_METRICS.items():
        first, second = study.values(a, name), study.values(b, name)
        clips = sorted(set(first) & set(second))
        if not metric.better or len(clips) < 3:
            continue
        test = paired_test([first[c] for c in clips], [second[c] for c in clips], config.resamples, config.seed)
        tests.append({"metric": name, "a": a, "b": b, "p": test.p_wilcoxon, **asdict(test)})
    return tests


def _set_comparison(study: Study, name: str, pair: str, config: ScoreConfig) -> list[dict[str, Any]]:
    """Label-swap test of two methods' distances to the real clips."""
    a, b = pair.split(">")
    extractor = SET_METRICS[name].extractor
    first, second, real = study.features(a, extractor), study.features(b, extractor), _features(study.real, extractor)
    clips = sorted(set(first) & set(second) & set(real))
    if not config.swap_draws or len(clips) < 3:
        return []
    sets = SetPair(*([side[c] for c in clips] for side in (first, second, real)))
    difference = DISTANCES[name](sets.a, sets.real) - DISTANCES[name](sets.b, sets.real)
    p = swap_label_p(DISTANCES[name], sets, config.swap_draws, config.seed)
    return [{"metric": name, "a": a, "b": b, "n": len(clips), "difference": difference, "p": p}]


def _flags(methods: dict[str, dict[str, Any]]) -> list[str]:
    """What a reader must not overlook: scores above the ground truth's, and scores over a part of the clips."""
    flags = []
    truth = methods.get(TRUTH, {}).get("sync_c", {}).get("mean", math.inf)
    for method, scores in methods.items():
        sync = scores.get("sync_c", {})
        if method != TRUTH and sync.get("mean", -math.inf) > truth:
            flags.append(f"{method}: Sync-C {sync['mean']:.2f} is above the ground truth's {truth:.2f}; suspect it.")
        for name in ("sync_c", "iqa"):  # one metric per extractor speaks for the others
            score = scores.get(name, {})
            if 0 < score.get("coverage", 1) < 1:
                missing = score["clips"] - score["n"]
                flags.append(
                    f"{method}: {CLIP_METRICS[name].label} has no value for {missing} of {score['clips']} clips."
                )
    return flags
