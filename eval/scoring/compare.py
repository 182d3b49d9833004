"""Paired difference of two methods in one metric, from their values per clip, and the table that shows it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from eval.features.records import WHOLE_SET
from eval.metrics.clip_metrics import METRICS
from eval.scoring.eval_table import FEWEST_CLIPS
from eval.scoring.statistics import holm, paired_test

ALPHA, POWER = 0.05, 0.8
ByClip = Mapping[str, float]


@dataclass(frozen=True)
class Difference:
    """Method a minus method b in one metric, over the `n` clips that both have a value for.

    `removed` counts clips that only one has a value for. `low` and `high` are the 95 % interval of the difference,
    `win_rate` the share of clips on which a is higher (ties count half), `p` is Wilcoxon's and `p_holm` the same after
    Holm's correction over all tests made together. `detectable` is the difference that these clips would show with 80 %
    power at 5 %. `rests_on` names the values behind it; a whole set without cached features (n is 1) and fewer than
    three clips or groups have no spread, so these are None.
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
    means = Difference(metric, *names, len(shared), removed, float(a.mean()), float(b.mean()), float((a - b).mean()))
    if shared == [WHOLE_SET]:
        return replace(means, rests_on="one distance each")

    group_of = [(groups or {}).get(clip, clip) for clip in shared]
    means = replace(means, rests_on=clip_count(len(shared), len(set(group_of))))
    if len(set(group_of)) < FEWEST_CLIPS:
        return means
    test = paired_test(a.tolist(), b.tolist(), resamples, groups=group_of if groups else None)
    # Power is that of independent observations, so of the mean difference of each group.
    by_group: dict[str, list[float]] = {}
    for group, gap in zip(group_of, a - b, strict=True):
        by_group.setdefault(group, []).append(gap)
    smallest = detectable_difference(np.array([np.mean(gaps) for gaps in by_group.values()]))
    means = replace(means, low=test.low, high=test.high, win_rate=test.win_rate)
    return replace(means, p=test.p_wilcoxon, detectable=smallest)


def detectable_difference(differences: np.ndarray) -> float:
    """The mean difference that a paired t test on these n differences (n,) finds with 80 % power at 5 %.

    The usual sum of two quantiles of t, exact to a few per cent from five clips on.
    """
    n = len(differences)
    quantiles = stats.t.ppf(1 - ALPHA / 2, n - 1) + stats.t.ppf(POWER, n - 1)
    return float(quantiles * np.std(differences, ddof=1) / math.sqrt(n))


def clip_count(clips: int, groups: int) -> str:
    """Number of clips in words, with the number of groups where clips are not independent."""
    return f"{clips} clips" if clips == groups else f"{groups} groups of {clips} clips"


def adjusted(differences: Sequence[Difference]) -> list[Difference]:
    """The same with Holm's correction over all that have a p."""
    tested = [each for each in differences if each.p is not None]
    corrected = iter(holm([each.p for each in tested if each.p is not None]))
    return [each if each.p is None else replace(each, p_holm=next(corrected)) for each in differences]


def difference_lines(differences: Sequence[Difference]) -> list[str]:
    """A table in plain text, one line for each metric."""
    first = differences[0]
    lines = [f"a = {first.a}, b = {first.b}; win rate: share of clips on which a is the better one"]
    heads = ("metric", "a", "b", "a - b", "95 % interval", "win", "p", "p Holm", "detectable", "removed", "rests on")
    table = [heads, *(_cells(each) for each in differences)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    padded = [[text.rjust(width) for text, width in zip(row, widths, strict=True)] for row in table]
    # The last column is free text and stays as it is.
    return lines + ["  ".join([*cells[:-1], row[-1]]) for cells, row in zip(padded, table, strict=True)]


def _cells(each: Difference) -> tuple[str, ...]:
    metric = METRICS[each.metric]
    # `win_rate` counts the higher value; where lower is better the table shows the other clips.
    wins = each.win_rate if each.win_rate is None or metric.better >= 0 else 1 - each.win_rate

    def text(value: float | None, form: str) -> str:
        return "-" if value is None else format(value, form)

    digits = f".{metric.digits}f"
    interval = "-" if each.low is None else f"{text(each.low, digits)} .. {text(each.high, digits)}"
    means = (text(each.mean_a, digits), text(each.mean_b, digits), text(each.difference, f"+{digits}"))
    tests = (text(wins, ".2f"), text(each.p, ".2g"), text(each.p_holm, ".2g"), text(each.detectable, digits))
    return (metric.label, *means, interval, *tests, str(each.removed), each.rests_on)
