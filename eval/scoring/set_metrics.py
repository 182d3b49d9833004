"""FID, KID, FVD and KVD of whole sets: the distance of each method to the real clips, its error, floor and tests."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eval.config import ScoreConfig
from eval.features.records import NO_WEIGHTS, NOT_NAMED, SET_METRICS, WHOLE_SET, Record
from eval.manifest import FLOOR, TRUTH
from eval.metrics.frechet import ClipDistance, FeatureSet, frechet_between, kernel_between
from eval.scoring.eval_table import FEWEST_CLIPS, REAL, EvalTable, Score
from eval.scoring.statistics import Triple, half_split_distances, jackknife_se, swap_test

DISTANCES: dict[str, Callable[[FeatureSet], ClipDistance]] = {
    "fid": frechet_between,
    "kid": kernel_between,
    "fvd": frechet_between,
    "kvd": kernel_between,
    "fvd_slow": frechet_between,
    "kvd_slow": kernel_between,
}


@dataclass(frozen=True)
class FeatureSets:
    """One extractor's clips of all methods and of the real videos in one list, and where in it each set lies.

    Only clips that every method has are used, so that all distances rest on the same clips and equal n; the clips of
    FLOOR are different ones and are used whole. Clips of one group (video or speaker) are joined into one, so that
    resampling later draws, leaves out or swaps whole groups. `clips_behind` counts the clips of each set.
    """

    clips: FeatureSet
    where: dict[str, np.ndarray]
    clips_behind: dict[str, int]

    @classmethod
    def of(cls, table: EvalTable, extractor: str) -> "FeatureSets":
        """The features of all methods of a table."""
        names = [method for method in table.methods if method != TRUTH] + [REAL]
        return cls.joined({name: table.features(name, extractor) for name in names}, table.group)

    @classmethod
    def joined(cls, features: Mapping[str, Mapping[str, np.ndarray]], group: Callable[[str], str]) -> "FeatureSets":
        """From the rows (n, d) of each clip_id of each set, REAL among them; `group` names the group of a clip.

        Sets with the same rows for a clip share one entry, so that rounding cannot separate exact copies.
        """
        common = set.intersection(*(set(by_clip) for name, by_clip in features.items() if name != FLOOR))
        clips: list[np.ndarray] = []
        positions: dict[str, list[int]] = {}
        where, behind = {}, {}
        for name, by_clip in features.items():
            chosen: dict[str, list[np.ndarray]] = {}
            for clip in sorted(by_clip):
                if name == FLOOR or clip in common:
                    chosen.setdefault(group(clip), []).append(by_clip[clip])
            entries = [
                _entry(np.concatenate(rows), clips, positions.setdefault(each, [])) for each, rows in chosen.items()
            ]
            where[name] = np.array(entries, int)
            behind[name] = sum(len(rows) for rows in chosen.values())
        return cls(clips, where, behind)

    @property
    def judged(self) -> list[str]:
        """Methods that are measured against the real clips."""
        return [name for name in self.where if name not in (REAL, FLOOR)]

    @property
    def n(self) -> int:
        """Clips behind every distance."""
        return self.clips_behind[REAL]


def _entry(rows: np.ndarray, clips: list[np.ndarray], positions: list[int]) -> int:
    """Position of `rows` in `clips`; appended if none of the `positions` of the same group holds equal rows."""
    same = [position for position in positions if np.array_equal(clips[position], rows)]
    if same:
        return same[0]
    clips.append(rows)
    positions.append(len(clips) - 1)
    return positions[-1]


def set_scores(table: EvalTable, config: ScoreConfig) -> tuple[dict[str, dict[str, Score]], list[Score]]:
    """metric -> method -> score, FLOOR among the methods; and the label-swap tests of `config.comparisons`."""
    scores: dict[str, dict[str, Score]] = {}
    tests: list[Score] = []
    for name, metric in SET_METRICS.items():
        if metric.only not in ("", table.protocol):
            continue
        sets = FeatureSets.of(table, metric.extractor)
        if len(sets.where[REAL]) < FEWEST_CLIPS:
            reason = _missing_reason(table, metric.extractor)
            scores[name] = {method: {"value": None, "n": 0, "status": reason} for method in sets.judged}
            continue
        distance = DISTANCES[name](sets.clips)
        scores[name] = {method: _score(distance, sets, method, config) for method in sets.judged}
        scores[name][FLOOR] = _floor(distance, sets.where, config)
        tests += [{"metric": name} | test for test in _tests(distance, sets, config)]
    return scores, tests


def _missing_reason(table: EvalTable, extractor: str) -> str:
    """Why sets cannot be compared: no weights, no real videos, or too few clips, with the commonest reason."""
    outputs = [arrays[extractor] for arrays in table.arrays.values() if extractor in arrays]
    if not outputs:
        return NO_WEIGHTS
    if not any(extractor in arrays for arrays in table.real_arrays.values()):
        return NOT_NAMED
    reasons = Counter(str(arrays.get("status", "ok")) for arrays in outputs if "features" not in arrays)
    few = "too few clips that every method has"
    return f"{few}: {reasons.most_common(1)[0][0]}" if reasons else few


def set_records(scores: Mapping[str, Mapping[str, Score]], protocol: str) -> list[Record]:
    """The set scores as rows of the long table."""
    return [
        Record(method, WHOLE_SET, name, score["value"], score["status"], score["n"], protocol, 0)
        for name, methods in scores.items()
        for method, score in methods.items()
    ]


def _score(distance: ClipDistance, sets: FeatureSets, method: str, config: ScoreConfig) -> Score:
    pair = (sets.where[method], sets.where[REAL])
    se = jackknife_se(distance, *pair, config.jackknife_groups)
    return {"value": distance(*pair), "se": se, "n": sets.n, "status": "ok"}


def _floor(distance: ClipDistance, where: Mapping[str, np.ndarray], config: ScoreConfig) -> Score:
    """The distance where nothing differs: to other real clips if the manifest has any, else between two halves."""
    real, others = where[REAL], where.get(FLOOR, np.arange(0))
    n = min(len(others), len(real))
    if n >= FEWEST_CLIPS:
        se = jackknife_se(distance, others[:n], real[:n], config.jackknife_groups)
        value = distance(others[:n], real[:n])
        return {"value": value, "se": se, "n": n, "status": "ok", "how": "other real clips"}
    if len(real) < 2 * FEWEST_CLIPS:
        return {"value": None, "n": 0, "status": "too few clips for two halves"}
    values = half_split_distances(distance, real, seed=config.seed)
    how = "disjoint halves, 20 random splits"
    value, spread = float(values.mean()), float(values.std(ddof=1))
    return {"value": value, "se": spread, "n": len(real) // 2, "status": "ok", "how": how}


def _tests(distance: ClipDistance, sets: FeatureSets, config: ScoreConfig) -> list[Score]:
    tests = []
    for a, b in config.pairs if config.swap_draws else []:
        if a in sets.judged and b in sets.judged:
            clips = Triple(sets.where[a], sets.where[b], sets.where[REAL])
            test = swap_test(distance, clips, config.swap_draws, config.seed)
            tests.append({"a": a, "b": b, "n": sets.n, "difference": test.difference, "p": test.p})
    return tests
