"""Numbers of clips -> numbers of methods: means with intervals, paired tests, red flags; the content of scores.json."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

from eval.records import CLIP_METRICS, Record
from eval.set_scores import set_records, set_scores
from eval.statistics import holm, mean_interval, paired_test
from eval.study import FEWEST_CLIPS, FLOOR, TRUTH, Score, ScoreConfig, Study


def score_methods(study: Study, config: ScoreConfig) -> tuple[Score, list[Record]]:
    """The content of scores.json (methods, comparisons, flags, protocol) and the records of the set metrics."""
    methods: dict[str, dict[str, Score]] = {method: _clip_scores(study, method, config) for method in study.methods}
    whole, set_tests = set_scores(study, config)
    for name, scores in whole.items():
        for method, score in scores.items():
            methods.setdefault(method, {})[name] = score
    tests = [test for a, b in config.pairs for test in _clip_tests(study, a, b, config)] + set_tests
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    content = {"methods": methods, "comparisons": tests, "flags": _flags(methods), "protocol": study.protocol}
    return content, set_records(whole, study.protocol)


def _clip_scores(study: Study, method: str, config: ScoreConfig) -> dict[str, Score]:
    """Mean, interval and coverage of each per-clip metric; what has no value is counted by its reason."""
    scores = {}
    for name in CLIP_METRICS:
        rows, values = study.rows(method, name), list(study.values(method, name).values())
        reasons = Counter(row.status for row in rows if row.status != "ok")
        score: Score = {"value": None, "clips": len(rows), "n": len(values), "coverage": len(values) / len(rows)}
        score |= {"unscored": dict(reasons), "status": "ok" if values else reasons.most_common(1)[0][0]}
        if values:
            interval = mean_interval(values, config.resamples, config.seed)
            score |= asdict(interval) | {"value": interval.mean}
        scores[name] = score
    return scores


def _clip_tests(study: Study, a: str, b: str, config: ScoreConfig) -> list[Score]:
    """Paired tests of the per-clip metrics in the table, on the clips both methods have a value for."""
    tests = []
    for name in (name for name, metric in CLIP_METRICS.items() if metric.shown):
        first, second = study.values(a, name), study.values(b, name)
        clips = sorted(set(first) & set(second))
        if len(clips) >= FEWEST_CLIPS:
            test = paired_test([first[c] for c in clips], [second[c] for c in clips], config.resamples, config.seed)
            tests.append({"metric": name, "a": a, "b": b, "p": test.p_wilcoxon, **asdict(test)})
    return tests


def _flags(methods: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """What a reader must not overlook: scores above the ground truth's, and scores over a part of the clips."""
    flags = []
    truth = methods.get(TRUTH, {}).get("sync_c", {}).get("value")
    ceiling = math.inf if truth is None else truth
    for method, scores in methods.items():
        value = scores.get("sync_c", {}).get("value")
        if method not in (TRUTH, FLOOR) and value is not None and value > ceiling:
            flags.append(f"{method}: Sync-C {value:.2f} is above the ground truth's {ceiling:.2f}; suspect it.")
        for name in ("sync_c", "iqa"):  # one metric per extractor speaks for the others
            score = scores.get(name, {"coverage": 1})
            if 0 < score["coverage"] < 1:
                gap = score["clips"] - score["n"]
                flags.append(f"{method}: {CLIP_METRICS[name].label} has no value for {gap} of {score['clips']} clips.")
    return flags
