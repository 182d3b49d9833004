"""Two methods from their long tables: planted differences are found on the clips both have, and nothing else counts."""

import numpy as np
import pytest
from scipy import stats

from common.runs import RunFolder
from eval.config import ScoreConfig
from eval.scoring.compare import adjusted, detectable_difference, difference, difference_lines
from eval.scoring.eval_table import CompareError, by_clip, read_metrics
from eval.scoring.paired import CachedFeatures, FeaturesMissingError, compare_methods, set_difference


def table(method, values, metric="sync_c", seed=0, protocol="paper"):
    return [
        {"method": method, "clip_id": clip, "metric": metric, "value": value, "status": "ok", "n": 1,
         "protocol": protocol, "seed": seed}
        for clip, value in values.items()
    ]  # fmt: skip


def cached(rng, shift, real, draws=199, weights="w"):
    own = {clip: rows + shift + rng.normal(0, 0.3, rows.shape) for clip, rows in real.items()}
    return CachedFeatures(own, real, weights, ScoreConfig(swap_draws=draws))


def real_clips(rng, count=12):
    return {f"c{number}": rng.normal(size=(2, 6)) for number in range(count)}


def clips(rng, mean, count=30):
    return {f"c{i}": mean + float(noise) for i, noise in enumerate(rng.normal(0, 0.3, count))}


def test_a_clip_is_the_mean_of_its_seeds_and_failures_are_left_out():
    rows = table("a", {"x": 1.0, "y": None}) + table("a", {"x": 3.0}, seed=1) + table("b", {"x": 9.0})
    assert by_clip(rows, "a", "sync_c") == {"x": 2.0}


def test_a_planted_difference_is_found_on_the_shared_clips():
    rng = np.random.default_rng(0)
    a, b = clips(rng, 5.0), clips(rng, 4.0)
    del b["c0"], a["c1"]
    found, same = compare_methods(
        (table("a", a) + table("a", clips(rng, 1.0), "iqa"), table("b", b) + table("b", clips(rng, 1.0), "iqa")),
        ("a", "b"), ("A", "B"), ("sync_c", "iqa", "fid"),
    )  # fmt: skip
    assert (found.a, found.b, found.n, found.removed) == ("A", "B", 28, 2)
    assert found.low < 1.0 < found.high and found.win_rate > 0.9
    assert found.p_holm == pytest.approx(2 * found.p) and found.p_holm < 1e-4
    assert same.p_holm == same.p > 0.01  # the larger of two is not multiplied


def test_of_a_set_only_the_difference_is_known():
    found = difference("fid", ("a", "b"), ({"": 5.0}, {"": 7.0}))
    assert (found.difference, found.n, found.p, found.low) == (-2.0, 1, None, None)
    assert adjusted([found]) == [found]


@pytest.mark.parametrize("metric", ["fid", "kid"])
def test_a_planted_difference_of_sets_is_found_and_two_copies_have_none(metric):
    rng = np.random.default_rng(3)
    real = real_clips(rng)
    near, far = cached(rng, 0.0, real), cached(rng, 1.0, real)
    found = set_difference(metric, ("a", "b"), (near, far), {})
    assert (found.n, found.removed, found.p) == (12, 0, 1 / 200) and found.rests_on == "199 swaps of 12 clips"
    assert found.difference == found.mean_a - found.mean_b and found.low < found.difference < found.high < 0
    assert 0 < found.detectable < -found.difference
    copy = CachedFeatures({clip: rows.copy() for clip, rows in near.own.items()}, real, "w", near.scores)
    same = set_difference(metric, ("a", "b"), (near, copy), {})
    assert (same.difference, same.p, same.low, same.high, same.detectable) == (0.0, 1.0, 0.0, 0.0, 0.0)


def test_sets_of_equally_far_methods_have_no_significant_difference():
    rng = np.random.default_rng(4)
    values = []
    for _ in range(40):
        real = real_clips(rng, 8)
        values.append(set_difference("kid", ("a", "b"), (cached(rng, 0.5, real, 49), cached(rng, 0.5, real, 49)), {}).p)
    assert stats.kstest(values, "uniform").pvalue > 0.01


def test_sets_are_compared_on_the_same_real_clips_by_the_same_network():
    rng = np.random.default_rng(5)
    real = real_clips(rng)
    first, second = cached(rng, 0.0, real), cached(rng, 0.0, {**real, "c3": rng.normal(size=(2, 6))})
    speakers = {clip: f"s{number // 2}" for number, clip in enumerate(real)}
    found = set_difference("fid", ("a", "b"), (first, second), speakers)
    assert (found.n, found.removed) == (11, 1) and found.rests_on.endswith(" swaps of 6 groups of 11 clips")
    assert set_difference("fid", ("a", "b"), (cached(rng, 0.0, real, 0),) * 2, {}).p is None
    assert set_difference("fid", ("a", "b"), (first, cached(rng, 0.0, {})), {}) is None
    with pytest.raises(FeaturesMissingError, match="different weights"):
        set_difference("fid", ("a", "b"), (first, cached(rng, 0.0, real, weights="v")), {})


def test_without_features_two_distances_are_all_there_is_and_the_line_says_so(tmp_path):
    tables = table("a", {"": 5.0}, "fid"), table("b", {"": 7.0}, "fid")
    runs = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    (found,) = compare_methods(tables, ("a", "b"), ("a", "b"), ("fid",), None, runs)
    assert found.p is None and found.rests_on.startswith("one distance each: ") and "not judged" in found.rests_on
    assert difference_lines([found])[-1].endswith(found.rests_on)


def test_clips_of_one_speaker_are_one_observation():
    rng = np.random.default_rng(1)
    a, b = clips(rng, 5.0, 12), clips(rng, 4.8, 12)
    alone = difference("sync_c", ("a", "b"), (a, b))
    speakers = {clip: f"s{number % 4}" for number, clip in enumerate(a)}
    grouped = difference("sync_c", ("a", "b"), (a, b), speakers)
    assert grouped.p >= 0.125 > alone.p  # four witnesses cannot do better
    assert difference("sync_c", ("a", "b"), (a, b), dict.fromkeys(a, "one")).p is None


def test_the_detectable_difference_is_detected_in_eight_of_ten_experiments():
    rng = np.random.default_rng(2)
    spread = np.array([-1.0, 1.0] * 10) * np.sqrt(19 / 20)  # sample standard deviation 1
    shown = rng.normal(detectable_difference(spread), 1.0, (4000, 20))
    assert np.mean(stats.ttest_1samp(shown, 0.0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_what_cannot_be_compared_is_refused(tmp_path):
    a, b = table("a", {"x": 1.0}), table("b", {"y": 1.0})
    with pytest.raises(CompareError, match="no clip in common"):
        compare_methods((a, b), ("a", "b"), ("a", "b"), ("sync_c",))
    with pytest.raises(CompareError, match="methods are b"):
        compare_methods((a, b), ("a", "a"), ("a", "b"), ("sync_c",))
    with pytest.raises(CompareError, match="paper and strict"):
        compare_methods((a, table("b", {"x": 1.0}, protocol="strict")), ("a", "b"), ("a", "b"), ("sync_c",))
    with pytest.raises(CompareError, match="judge the run first"):
        read_metrics(RunFolder(tmp_path))
