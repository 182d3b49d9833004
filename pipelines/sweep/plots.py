"""Pictures of a sweep: every row's difference to the base row, and metrics over the knobs that rows stand on."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.runs import atomic_write
from eval.metrics.clip_metrics import METRICS
from pipelines.sweep.settings import SweepConfig
from pipelines.sweep.table import Entry, is_better, is_worse

ARROWS = {1: " ↑", -1: " ↓", 0: ""}
INK, MARK, GREY, GOOD = "#22303c", "#c8553d", "#8a949c", "#2f7d5b"
PER_LINE = 4  # metrics side by side
ROWS = (("rows", False), ("long_rows", True))  # picture, whether of long videos


def write_plots(config: SweepConfig, entries: Sequence[Entry], folder: Path) -> list[Path]:
    """PNGs: `rows` and `long_rows` with the differences to the base rows, and one for every knob that two rows or more
    stand on. What has no number is left out."""
    made = [_write_rows(config, entries, long, folder / f"{name}.png") for name, long in ROWS]
    knobs = sorted({name for row in config.rows.values() for name in row.knobs})
    made += [_write_knob(config, entries, knob, folder / f"{knob}.png") for knob in knobs]
    return [path for path in made if path is not None]


def _write_rows(config: SweepConfig, entries: Sequence[Entry], long: bool, path: Path) -> Path | None:
    """A panel a metric that has a better end, a line a row: the paired difference to the base row, 95 % interval."""
    found = [e for e in entries if e.long == long and e.difference is not None and METRICS[e.metric].better]
    metrics, rows = (list(dict.fromkeys(names)) for names in ([e.metric for e in found], [e.row for e in found]))
    if not found:
        return None
    figure = _figure(len(metrics), 0.24 * len(rows) + 0.9, 1.4)
    for number, metric in enumerate(metrics):
        ax = _panel(figure, number, len(metrics), metric)
        for entry in (e for e in found if e.metric == metric):
            _difference(ax, rows.index(entry.row), entry)
        ax.axvline(0, color=GREY, lw=0.8)
        ax.set_ylim(len(rows) - 0.5, -0.5)
        labels = [next(e.label for e in found if e.row == row) for row in rows]
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
    at = {name: row.knobs[knob] for name, row in config.rows.items() if knob in row.knobs}
    found = [entry for entry in entries if entry.row in at and entry.mean is not None]
    metrics = [name for name in dict.fromkeys(e.metric for e in found) if sum(e.metric == name for e in found) > 1]
    if not metrics:
        return None
    figure = _figure(len(metrics), 2.5)
    for number, metric in enumerate(metrics):
        ax = _panel(figure, number, len(metrics), metric)
        points = sorted((at[e.row], e.mean or 0.0, e.seed_sd or 0.0, e.row) for e in found if e.metric == metric)
        xs, ys, spread, _ = zip(*points, strict=True)
        ax.errorbar(xs, ys, yerr=spread, color=INK, marker="o", ms=4, capsize=3)
        for x, y, _, row in points:
            if row in (config.base, config.long_base):
                ax.plot(x, y, "o", color=MARK, ms=7)
        ax.set_xlabel(knob, fontsize=9, color=GREY)
    return _save(figure, path)


def _figure(panels: int, height: float, left: float = 0.0) -> Figure:
    columns, lines = min(PER_LINE, panels), -(-panels // PER_LINE)
    return Figure(figsize=(3.1 * columns + left, height * lines), layout="constrained")


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
