"""What a sweep found: a row's mean and its spread between seeds, and its paired difference to the base row.

A clip's value is its mean over seeds before anything is tested, so that seeds do not pass for clips. A distance of
whole sets has one value per seed, and long videos are few: seeds are what their differences are sure by.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
    base row as in `eval.scoring.compare.Difference`; where the metric is of a whole set or clips are too few to test,
    the mean of the seeds' differences with its interval over seeds (None with one), untested: a few seeds are too few.
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
    check_protocols(*(table for of_seed in tables.values() for table in of_seed.values()))
    entries: list[Entry] = []
    for long, base, metrics in ((False, config.base, config.metrics), (True, config.long_base, config.long_metrics)):
        found = {row: tables[row] for row in config.rows if tables[row] and bool(config.rows[row].long) == long}
        reported = read_reported(config.reported) if config.reported and not long else {}
        for metric in metrics:
            entries += [
                entry_of(row, config.rows[row], metric, of_seed, found.get(base, {}), reported)
                for row, of_seed in found.items()
            ]
    return _with_holm(entries)


def context_rows(config: SweepConfig, places: Places) -> list[Entry]:
    """The ground truth and the floor beside the rows, as the base row's first seed has them."""
    tables = row_tables(config, places, config.base)
    first = dict(list(tables.items())[:1])
    rows = []
    for method, label in ((TRUTH, "ground truth"), (FLOOR, "real against real")):
        of_seed = {
            seed: [{**row, "method": JUDGED} for row in t if row["method"] == method] for seed, t in first.items()
        }
        if any(of_seed.values()):
            about = RowConfig(label=label)
            rows += [entry_of(method, about, metric, of_seed, {}, {}) for metric in config.metrics]
    return rows


def entry_of(
    row: str,
    about: RowConfig,
    metric: str,
    of_seed: Mapping[int, Table],
    base: Mapping[int, Table],
    reported: Mapping[str, Mapping[str, float]],
) -> Entry:
    """One row in one metric from its tables by seed, beside those of the base row with the same seeds."""
    per_seed = {seed: by_clip(table, JUDGED, metric) for seed, table in of_seed.items()}
    listed = [row for table in of_seed.values() for row in table if _is(row, metric)]
    values = over_seeds(per_seed)
    status = "ok" if values else next((row["status"] for row in listed), "not measured")
    protocol = listed[0]["protocol"] if listed else ""
    entry = Entry(row, about.label or row.replace("_", " "), bool(about.long), metric, protocol, status)
    entry = replace(entry, reported=reported.get(about.reported, {}).get(metric))
    entry = replace(entry, seeds=sum(map(bool, per_seed.values())), listed=len({row["clip_id"] for row in listed}))
    if not values:
        return entry
    means = [float(np.mean(list(each.values()))) for each in per_seed.values() if each]
    spread = float(np.std(means, ddof=1)) if len(means) > 1 else None
    entry = replace(entry, mean=float(np.mean(means)), seed_sd=spread, clips=len(values))
    if metric not in SET_METRICS:
        interval = mean_interval(list(values.values()))
        entry = replace(entry, low=interval.low, high=interval.high)
    if of_seed is base or not base:
        return entry
    shared = [seed for seed in of_seed if seed in base]
    of_base = {seed: by_clip(base[seed], JUDGED, metric) for seed in shared}
    of_row = {seed: per_seed[seed] for seed in shared}
    if metric in SET_METRICS:
        return _with_difference(entry, between_seeds(metric, row, of_row, of_base))
    found = difference(metric, (row, "base"), (over_seeds(of_row), over_seeds(of_base)))
    if found is not None and found.low is None and len(shared) > 1:
        seeds = between_seeds(metric, row, of_row, of_base)
        found = seeds and replace(seeds, removed=found.removed, rests_on=f"{seeds.rests_on} of {found.rests_on}")
    elif found is not None and len(shared) > 1:
        found = replace(found, rests_on=f"{found.rests_on}, means of {len(shared)} seeds")
    return _with_difference(entry, found)


def between_seeds(
    metric: str, row: str, of_row: Mapping[int, Mapping[str, float]], of_base: Mapping[int, Mapping[str, float]]
) -> Difference | None:
    """The mean of each seed's difference over the clips, or whole sets, that both have, and the 95 % interval of
    Student's t over the seeds; None where no seed has both."""
    shared = {seed: sorted(of_row[seed].keys() & of_base[seed].keys()) for seed in of_row}
    both = [seed for seed, clips in shared.items() if clips]
    if not both:
        return None
    mine, theirs = (
        np.array([np.mean([each[seed][clip] for clip in shared[seed]]) for seed in both]) for each in (of_row, of_base)
    )
    n, gaps = len(both), mine - theirs
    found = Difference(metric, row, "base", n, 0, float(mine.mean()), float(theirs.mean()), float(gaps.mean()))
    if n == 1:
        return replace(found, rests_on="1 seed")
    reach = float(stats.t.ppf(0.975, n - 1) * gaps.std(ddof=1) / np.sqrt(n))
    return replace(found, low=found.difference - reach, high=found.difference + reach, rests_on=f"{n} seeds")


def over_seeds(per_seed: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """clip -> mean over the seeds, of clips that have a value with every seed."""
    if not per_seed:
        return {}
    shared = set.intersection(*(set(values) for values in per_seed.values()))
    return {clip: float(np.mean([values[clip] for values in per_seed.values()])) for clip in sorted(shared)}


def orderings(entries: Sequence[Entry]) -> list[Ordering]:
    """How our order of the rows agrees with the paper's, for each metric that both have."""
    found = []
    for metric in dict.fromkeys(entry.metric for entry in entries):
        ours = {e.row: e.mean for e in entries if e.metric == metric and e.mean is not None and not e.long}
        theirs = {e.row: e.reported for e in entries if e.metric == metric and e.reported is not None}
        if (order := ordering(metric, ours, theirs)) is not None:
            found.append(order)
    return found


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


def _is(row: Mapping[str, Any], metric: str) -> bool:
    return (
        row["method"] == JUDGED and row["metric"] == metric and (row["clip_id"] != WHOLE_SET or metric in SET_METRICS)
    )


def _with_difference(entry: Entry, found: Difference | None) -> Entry:
    if found is None:
        return entry
    shown = {
        name: getattr(found, name) for name in ("difference", "win_rate", "p", "detectable", "removed", "rests_on")
    }
    return replace(entry, difference_low=found.low, difference_high=found.high, **shown)


def _with_holm(entries: Sequence[Entry]) -> list[Entry]:
    tests = [Difference(e.metric, e.row, "base", e.clips, e.removed, 0.0, 0.0, 0.0, p=e.p) for e in entries]
    return [replace(e, p_holm=test.p_holm) for e, test in zip(entries, adjusted(tests), strict=True)]
