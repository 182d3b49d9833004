"""Two methods on the clips they share: paired tests from the long tables and kept features of finished runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from scipy import stats

from common.errors import UserError
from common.runs import RunFolder
from eval.features.records import SET_METRICS, WHOLE_SET
from eval.metrics.clip_metrics import METRICS
from eval.metrics.set_metrics import DISTANCES, FeatureSets
from eval.scoring.paired import FeaturesMissingError, KeptFeatures, kept_features
from eval.scoring.statistics import Triple, holm, jackknife_se, paired_test, swap_test
from eval.scoring.study import FEWEST_CLIPS, REAL

ALPHA, POWER = 0.05, 0.8
ByClip = Mapping[str, float]
Table = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """Method a less method b in one metric, over the `n` clips that both have a value for.

    `removed` counts clips that only one has a value for. `low` and `high` are the 95 % interval of the difference,
    `win_rate` the share of clips on which a is higher (ties half), `p` is Wilcoxon's and `p_holm` what is left of it
    after all tests made together. `detectable` is the difference that these clips would show with 80 % power at 5 %.
    `rests_on` says what they come from; of a set whose features are gone (n is 1), and below three clips or groups,
    there is no spread over clips and these are None.
    """

    metric: str
    a: str
    b: str
    n: int
    removed: int
    mean_a: float
    mean_b: float
    difference: float
    low: float | None = None
    high: float | None = None
    win_rate: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    rests_on: str = ""


class CompareError(UserError, ValueError):
    """There is nothing that can be compared."""


def read_metrics(run: RunFolder) -> list[dict[str, Any]]:
    """The long table of a judged run. Raises CompareError where there is none."""
    path = Path(run.root) / "report" / "metrics.parquet"
    if not path.is_file():
        raise CompareError(f"{path} does not exist; judge the run first: omniavatar eval run --run {run.root}")
    return pq.read_table(path).to_pylist()


def by_clip(rows: Table, method: str, metric: str) -> dict[str, float]:
    """clip_id -> value of one method in one metric, the mean over seeds; the set itself has the id ""."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row["method"] == method and row["metric"] == metric and row["value"] is not None:
            found.setdefault(row["clip_id"], []).append(row["value"])
    return {clip: float(np.mean(values)) for clip, values in found.items()}


def check_protocols(*tables: Table) -> None:
    """Raises CompareError when tables were made by different protocols, whose numbers share no column."""
    found = sorted({row["protocol"] for rows in tables for row in rows})
    if len(found) > 1:
        raise CompareError(
            f"The protocols are {' and '.join(found)}; expected one. Judge both runs with the same "
            "eval.features.protocol."
        )


def difference(
    metric: str,
    names: tuple[str, str],
    values: tuple[ByClip, ByClip],
    groups: Mapping[str, str] | None = None,
    resamples: int = 10_000,
) -> Difference | None:
    """The paired difference of two methods in one metric; None when they share no clip.

    `groups`: clip_id -> video or speaker, for clips that are not independent.
    """
    first, second = values
    shared = sorted(set(first) & set(second))
    if not shared:
        return None
    a, b = (np.array([each[clip] for clip in shared]) for each in values)
    removed = len(set(first) | set(second)) - len(shared)
    found = Difference(metric, *names, len(shared), removed, float(a.mean()), float(b.mean()), float((a - b).mean()))
    if shared == [WHOLE_SET]:
        return replace(found, rests_on="one distance each")
    members = [(groups or {}).get(clip, clip) for clip in shared]
    found = replace(found, rests_on=_count(len(shared), len(set(members))))
    if len(set(members)) < FEWEST_CLIPS:
        return found
    test = paired_test(a.tolist(), b.tolist(), resamples, groups=members if groups else None)
    each = {name: [d for d, member in zip(a - b, members, strict=True) if member == name] for name in members}
    smallest = detectable_difference(np.array([np.mean(differences) for differences in each.values()]))
    found = replace(found, low=test.low, high=test.high, win_rate=test.win_rate)
    return replace(found, p=test.p_wilcoxon, detectable=smallest)


def detectable_difference(differences: np.ndarray) -> float:
    """The mean difference that a paired t test of so many clips with this spread finds with 80 % power at 5 %.

    The usual sum of two quantiles of t, exact to a few per cent from five clips on.
    """
    n = len(differences)
    quantiles = stats.t.ppf(1 - ALPHA / 2, n - 1) + stats.t.ppf(POWER, n - 1)
    return float(quantiles * np.std(differences, ddof=1) / math.sqrt(n))


def set_difference(
    metric: str, names: tuple[str, str], kept: tuple[KeptFeatures, KeptFeatures], groups: Mapping[str, str]
) -> Difference | None:
    """The difference of two methods in a distance of whole sets, over the clips both have; None below three.

    `p` is of labels swapped within clips, the interval from a jackknife over clips, both as often as the run of the
    first was told to. Both distances are to the same real videos: a clip that is held against another one in either run
    is removed. Raises FeaturesMissingError when two networks saw the videos.
    """
    if len({each.weights for each in kept}) > 1:
        raise FeaturesMissingError("the two runs were judged with different weights")
    first, second = (each.real for each in kept)
    real = {clip: first[clip] for clip in first if clip in second and np.array_equal(first[clip], second[clip])}
    sets = FeatureSets.joined({"a": kept[0].own, "b": kept[1].own, REAL: real}, lambda clip: groups.get(clip, clip))
    at, n = Triple(sets.where["a"], sets.where["b"], sets.where[REAL]), len(sets.where[REAL])
    if n < FEWEST_CLIPS:
        return None
    config, distance = kept[0].scores, DISTANCES[metric](sets.clips)

    def gap(chosen: np.ndarray, _: np.ndarray) -> float:
        return distance(at.a[chosen], at.real[chosen]) - distance(at.b[chosen], at.real[chosen])

    test = swap_test(distance, at, config.swap_draws, config.seed)
    reach = stats.t.ppf(1 - ALPHA / 2, n - 1) * jackknife_se(gap, np.arange(n), np.arange(n), config.jackknife_groups)
    means = distance(at.a, at.real), distance(at.b, at.real)
    removed = len(set(kept[0].own) | set(kept[1].own)) - sets.n
    found = Difference(metric, *names, sets.n, removed, *means, test.difference)
    found = replace(found, low=test.difference - reach, high=test.difference + reach)
    if not config.swap_draws:
        return replace(found, rests_on=_count(sets.n, n))
    quantiles = float(stats.norm.ppf(1 - ALPHA / 2) + stats.norm.ppf(POWER))
    how = f"{test.draws} swaps of {_count(sets.n, n)}"
    return replace(found, p=test.p, detectable=quantiles * test.spread, rests_on=how)


def _count(clips: int, groups: int) -> str:
    return f"{clips} clips" if clips == groups else f"{groups} groups of {clips} clips"


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over all that have a p."""
    tested = [each for each in differences if each.p is not None]
    corrected = iter(holm([each.p for each in tested if each.p is not None]))
    return [each if each.p is None else replace(each, p_holm=next(corrected)) for each in differences]


def compare_methods(
    tables: tuple[Table, Table],
    methods: tuple[str, str],
    names: tuple[str, str],
    metrics: Sequence[str],
    groups: Mapping[str, str] | None = None,
    runs: tuple[RunFolder, RunFolder] | None = None,
) -> list[Difference]:
    """Every metric that a method of one table and one of another both have, with Holm's correction over them.

    `names` are what the two are called in the result. `runs` are those of the tables: distances of whole sets are
    tested with the features in their caches, and are two numbers without. Raises CompareError when a method is not in
    its table, the protocols differ, or nothing is shared.
    """
    check_protocols(*tables)
    for rows, method in zip(tables, methods, strict=True):
        known = sorted({row["method"] for row in rows})
        if method not in known:
            raise CompareError(f"Method {method!r} was not judged there; the methods are {', '.join(known)}.")
    found = []
    for metric in metrics:
        values = (by_clip(tables[0], methods[0], metric), by_clip(tables[1], methods[1], metric))
        between = difference(metric, names, values, groups)
        if between is not None and runs is not None and metric in SET_METRICS:
            between = _tested(between, runs, methods, groups or {})
        found.append(between)
    shared = [each for each in found if each is not None]
    if not shared:
        raise CompareError(f"{names[0]} and {names[1]} have no clip in common; judge both on the same test set.")
    return adjusted(shared)


def _tested(
    found: Difference, runs: tuple[RunFolder, RunFolder], methods: tuple[str, str], groups: Mapping[str, str]
) -> Difference:
    """The same from the features of both runs; as it is, with the reason, where they are gone."""
    extractor = SET_METRICS[found.metric].extractor
    try:
        kept = (kept_features(runs[0], methods[0], extractor), kept_features(runs[1], methods[1], extractor))
        tested = set_difference(found.metric, (found.a, found.b), kept, groups)
    except FeaturesMissingError as reason:
        return replace(found, rests_on=f"one distance each: {reason}")
    return tested or replace(found, rests_on=f"one distance each: fewer than {FEWEST_CLIPS} clips in common")


def read_groups(run: RunFolder) -> dict[str, str]:
    """clip_id -> video or speaker, of the clips whose manifest names one."""
    path = Path(run.root) / "videos" / "manifest.parquet"
    if not path.is_file() or "group" not in pq.read_schema(path).names:
        return {}
    rows = pq.read_table(path, columns=["clip_id", "group"]).to_pylist()
    return {row["clip_id"]: row["group"] for row in rows if row["group"]}


def difference_lines(found: Sequence[Difference]) -> list[str]:
    """A table in plain text, one line for each metric."""
    first = found[0]
    lines = [f"a = {first.a}, b = {first.b}; win rate: share of clips on which a is the better one"]
    heads = ("metric", "a", "b", "a - b", "95 % interval", "win", "p", "p Holm", "detectable", "removed", "rests on")
    table = [heads, *(_words(each) for each in found)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    beside = [[text.rjust(width) for text, width in zip(row, widths, strict=True)] for row in table]
    return lines + ["  ".join([*cells[:-1], row[-1]]) for cells, row in zip(beside, table, strict=True)]


def _words(found: Difference) -> tuple[str, ...]:
    metric = METRICS[found.metric]
    wins = found.win_rate if found.win_rate is None or metric.better >= 0 else 1 - found.win_rate

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    digits = f".{metric.digits}f"
    interval = "-" if found.low is None else f"{text(found.low, digits)} .. {text(found.high, digits)}"
    means = (text(found.mean_a, digits), text(found.mean_b, digits), text(found.difference, f"+{digits}"))
    tests = (text(wins, ".2f"), text(found.p, ".2g"), text(found.p_holm, ".2g"), text(found.detectable, digits))
    return (metric.label, *means, interval, *tests, str(found.removed), found.rests_on)
