"""The pictures say what the table says: a row that the tests call worse is red, one without a test is not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipelines.sweep.plots import MARK, write_plots
from pipelines.sweep.table import sweep_entries


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


def test_nothing_to_draw_is_no_picture(planted_sweep, tmp_path):
    assert write_plots(planted_sweep[0], [], tmp_path) == []
