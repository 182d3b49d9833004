"""The table of a sweep from planted scores: seeds are no clips, differences are paired, orders are compared."""

from dataclasses import replace

import pytest

from pipelines.sweep.settings import Places, RowConfig, SweepConfig
from pipelines.sweep.table import between_seeds, context_rows, is_better, orderings, over_seeds, sweep_entries
from tests.pipelines.planted_scores import write_scores

CLIPS = 16


def entry(entries, row, metric):
    (found,) = [each for each in entries if (each.row, each.metric) == (row, metric)]
    return found


def test_the_spread_between_seeds_is_not_that_between_clips(planted_sweep):
    ours = entry(sweep_entries(*planted_sweep), "ours", "sync_c")
    assert (ours.clips, ours.listed, ours.seeds, ours.difference) == (CLIPS, CLIPS, 3, None)
    assert ours.seed_sd == pytest.approx(0.2, abs=0.03) and ours.high - ours.low > 1.0


def test_a_planted_difference_far_below_the_spread_of_clips_is_found(planted_sweep):
    entries = sweep_entries(*planted_sweep)
    worse, same = (entry(entries, row, "sync_c") for row in ("worse", "same"))
    assert worse.difference == pytest.approx(-1.0, abs=0.05) and worse.p_holm < 0.01 and not is_better(worse)
    assert worse.difference_low < -1.0 < worse.difference_high and worse.win_rate == 0.0
    assert same.p > 0.05 and same.p_holm >= same.p and same.detectable < 0.1
    assert is_better(replace(worse, difference=1.0)) and not is_better(same)


def test_sets_and_metrics_without_weights_are_listed_and_not_tested(planted_sweep):
    entries = sweep_entries(*planted_sweep)
    fid, hkc = entry(entries, "worse", "fid"), entry(entries, "worse", "hkc")
    assert (fid.mean, fid.seed_sd, fid.difference, fid.p, fid.low) == (11.5, 1.0, 0.5, None, None)
    assert (fid.difference_low, fid.difference_high, fid.rests_on) == (0.5, 0.5, "3 seeds")
    assert entry(entries, "worse", "sync_c").rests_on == "16 clips, means of 3 seeds"
    assert (hkc.mean, hkc.status, hkc.listed) == (None, "skipped: no weights", 1)
    assert entry(entries, "long", "seam_z").seeds == 1  # two seeds are not made yet
    assert not [each for each in entries if each.row == "long" and each.metric == "sync_c"]


def test_a_difference_of_sets_is_as_sure_as_its_seeds_agree():
    base = {seed: {"": 10.0 + 3 * seed} for seed in range(3)}
    row = {seed: {"": 11.0 + 4 * seed} for seed in range(3)}  # farther by 1, 2 and 3
    found = between_seeds("fid", "row", row, base)
    reach = 4.302653 / 3**0.5  # Student's t of two degrees of freedom
    assert (found.difference, found.low, found.high) == pytest.approx((2.0, 2.0 - reach, 2.0 + reach))
    same = between_seeds("fid", "row", base, base)
    assert (same.difference, same.low, same.high, same.rests_on) == (0.0, 0.0, 0.0, "3 seeds")
    one = between_seeds("fid", "row", {0: row[0], 1: {}}, base)
    assert (one.difference, one.low, one.rests_on) == (1.0, None, "1 seed")
    assert between_seeds("fid", "row", {0: {}}, base) is None


def test_two_long_videos_are_as_sure_as_their_seeds_agree(tmp_path):
    places, rows = Places(tmp_path), {"ours": RowConfig(), "a": RowConfig(long=4.0), "b": RowConfig(long=4.0)}
    config = SweepConfig("s", "lips", "ours", rows, long_base="a", long_metrics=("seam_z",))
    for seed in config.seeds:
        for row, gaps in (("a", (0.0, 0.0)), ("b", (0.5 + seed, 1.5 + seed))):  # apart by 1, 2 and 3 on the mean
            values = {f"long-{number}": 5.0 * number + gap for number, gap in enumerate(gaps)}
            write_scores(places, row, seed, {"seam_z": values})
    found = entry(sweep_entries(config, places), "b", "seam_z")
    reach = 4.302653 / 3**0.5
    assert (found.difference, found.difference_low, found.difference_high) == pytest.approx((2, 2 - reach, 2 + reach))
    assert (found.rests_on, found.p) == ("3 seeds of 2 clips", None)


def test_a_row_meets_the_base_row_on_the_seeds_that_both_have(planted_sweep):
    (planted_sweep[1].row("worse", 2) / "report" / "metrics.parquet").unlink()
    worse = entry(sweep_entries(*planted_sweep), "worse", "sync_c")
    # Two of three seeds: their own mean is lower by half a seed's step, the difference is not.
    assert worse.mean == pytest.approx(entry(sweep_entries(*planted_sweep), "ours", "sync_c").mean - 1.1, abs=0.05)
    assert worse.difference == pytest.approx(-1.0, abs=0.05)


def test_a_clip_without_a_value_in_one_seed_is_left_out():
    assert over_seeds({0: {"a": 1.0, "b": 5.0}, 1: {"a": 3.0}}) == {"a": 2.0}
    assert over_seeds({}) == {}


def test_numbers_of_the_paper_are_shown_and_their_order_is_compared(planted_sweep):
    entries = sweep_entries(*planted_sweep)
    assert entry(entries, "worse", "sync_c").reported == 4.26
    (sync,) = [order for order in orderings(entries) if order.metric == "sync_c"]
    assert sync.rows == ("ours", "worse", "same") and ("ours", "worse") not in sync.reversed
    assert [e.mean for e in context_rows(*planted_sweep) if e.metric == "sync_c"] == [8.0]
