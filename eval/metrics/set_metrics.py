"""FID, KID, FVD and KVD of whole sets: the distance of each method to the real clips, its error, floor and tests."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from eval.config import ScoreConfig
from eval.features.records import NO_WEIGHTS, NOT_NAMED, SET_METRICS, WHOLE_SET, Record
from eval.manifest import FLOOR, TRUTH
from eval.metrics.frechet import ClipDistance, FeatureSet, frechet_between, kernel_between
from eval.scoring.statistics import Triple, half_split_distances, jackknife_se, swap_test
from eval.scoring.study import FEWEST_CLIPS, REAL, EvalTable, Score

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

    Only clips that every method has are taken, so that all distances rest on the same clips and equal n; the clips of
    FLOOR are others and are taken whole. Clips of one group (video or speaker) are joined into one, so that whatever is
    drawn, left out or swapped later goes by group. `clips_behind` counts the clips of each set.
    """

    clips: FeatureSet
    where: dict[str, np.ndarray]
    clips_behind: dict[str, int]

    @classmethod
    def of(cls, study: EvalTable, extractor: str) -> "FeatureSets":
        """Gather the features of a study."""
        names = [method for method in study.methods if method != TRUTH] + [REAL]
        return cls.joined({name: study.features(name, extractor) for name in names}, study.group)

    @classmethod
    def joined(cls, features: Mapping[str, Mapping[str, np.ndarray]], group: Callable[[str], str]) -> "FeatureSets":
        """From the rows (n, d) of each clip_id of each set, REAL among them; `group` names what a clip is of.

        Sets with the same rows for a clip share its place, so that copies are not apart by as much as rounding.
        """
        common = set.intersection(*(set(found) for name, found in features.items() if name != FLOOR))
        clips: list[np.ndarray] = []
        places: dict[str, list[int]] = {}
        where, behind = {}, {}
        for name, found in features.items():
            chosen: dict[str, list[np.ndarray]] = {}
            for clip in sorted(found):
                if name == FLOOR or clip in common:
                    chosen.setdefault(group(clip), []).append(found[clip])
            at = [_place(np.concatenate(rows), clips, places.setdefault(each, [])) for each, rows in chosen.items()]
            where[name] = np.array(at, int)
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


def _place(rows: np.ndarray, clips: list[np.ndarray], places: list[int]) -> int:
    """Where in `clips` the rows are, put there if none of `places`, to which it belongs, holds the same."""
    same = [place for place in places if np.array_equal(clips[place], rows)]
    if same:
        return same[0]
    clips.append(rows)
    places.append(len(clips) - 1)
    return places[-1]


def set_scores(study: EvalTable, config: ScoreConfig) -> tuple[dict[str, dict[str, Score]], list[Score]]:
    """metric -> method -> score, FLOOR among the methods; and the label-swap tests of `config.comparisons`."""
    scores: dict[str, dict[str, Score]] = {}
    tests: list[Score] = []
    for name, metric in SET_METRICS.items():
        if metric.only not in ("", study.protocol):
            continue
        sets = FeatureSets.of(study, metric.extractor)
        if len(sets.where[REAL]) < FEWEST_CLIPS:
            why = _why_none(study, metric.extractor)
            scores[name] = {method: {"value": None, "n": 0, "status": why} for method in sets.judged}
            continue
        distance = DISTANCES[name](sets.clips)
        scores[name] = {method: _score(distance, sets, method, config) for method in sets.judged}
        scores[name][FLOOR] = _floor(distance, sets.where, config)
        tests += [{"metric": name} | test for test in _tests(distance, sets, config)]
    return scores, tests


def _why_none(study: EvalTable, extractor: str) -> str:
    """What keeps sets from being compared: no weights, no real videos, or too few clips, and the commonest reason."""
    found = [arrays[extractor] for arrays in study.seen.values() if extractor in arrays]
    if not found:
        return NO_WEIGHTS
    if not any(extractor in arrays for arrays in study.real.values()):
        return NOT_NAMED
    reasons = Counter(str(arrays.get("status", "ok")) for arrays in found if "features" not in arrays)
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
    """What the metric reads when nothing differs: other real clips if the manifest has them, else disjoint halves."""
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
