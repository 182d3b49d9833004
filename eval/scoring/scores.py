"""Scores of methods from records of clips: means with intervals, paired tests, flags; the content of scores.json."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict

import numpy as np

from eval.config import ScoreConfig
from eval.features.records import Record
from eval.manifest import FLOOR, TRUTH
from eval.metrics.clip_metrics import CLIP_METRICS
from eval.scoring.eval_table import FEWEST_CLIPS, EvalTable, Score
from eval.scoring.set_metrics import set_records, set_scores
from eval.scoring.statistics import holm, mean_interval, paired_test


def score_methods(table: EvalTable, config: ScoreConfig) -> tuple[Score, list[Record]]:
    """The content of scores.json (methods, comparisons, flags, protocol) and the records of the set metrics."""
    methods: dict[str, dict[str, Score]] = {method: _clip_scores(table, method, config) for method in table.methods}
    whole, set_tests = set_scores(table, config)
    for name, scores in whole.items():
        for method, score in scores.items():
            methods.setdefault(method, {})[name] = score
    tests = [test for a, b in config.pairs for test in _clip_tests(table, a, b, config)] + set_tests
    for test, adjusted in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["p_holm"] = adjusted
    content = {"methods": methods, "comparisons": tests, "flags": _flags(methods), "protocol": table.protocol}
    return content, set_records(whole, table.protocol)


def _clip_scores(table: EvalTable, method: str, config: ScoreConfig) -> dict[str, Score]:
    """Mean, interval and coverage of each per-clip metric; clips without a value are counted by reason."""
    scores = {}
    for name in CLIP_METRICS:
        rows, values = table.rows(method, name), table.values(method, name)
        reasons = Counter(row.status for row in rows if row.status != "ok")
        scored = sum(row.value is not None for row in rows)
        score: Score = {"value": None, "clips": len({row.clip_id for row in rows}), "n": len(values)}
        score |= {"coverage": scored / len(rows), "unscored": dict(reasons)}
        score["status"] = "ok" if values else reasons.most_common(1)[0][0]
        if values:
            groups = [table.group(clip) for clip in values] if table.groups else None
            interval = mean_interval(list(values.values()), config.resamples, config.seed, groups)
            score |= asdict(interval) | {"value": interval.mean} | _seed_spread(table, method, name)
        scores[name] = score
    return scores


def _seed_spread(table: EvalTable, method: str, name: str) -> Score:
    """`seed_sd`, the standard deviation between seeds of one clip, pooled over the clips that have several: how much of
    a clip's value is chance. Empty where every clip has one seed."""
    several = [values for values in table.by_seed(method, name).values() if len(values) > 1]
    if not several:
        return {}
    degrees = sum(len(values) - 1 for values in several)
    squares = sum(float(np.square(np.array(values) - np.mean(values)).sum()) for values in several)
    return {"seed_sd": math.sqrt(squares / degrees), "seed_clips": len(several)}


def _clip_tests(table: EvalTable, a: str, b: str, config: ScoreConfig) -> list[Score]:
    """Paired tests of the per-clip metrics in the table, on the clips that every method has a value for.

    A method that failed on a clip removes it for all, so that all tests of a metric rest on the same clips; `removed`
    counts such clips and `lacking` says how many each method lacks. A method without any value removes nothing.
    """
    tests = []
    for name in (name for name, metric in CLIP_METRICS.items() if metric.shown):
        values = {method: table.values(method, name) for method in table.methods if method != FLOOR}
        scored = {method: set(by_clip) for method, by_clip in values.items() if by_clip}
        if not {a, b} <= set(scored):
            continue
        clips, listed = sorted(set.intersection(*scored.values())), set.union(*scored.values())
        groups = [table.group(clip) for clip in clips]
        if len(set(groups)) < FEWEST_CLIPS:
            continue
        first, second = ([values[method][clip] for clip in clips] for method in (a, b))
        test = paired_test(first, second, config.resamples, config.seed, groups if table.groups else None)
        lacking = {method: len(listed - with_value) for method, with_value in scored.items() if listed - with_value}
        head = {"metric": name, "a": a, "b": b, "removed": len(listed) - len(clips), "lacking": lacking}
        tests.append({**head, "p": test.p_wilcoxon, **asdict(test)})
    return tests


def _flags(methods: Mapping[str, Mapping[str, Score]]) -> list[str]:
    """Warnings for the reader: scores above the ground truth's, and scores over a part of the clips."""
    flags = []
    truth = methods.get(TRUTH, {}).get("sync_c", {}).get("value")
    ceiling = math.inf if truth is None else truth
    for method, scores in methods.items():
        value = scores.get("sync_c", {}).get("value")
        if method not in (TRUTH, FLOOR) and value is not None and value > ceiling:
            flags.append(f"{method}: Sync-C {value:.2f} is above the ground truth's {ceiling:.2f}; suspect it.")
        for name in ("sync_c", "iqa", "csim", "hkc"):  # one metric per extractor speaks for the others
            score = scores.get(name, {"coverage": 1})
            if 0 < score["coverage"] < 1:
                gap = score["clips"] - score["n"]
                flags.append(f"{method}: {CLIP_METRICS[name].label} has no value for {gap} of {score['clips']} clips.")
    return flags
