"""The page says what the table says: bold and dagger by the tests, the paper in columns of its own, what is missing."""

from dataclasses import replace

import duckdb
from PIL import Image

from common.recipe import load_recipe
from pipelines.sweep.pages import write_results
from pipelines.sweep.settings import Places, SweepConfig


def test_the_page_can_be_read_and_the_table_queried(planted_sweep, tmp_path):
    folder = tmp_path / "results"
    page = write_results(*planted_sweep, folder, "omniavatar sweep s --out x").read_text("utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| worse |"))
    assert " † |" in row and "(−1.0" in row and "**" not in row and "11.50 ± 1.00 (+0.50; 0.50 .. 0.50)" in row
    assert "omniavatar sweep s --out x" in page and "**Not finished:** long (1 of 3 seeds)." in page
    assert "Not here: HKC: skipped: no weights." in page and "| ground truth | 8.00" in page
    assert "Sync-C, ours | Sync-C, *reported*" in page and "| 7.13 |" in page
    assert load_recipe(folder / "sweep.yaml", SweepConfig) == planted_sweep[0]
    assert duckdb.sql(
        f"select rests_on from '{folder}/table.csv' where row = 'worse' and metric = 'fid'"
    ).fetchall() == [("3 seeds",)]
    asked = f"select row, reported from '{folder}/table.{{}}' where metric = 'sync_c' and p_holm < 0.05"
    for kind in ("parquet", "csv"):
        assert duckdb.sql(asked.format(kind)).fetchall() == [("worse", 4.26)]
    with Image.open(folder / "plots" / "rank.png") as plot:
        assert plot.width > 300


def test_nothing_finished_is_no_error(planted_sweep, tmp_path):
    page = write_results(planted_sweep[0], Places(tmp_path / "empty"), tmp_path / "results", "x").read_text("utf-8")
    assert "No row is finished." in page and "ours (0 of 3 seeds)" in page


def test_hostile_labels_are_text_on_the_page_and_in_its_plots(planted_sweep, tmp_path):
    config, places = planted_sweep
    hostile = "$\\frac{ a|b <script>alert(1)</script> [go](javascript:x)\nnext"
    rows = config.rows | {"worse": replace(config.rows["worse"], label=hostile, knobs={"../$k$": 8.0})}
    rows["ours"] = replace(config.rows["ours"], knobs={"../$k$": 32.0})
    folder = tmp_path / "results"
    page = write_results(replace(config, rows=rows), places, folder, "x `y`").read_text("utf-8")
    assert "<script" not in page.replace("\\<", "") and "](javascript" not in page.replace("\\]", "")
    row = next(line for line in page.splitlines() if line.startswith("| $\\\\frac{ a\\|b"))
    assert row.replace("\\|", "").count("|") == page.split("| row |", 1)[1].splitlines()[0].count("|") + 2
    assert (folder / "plots" / "_k_.png").exists() and "(plots/_k_.png)" in page
