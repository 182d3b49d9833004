"""The pictures say what the table says: a row that the tests call worse is red, one without a test is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from common.media.write import write_video
from eval.scoring.eval_table import by_clip
from pipelines.sweep.plots import MARK, write_plots, write_strips
from pipelines.sweep.table import row_tables, sweep_entries


def red(path: Path) -> int:
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    return int((np.abs(pixels - [int(MARK[i : i + 2], 16) for i in (1, 3, 5)]).max(axis=-1) < 8).sum())


def test_a_row_that_is_worse_is_red(planted_sweep, tmp_path):
    entries = sweep_entries(*planted_sweep)
    names = {path.name for path in write_plots(planted_sweep[0], entries, tmp_path / "tested")}
    assert {"rows.png", "rank.png"} <= names
    untested = [replace(entry, p_holm=None) for entry in entries]
    write_plots(planted_sweep[0], untested, tmp_path / "untested")
    shares = [red(tmp_path / name / "rows.png") for name in ("tested", "untested")]
    assert shares[0] > 20 and shares[1] == 0


def test_nothing_to_draw_is_no_figure(planted_sweep, tmp_path):
    assert write_plots(planted_sweep[0], [], tmp_path) == []


COLOURS = {"ground_truth": (40, 40, 200), "ours": (200, 40, 40), "worse": (40, 200, 40)}


def test_every_row_shows_the_median_clip_of_the_base(planted_sweep, tmp_path):
    config, places = planted_sweep
    scores = by_clip(row_tables(config, places, "ours")[0], "adapter", "sync_c")
    lowest, *_, median = sorted(scores, key=scores.__getitem__)[: len(scores) // 2 + 1]
    for label, colour in COLOURS.items():
        row, method = ("ours", label) if label == "ground_truth" else (label, "adapter")
        folder = places.row(row, 0) / "videos" / method
        folder.mkdir(parents=True)
        for clip, shown in ((median, colour), (lowest, (0, 0, 0))):
            write_video(folder / f"{clip}.mp4", np.full((25, 32, 32, 3), shown, np.uint8), None)
    (page,) = write_strips(config, places, tmp_path / "plots")
    with Image.open(page) as picture:
        pixels = np.asarray(picture.convert("RGB"), int)
    far = [np.abs(pixels - colour).max(axis=-1) for colour in COLOURS.values()]
    lines = [np.flatnonzero((each < 30).mean(axis=1) > 0.5) for each in far]
    assert all(map(len, lines)) and lines[0].max() < lines[1].min() <= lines[1].max() < lines[2].min()


def test_without_videos_there_is_no_page(planted_sweep, tmp_path):
    assert write_strips(*planted_sweep, tmp_path / "plots") == []
