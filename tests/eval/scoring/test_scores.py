"""From records and features to scores.json: pairing, equal clips, floor, coverage and red flags."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from eval.config import ScoreConfig
from eval.features.records import NO_WEIGHTS, ClipFeatures, Features, Record
from eval.manifest import FLOOR
from eval.metrics.clip_metrics import clip_records
from eval.scoring.eval_table import REAL, EvalTable
from eval.scoring.scores import score_methods
from eval.scoring.set_metrics import FeatureSets

CONFIG = ScoreConfig(comparisons=("adapter>base",), resamples=300, swap_draws=19)


def make_table(offsets: dict[str, float], clips: int = 10, seed: int = 0) -> EvalTable:
    """Methods whose Sync-C is the clip's own value plus an offset, features that move away by the same."""
    rng = np.random.default_rng(seed)
    records: list[Record] = []
    seen: dict[str, dict[str, Any]] = {}
    real: dict[str, dict[str, Any]] = {}
    for i in range(clips):
        clip, level = f"c{i}", rng.normal(6, 1)
        features = rng.normal(size=(3, 5))
        real[clip] = {"fid": {"features": features}, "fvd": {"features": features[:1]}}
        for method, offset in offsets.items():
            value = level + offset + rng.normal(0, 0.1)
            sync = {"sync_c": value, "sync_d": 12 - value, "sync_c_valid": value, "sync_offset": 0, "offset_zero": 1}
            moved = features + offset + rng.normal(0, 0.05, features.shape)
            arrays: dict[str, Any] = {"sync": {**sync, "windows": 40, "status": "ok"}, "fid": {"features": moved}}
            seen[f"{method}/{clip}"] = arrays | {"fvd": {"features": moved[:1]}}
            records += rows(method, clip, arrays)
    return EvalTable(records, seen, real, "paper")


def rows(method: str, clip: str, arrays: dict[str, Any], failure: str = "") -> list[Record]:
    row = {"method": method, "clip_id": clip, "seed": 0}
    return clip_records(row, ClipFeatures(Features(arrays, failure)), {"sync", "fid", "fvd"}, "paper")


def test_a_planted_difference_is_paired_by_clip() -> None:
    scores, _ = score_methods(make_table({"ground_truth": 0.5, "adapter": 0.0, "base": -1.0}), CONFIG)
    test = next(t for t in scores["comparisons"] if t["metric"] == "sync_c")
    # The clips differ by a sd of 1, the two methods on one clip by 0.14: only pairing shows so narrow an interval.
    assert test["difference"] == pytest.approx(1.0, abs=0.15) and test["high"] - test["low"] < 0.3
    assert test["p_greater"] == 1 / 2**10 and test["win_rate"] == 1.0
    assert scores["methods"]["adapter"]["sync_c"]["n"] == 10 and scores["flags"] == []
    assert {t["metric"] for t in scores["comparisons"]} == {
        "sync_c",
        "sync_d",
        "offset_zero",
        "fid",
        "kid",
        "fvd",
        "kvd",
    }


def test_set_distances_grow_with_the_distance_and_have_errors_and_a_floor() -> None:
    scores, records = score_methods(make_table({"ground_truth": 0.0, "adapter": 0.1, "base": 1.0}), CONFIG)
    methods = scores["methods"]
    for name in ("fid", "kid", "fvd", "kvd"):
        assert methods["adapter"][name]["value"] < methods["base"][name]["value"]
        assert methods["base"][name]["se"] > 0 and methods["base"][name]["n"] == 10
        assert methods[FLOOR][name]["n"] == 5 and "halves" in methods[FLOOR][name]["how"]
    assert name not in methods["ground_truth"]
    assert methods["base"]["fid"]["value"] == pytest.approx(5.0, rel=0.15)  # five features, each moved by one
    assert {(r.method, r.metric) for r in records if r.clip_id == ""} == {
        (method, name) for method in ("adapter", "base", FLOOR) for name in ("fid", "kid", "fvd", "kvd")
    }


def test_a_clip_that_one_method_lacks_leaves_every_set_distance() -> None:
    table = make_table({"ground_truth": 0.0, "adapter": 0.1, "base": 1.0})
    del table.arrays["base/c3"]["fid"]  # type: ignore[attr-defined]
    sets = FeatureSets.of(table, "fid")
    assert sets.n == 9 and {name: len(where) for name, where in sets.where.items()} == {
        "adapter": 9,
        "base": 9,
        REAL: 9,
    }
    scores, _ = score_methods(table, CONFIG)
    assert {scores["methods"][m]["fid"]["n"] for m in ("adapter", "base")} == {9}
    assert scores["methods"]["adapter"]["fvd"]["n"] == 10


def test_other_real_clips_are_the_floor_when_the_manifest_has_them() -> None:
    table = make_table({"ground_truth": 0.0, "adapter": 0.1})
    others = make_table({FLOOR: 0.0}, clips=6, seed=9)
    both = EvalTable([*table.records, *others.records], {**table.arrays, **others.arrays}, table.real_arrays, "paper")
    floor = score_methods(both, CONFIG)[0]["methods"][FLOOR]
    assert floor["fid"]["how"] == "other real clips" and floor["fid"]["n"] == 6
    assert floor["sync_c"]["n"] == 6


def test_clips_without_a_value_are_counted_and_flagged_never_zero() -> None:
    table = make_table({"ground_truth": 0.5, "adapter": 0.0, "base": -1.0})
    kept = [r for r in table.records if (r.method, r.clip_id) not in {("base", "c0"), ("base", "c1")}]
    lost = rows("base", "c0", {"sync": {"status": "no face"}}) + rows("base", "c1", {}, "cannot be read")
    scores, _ = score_methods(EvalTable([*kept, *lost], table.arrays, table.real_arrays, "paper"), CONFIG)
    base = scores["methods"]["base"]["sync_c"]
    assert base["n"] == 8 and base["clips"] == 10 and base["coverage"] == 0.8
    assert base["unscored"] == {"no face": 1, "failed: cannot be read": 1}
    assert scores["flags"] == ["base: Sync-C has no value for 2 of 10 clips."]
    assert next(t for t in scores["comparisons"] if t["metric"] == "sync_c")["n"] == 8


def test_a_clip_that_one_method_lacks_leaves_every_paired_test_and_is_counted() -> None:
    table = make_table({"ground_truth": 0.5, "adapter": 0.0, "base": -1.0, "other": 0.0})
    records = [r for r in table.records if (r.method, r.clip_id) != ("other", "c4")] + rows("other", "c4", {}, "lost")
    records = [replace(r, value=None, status="no face") if r.method == "ground_truth" else r for r in records]
    scores, _ = score_methods(replace(table, records=records), CONFIG)
    test = next(t for t in scores["comparisons"] if t["metric"] == "sync_c")
    # `other` takes no part in adapter > base and yet its failure counts; a method without any value removes nothing.
    assert (test["n"], test["removed"], test["lacking"]) == (9, 1, {"other": 1})


def test_seeds_of_a_clip_are_averaged_and_their_spread_is_not_that_of_clips() -> None:
    table = make_table({"ground_truth": 0.5, "adapter": 0.0, "base": -1.0})
    again = [
        replace(r, seed=seed, value=r.value + shift)
        for r in table.records
        for seed, shift in ((1, 0.4), (2, -0.4))
        if r.method == "adapter" and r.metric == "sync_c" and r.clip_id in ("c0", "c1") and r.value is not None
    ]
    once, seeded = (score_methods(s, CONFIG)[0] for s in (table, replace(table, records=[*table.records, *again])))
    score = seeded["methods"]["adapter"]["sync_c"]
    assert (score["n"], score["clips"], score["seed_clips"]) == (10, 10, 2)
    assert score["seed_sd"] == pytest.approx(0.4) and "seed_sd" not in seeded["methods"]["base"]["sync_c"]
    assert score["value"] == pytest.approx(once["methods"]["adapter"]["sync_c"]["value"])


def test_clips_of_one_video_count_once() -> None:
    table = make_table({"ground_truth": 0.5, "adapter": 0.0, "base": -1.0}, clips=12)
    grouped = replace(table, groups={f"c{i}": f"video {i // 3}" for i in range(12)})
    sets = FeatureSets.of(grouped, "fid")
    assert len(sets.where[REAL]) == 4 and sets.n == 12 and sets.clips[0].shape == (9, 5)
    scores, alone = (score_methods(s, CONFIG)[0] for s in (grouped, table))
    test = next(t for t in scores["comparisons"] if t["metric"] == "sync_c")
    assert (test["n"], test["groups"]) == (12, 4) and test["p_wilcoxon"] == 2 / 2**4
    for name in ("fid", "fvd"):  # the same rows, so the same distance; its error is over videos
        pair = [s["methods"]["adapter"][name]["value"] for s in (scores, alone)]
        assert pair[0] == pytest.approx(pair[1]) and scores["methods"]["adapter"][name]["n"] == 12


def test_the_strict_protocol_has_columns_of_its_own() -> None:
    table = replace(make_table({"ground_truth": 0.0, "adapter": 0.1}), protocol="strict")
    short = {"status": np.array("got a clip of 48 frames; 61 are needed")}
    for arrays in table.arrays.values():
        arrays["fvd_slow"] = dict(short)  # type: ignore[index]
    for arrays in table.real_arrays.values():
        arrays["fvd_slow"] = dict(short)  # type: ignore[index]
    strict, records = score_methods(table, CONFIG)
    paper, _ = score_methods(replace(table, protocol="paper"), CONFIG)
    assert set(strict["methods"]["adapter"]) - set(paper["methods"]["adapter"]) == {"fvd_slow", "kvd_slow"}
    assert strict["methods"]["adapter"]["fvd_slow"]["status"].endswith("got a clip of 48 frames; 61 are needed")
    assert {r.protocol for r in records} == {"strict"}


def test_a_score_above_the_ground_truth_is_a_red_flag() -> None:
    scores, _ = score_methods(make_table({"ground_truth": 0.0, "adapter": 0.5, "base": -1.0}), CONFIG)
    assert len(scores["flags"]) == 1 and "above the ground truth" in scores["flags"][0]


def test_metrics_without_weights_are_skipped_with_a_word() -> None:
    table = make_table({"ground_truth": 0.0, "adapter": 0.0})
    bare = EvalTable(table.records, {name: {} for name in table.arrays}, {}, "paper")
    scores, records = score_methods(bare, CONFIG)
    assert scores["methods"]["adapter"]["iqa"]["status"] == NO_WEIGHTS
    assert {r.status for r in records} == {NO_WEIGHTS}


def test_a_comparison_must_name_two_methods() -> None:
    with pytest.raises(ValueError, match="'adapter' is not of the form"):
        ScoreConfig(comparisons=("adapter",))
