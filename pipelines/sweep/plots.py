"""Figures of a sweep: differences of every row to the base row, metrics over the knobs, and frames of one clip."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.runs import atomic_write
from eval.manifest import TRUTH
from eval.metrics.clip_metrics import METRICS
from eval.reporting.pictures import side_by_side
from eval.scoring.eval_table import Table, by_clip
from pipelines.config import JUDGED
from pipelines.sweep.settings import Places, SweepConfig
from pipelines.sweep.table import Entry, is_better, is_worse, row_tables

ARROWS = {1: " ↑", -1: " ↓", 0: ""}
INK, MARK, GREY, GOOD = "#22303c", "#c8553d", "#8a949c", "#2f7d5b"
PER_LINE = 4  # metrics side by side
ROWS = (("rows", False), ("long_rows", True))  # name of the file, whether of long videos
STRIPS = (("clips", False), ("long_clips", True))
STRIP_FRAMES = 12
STRIP_WIDTH, LABEL_SHARE = 10.5, 0.18  # inches, and the share of them that row labels take
PLAIN_TEXT: Any = {"text.parse_math": False}  # a $ in a name is a $
QUALITY = 88  # of JPEG


def write_plots(config: SweepConfig, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """PNGs: `rows` and `long_rows` with the differences to the base rows, and one for every knob with two rows or more.
    Figures without any number are left out."""
    knobs = sorted({name for row in config.rows.values() for name in row.knobs})
    with rc_context(PLAIN_TEXT):
        paths = [_write_rows(config, entries, long, folder / f"{name}.png") for name, long in ROWS]
        paths += [_write_knob(config, entries, knob, folder / f"{file_name(knob)}.png") for knob in knobs]
    return [path for path in paths if path is not None]


def file_name(knob: str) -> str:
    """The name of a knob as that of a file that a page can link."""
    return re.sub(r"[^\w.-]+", "_", knob).strip(".") or "knob"


def _write_rows(config: SweepConfig, entries: Sequence[Entry], long: bool, path: Path) -> Path | None:
    """One panel for each metric with a better direction, one line for each row: paired difference, 95 % interval."""
    shown = [e for e in entries if e.long == long and e.difference is not None and METRICS[e.metric].better]
    if not shown:
        return None
    metrics, rows = (list(dict.fromkeys(names)) for names in ([e.metric for e in shown], [e.row for e in shown]))
    labels = [next(e.label for e in shown if e.row == row) for row in rows]
    figure = _figure(len(metrics), 0.24 * len(rows) + 0.9, 1.4)
    for number, metric in enumerate(metrics):
        ax = _panel(figure, number, len(metrics), metric)
        for entry in (e for e in shown if e.metric == metric):
            _difference(ax, rows.index(entry.row), entry)
        ax.axvline(0, color=GREY, lw=0.8)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), labels if number % PER_LINE == 0 else [""] * len(rows))
    base = config.rows[config.long_base if long else config.base].label or (config.long_base if long else config.base)
    figure.supxlabel(
        f"difference to “{base}”, 95 % interval; green, red: better, worse by its test", fontsize=9, color=GREY
    )
    return _save(figure, path)


def _difference(ax: Axes, line: int, entry: Entry) -> None:
    middle = entry.difference or 0.0
    low, high = (middle if edge is None else edge for edge in (entry.difference_low, entry.difference_high))
    colour = GOOD if is_better(entry) else MARK if is_worse(entry) else INK
    ax.plot([low, high], [line, line], color=colour, lw=1.2)
    ax.plot(middle, line, "o", color=colour, ms=4)


def _write_knob(config: SweepConfig, entries: Sequence[Entry], knob: str, path: Path) -> Path | None:
    """Metrics over one knob, with the spread between seeds; the base row is marked."""
    position = {name: row.knobs[knob] for name, row in config.rows.items() if knob in row.knobs}
    shown = [entry for entry in entries if entry.row in position and entry.mean is not None]
    metrics = [name for name in dict.fromkeys(e.metric for e in shown) if sum(e.metric == name for e in shown) > 1]
    if not metrics:
        return None
    figure = _figure(len(metrics), 2.5)
    for number, metric in enumerate(metrics):
        ax = _panel(figure, number, len(metrics), metric)
        points = sorted((position[e.row], e.mean or 0.0, e.seed_sd or 0.0, e.row) for e in shown if e.metric == metric)
        xs, ys, spread, _ = zip(*points, strict=True)
        ax.errorbar(xs, ys, yerr=spread, color=INK, marker="o", ms=4, capsize=3)
        for x, y, _, row in points:
            if row in (config.base, config.long_base):
                ax.plot(x, y, "o", color=MARK, ms=7)
        ax.set_xlabel(knob, fontsize=9, color=GREY)
    return _save(figure, path)


def _figure(panels: int, height: float, margin: float = 0.0) -> Figure:
    columns, lines = min(PER_LINE, panels), -(-panels // PER_LINE)
    return Figure(figsize=(3.1 * columns + margin, height * lines), layout="constrained")


def _panel(figure: Figure, number: int, panels: int, metric: str) -> Axes:
    ax: Axes = figure.add_subplot(-(-panels // PER_LINE), min(PER_LINE, panels), number + 1)
    ax.set_title(METRICS[metric].label + ARROWS[METRICS[metric].better], fontsize=10, color=INK)
    ax.tick_params(labelsize=8, colors=GREY)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _save(figure: Figure, path: Path) -> Path:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
    return path


def write_strips(config: SweepConfig, places: Places, folder: Path) -> list[Path]:
    """JPEGs: `clips`, the clip in which the base row is median by its first metric, of the first seed, below the real
    video; `long_clips`, the first long video from beginning to end. Rows without that video are left out."""
    with rc_context(PLAIN_TEXT):
        paths = [_write_strips(config, places, long, folder / f"{name}.jpg") for name, long in STRIPS]
    return [path for path in paths if path is not None]


def _write_strips(config: SweepConfig, places: Places, long: bool, path: Path) -> Path | None:
    base, metrics = (config.long_base, config.long_metrics) if long else (config.base, config.metrics)
    seed = config.seeds[0]
    tables = row_tables(config, places, base) if base else {}
    if seed not in tables or (clip := _clip(tables[seed], metrics[0], long)) is None:
        return None
    rows = {name: row for name, row in config.rows.items() if bool(row.long) == long and not row.network}
    files = {row.label or name: places.row(name, seed) / "videos" / JUDGED for name, row in rows.items()}
    real = {} if long else {"ground truth": places.row(base, seed) / "videos" / TRUTH}
    strips = {label: side_by_side(folder / f"{clip}.mp4", STRIP_FRAMES) for label, folder in (real | files).items()}
    readable = {label: strip for label, strip in strips.items() if strip is not None}
    if not readable:
        return None
    figure = _strip_figure(readable)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, pil_kwargs={"quality": QUALITY})
    return path


def _clip(table: Table, metric: str, first: bool) -> str | None:
    values = by_clip(table, JUDGED, metric)
    ranked = sorted(values) if first else sorted(values, key=lambda clip: (values[clip], clip))
    return ranked[0 if first else len(ranked) // 2] if ranked else None


def _strip_figure(strips: dict[str, np.ndarray]) -> Figure:
    height, width = next(iter(strips.values())).shape[:2]
    figure = Figure(figsize=(STRIP_WIDTH, (1 - LABEL_SHARE) * STRIP_WIDTH * height / width * len(strips)))
    figure.subplots_adjust(left=LABEL_SHARE, right=1, bottom=0, top=1, hspace=0)
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for ax, (label, strip) in zip(axes, strips.items(), strict=True):
        ax.imshow(strip, aspect="equal")
        ax.set_yticks([strip.shape[0] / 2], [label])
        ax.set_xticks([])
        ax.tick_params(length=0, labelsize=8, labelcolor=INK)
        ax.spines[:].set_visible(False)
    return figure
