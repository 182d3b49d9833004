"""The numbers of a sweep: every row's mean and its spread between seeds, and its paired difference to the base row.

A clip's value is its mean over seeds before anything is tested, so that seeds do not count as clips. A distance of
whole sets has one value per seed, and long videos are few: their differences have an interval over seeds and no test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from scipy import stats

from common.runs import RunFolder
from eval.features.records import SET_METRICS, WHOLE_SET
from eval.manifest import FLOOR, TRUTH
from eval.metrics.clip_metrics import METRICS
from eval.reporting.reported import Ordering, ordering, read_reported
from eval.scoring.compare import Difference, adjusted, difference
from eval.scoring.eval_table import Table, by_clip, check_protocols, read_metrics
from eval.scoring.statistics import mean_interval
from pipelines.config import JUDGED
from pipelines.sweep.settings import Places, RowConfig, SweepConfig


@dataclass(frozen=True)
class Entry:
    """One row in one metric.

    `mean` is over clips and seeds, `seed_sd` the standard deviation of the seeds' means (None with one seed), `low` and
    `high` the 95 % interval over clips; `clips` of `listed` have a value. What follows `seeds` is the difference to the
    base row as in `eval.scoring.compare.Difference`. Where the metric is of a whole set or clips are too few to test,
    it is the mean of the seeds' differences with its interval over seeds (None with one seed) and without a p.
    `rests_on` says which of the two. `reported` is the paper's number, of other clips.
    """

    row: str
    label: str
    long: bool
    metric: str
    protocol: str
    status: str
    mean: float | None = None
    seed_sd: float | None = None
    low: float | None = None
    high: float | None = None
    clips: int = 0
    listed: int = 0
    seeds: int = 0
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    win_rate: float | None = None
    p: float | None = None
    p_holm: float | None = None
    detectable: float | None = None
    removed: int = 0
    rests_on: str = ""
    reported: float | None = None


COLUMNS = tuple(column.name for column in fields(Entry))


def sweep_entries(config: SweepConfig, places: Places) -> list[Entry]:
    """Every row in every metric of the table, from the rows that are finished; Holm's correction is over all tests."""
    tables = {row: row_tables(config, places, row) for row in config.rows}
    check_protocols(*(table for by_seed in tables.values() for table in by_seed.values()))
    entries: list[Entry] = []
    for long, base, metrics in ((False, config.base, config.metrics), (True, config.long_base, config.long_metrics)):
        rows = [row for row in config.rows if tables[row] and bool(config.rows[row].long) == long]
        reported = read_reported(config.reported) if config.reported and not long else {}
        for metric in metrics:
            for row in rows:
                base_tables = tables[base] if base in rows and row != base else {}
                entries.append(entry_of(row, config.rows[row], metric, tables[row], base_tables, reported))
    return _with_holm(entries)


def context_rows(config: SweepConfig, places: Places) -> list[Entry]:
    """The ground truth and the floor, as the base row's first finished seed has them."""
    first_seed = dict(list(row_tables(config, places, config.base).items())[:1])
    judged = {line["method"] for table in first_seed.values() for line in table}
    entries = []
    for method, label in ((TRUTH, "ground truth"), (FLOOR, "real against real")):
        if method in judged:
            settings = RowConfig(label=label)
            entries += [
                entry_of(method, settings, metric, first_seed, {}, {}, method=method) for metric in config.metrics
            ]
    return entries


def entry_of(
    row: str,
    settings: RowConfig,
    metric: str,
    tables: Mapping[int, Table],
    base_tables: Mapping[int, Table],
    reported: Mapping[str, Mapping[str, float]],
    method: str = JUDGED,
) -> Entry:
    """One row in one metric. `tables` and `base_tables`: seed -> metrics.parquet of the row and of the base row, the
    latter empty for the base row itself. `reported`: row of the paper -> metric -> value."""
    values = {seed: by_clip(table, method, metric) for seed, table in tables.items()}
    base_values = {seed: by_clip(table, JUDGED, metric) for seed, table in base_tables.items()}
    # Lines without a value count too: they say how many clips were tried, and why there is none.
    lines = [line for table in tables.values() for line in table if _belongs(line, method, metric)]
    measured = bool(over_seeds(values))
    reasons = [line["status"] for line in lines] or ["not measured"]
    to_base = difference_to_base(row, metric, values, base_values) if measured else None
    return Entry(
        row=row,
        label=settings.label or row.replace("_", " "),
        long=bool(settings.long),
        metric=metric,
        protocol=lines[0]["protocol"] if lines else "",
        status="ok" if measured else reasons[0],
        listed=len({line["clip_id"] for line in lines}),
        seeds=sum(1 for by_id in values.values() if by_id),
        reported=reported.get(settings.reported, {}).get(metric),
        **(_statistics(metric, values) if measured else {}),
        **(_entry_fields(to_base) if to_base else {}),
    )


def _belongs(line: Mapping[str, Any], method: str, metric: str) -> bool:
    """Whether a line of metrics.parquet is of this method and metric: a clip's, or the whole set's for a set metric."""
    of_clip = line["clip_id"] != WHOLE_SET
    return line["method"] == method and line["metric"] == metric and (of_clip or metric in SET_METRICS)


def _statistics(metric: str, values: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """The fields of an Entry about the row alone; `values`: seed -> clip -> value, at least one clip in all seeds."""
    clip_means = over_seeds(values)
    seed_means = [float(np.mean(list(by_id.values()))) for by_id in values.values() if by_id]
    spread = float(np.std(seed_means, ddof=1)) if len(seed_means) > 1 else None
    statistics = {"mean": float(np.mean(seed_means)), "seed_sd": spread, "clips": len(clip_means)}
    if metric in SET_METRICS:  # one value per seed: nothing to draw an interval over clips from
        return statistics
    interval = mean_interval(list(clip_means.values()))
    return statistics | {"low": interval.low, "high": interval.high}


def difference_to_base(
    row: str,
    metric: str,
    values: Mapping[int, Mapping[str, float]],
    base_values: Mapping[int, Mapping[str, float]],
) -> Difference | None:
    """The row minus the base row on the seeds that both have (seed -> clip -> value); None where they share nothing."""
    shared = [seed for seed in values if seed in base_values]
    own, base = ({seed: each[seed] for seed in shared} for each in (values, base_values))
    if metric in SET_METRICS:
        return between_seeds(metric, row, own, base)
    paired = difference(metric, (row, "base"), (over_seeds(own), over_seeds(base)))
    if paired is None or len(shared) < 2:
        return paired
    if paired.low is not None:
        return replace(paired, rests_on=f"{paired.rests_on}, means of {len(shared)} seeds")
    # Too few clips for a test: the seeds are all that an interval can rest on.
    seeds = between_seeds(metric, row, own, base)
    return seeds and replace(seeds, removed=paired.removed, rests_on=f"{seeds.rests_on} of {paired.rests_on}")


def between_seeds(
    metric: str, row: str, own: Mapping[int, Mapping[str, float]], base: Mapping[int, Mapping[str, float]]
) -> Difference | None:
    """The mean of each seed's difference over the clips, or whole sets, that both have, and the 95 % interval of
    Student's t over the seeds; None where no seed has both."""
    shared = {seed: sorted(own[seed].keys() & base[seed].keys()) for seed in own}
    seeds = [seed for seed, clips in shared.items() if clips]
    if not seeds:
        return None
    own_means, base_means = (
        np.array([np.mean([each[seed][clip] for clip in shared[seed]]) for seed in seeds]) for each in (own, base)
    )
    n, gaps = len(seeds), own_means - base_means
    means = float(own_means.mean()), float(base_means.mean())
    mean_gap = float(gaps.mean())
    if n == 1:
        return Difference(metric, row, "base", n, 0, *means, mean_gap, rests_on="1 seed")
    reach = float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / np.sqrt(n))
    return Difference(
        metric, row, "base", n, 0, *means, mean_gap, mean_gap - reach, mean_gap + reach, rests_on=f"{n} seeds"
    )


def over_seeds(per_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """clip -> mean over the seeds, of clips that have a value with every seed."""
    if not per_seed:
        return {}
    shared = set.intersection(*(set(values) for values in per_seed.values()))
    return {clip: float(np.mean([values[clip] for values in per_seed.values()])) for clip in sorted(shared)}


def orderings(entries: Sequence[Entry]) -> list[Ordering]:
    """Agreement of our order of the rows with the paper's, for each metric that both have."""
    orders = []
    for metric in dict.fromkeys(entry.metric for entry in entries):
        ours = {e.row: e.mean for e in entries if e.metric == metric and e.mean is not None and not e.long}
        theirs = {e.row: e.reported for e in entries if e.metric == metric and e.reported is not None}
        orders.append(ordering(metric, ours, theirs))
    return [order for order in orders if order is not None]


def is_better(entry: Entry) -> bool:
    """Whether the tests say that the row is better than the base row in this metric."""
    return _rejects(entry) and (entry.difference or 0.0) * METRICS[entry.metric].better > 0


def is_worse(entry: Entry) -> bool:
    """Whether the tests say that the row is worse than the base row in this metric."""
    return _rejects(entry) and (entry.difference or 0.0) * METRICS[entry.metric].better < 0


def _rejects(entry: Entry) -> bool:
    return entry.p_holm is not None and entry.p_holm < 0.05


def row_tables(config: SweepConfig, places: Places, row: str) -> dict[int, Table]:
    """Seed -> the long table of a row, of the seeds that are judged."""
    folders = {seed: places.row(row, seed) for seed in config.seeds}
    done = {seed: folder for seed, folder in folders.items() if (folder / "report" / "metrics.parquet").exists()}
    return {seed: read_metrics(RunFolder(folder)) for seed, folder in done.items()}


def _entry_fields(to_base: Difference) -> dict[str, Any]:
    """The fields of an Entry about the difference to the base row."""
    same_name = ("difference", "win_rate", "p", "detectable", "removed", "rests_on")
    figures = asdict(to_base)
    bounds = {"difference_low": to_base.low, "difference_high": to_base.high}
    return {name: figures[name] for name in same_name} | bounds


def _with_holm(entries: Sequence[Entry]) -> list[Entry]:
    tests = [Difference(e.metric, e.row, "base", e.clips, e.removed, 0.0, 0.0, 0.0, p=e.p) for e in entries]
    return [replace(e, p_holm=test.p_holm) for e, test in zip(entries, adjusted(tests), strict=True)]
