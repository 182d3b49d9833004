"""Yield of thresholds: clips and hours that others would keep, and that each rule rejects, from the stored scores."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from common.errors import InputError, MissingFileError
from common.progress import duration_text
from common.query import ask
from common.runs import atomic_write
from curation.config import SelectConfig
from curation.decide.select import decided_sql, yield_sql

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MS_PER_HOUR = 3_600_000
MAX_CELLS = 2000
GRID = {"min_sync_c": (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0), "min_iqa": (2.0, 2.3, 2.6, 2.9, 3.2, 3.5, 4.0)}


UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}  # name -> how many make an hour


def parse_axis(text: str) -> tuple[str, tuple[float, ...]]:
    """A threshold and its values from "min_sync_c=2,3,4.5" or "min_sync_c=2:8:0.5" (first, last, step). Raises
    ValueError."""

    def finite(value: str) -> float:
        number = float(value)
        if not math.isfinite(number):
            raise ValueError(value)
        return number

    name, _, values_text = text.partition("=")
    thresholds = [key for key, value in asdict(SelectConfig()).items() if key[:3] in ("min", "max")]
    if name not in thresholds:
        raise InputError(f"'{name}' is no threshold of a grid; expected one of {', '.join(thresholds)}.")
    try:
        if ":" not in values_text:
            return name, tuple(sorted({finite(value) for value in values_text.split(",")}))
        first, last, step = map(finite, values_text.split(":"))
        count = round((last - first) / step) + 1
        if count > MAX_CELLS:
            raise InputError(f"The grid '{text}' has {count} values; expected at most {MAX_CELLS}.")
        return name, tuple(round(first + step * number, 9) for number in range(max(count, 1)))
    except InputError:
        raise
    except (ValueError, ZeroDivisionError, OverflowError) as error:
        expected = "values such as 2,3,4 or first:last:step such as 2:8:0.5"
        raise InputError(f"The grid '{text}' cannot be read; expected {expected}.") from error


def yield_table(run_root: Path | str, config: SelectConfig, grid: Mapping[str, Sequence[float]] = GRID) -> pa.Table:
    """Clips and hours kept under every combination of the thresholds in `grid`, sorted by threshold.

    Every other rule stays as in `config`, and duplicates stay the groups they are. Columns: the thresholds, clips,
    hours, pending_clips, pending_hours (not rejected, but a score is missing). Raises FileNotFoundError
    without a clip table, ValueError for an empty or too large grid.
    """
    cells = int(np.prod([len(values) for values in grid.values()])) if grid else 0
    if not 0 < cells <= MAX_CELLS:
        raise InputError(f"The grid has {cells} combinations of thresholds; expected 1 to {MAX_CELLS}.")
    # Divided by DuckDB: pyarrow's arithmetic with a number of Python imports pandas, half a second of CPU.
    in_hours = ", ".join(f"{name}::DOUBLE / {MS_PER_HOUR}::DOUBLE AS {name}" for name in ("ms", "pending_ms"))
    (table,) = _ask(run_root, f"SELECT * REPLACE ({in_hours}) FROM ({yield_sql(config, grid)})")
    return table.rename_columns([name.replace("ms", "hours") for name in table.column_names])


def funnel_table(run_root: Path | str, config: SelectConfig) -> pa.Table:
    """Clips and hours lost to each reason under `config`, largest first.

    `alone`: clips with this reason, whatever other reasons they have. `first`: clips for which it is the first reason
    in the order in which `select` lists them; these add up to the total loss. `last`: clips with no other reason,
    which a laxer rule would regain. A clip that is too short gets no other reason (nothing more was measured).
    """
    return _ask(run_root, _funnel_sql(config))[0]


def _funnel_sql(config: SelectConfig) -> str:
    return f"""
        WITH decided AS ({decided_sql(config)}),
        lost AS (SELECT reasons, round(duration * 1000)::BIGINT AS ms FROM decided WHERE decision <> 'kept'),
        each AS (SELECT unnest(reasons) AS reason, reasons[1] AS head, len(reasons) AS count, ms FROM lost)
        SELECT reason, count(*) AS alone_clips, sum(ms) / {MS_PER_HOUR} AS alone_hours,
        count(*) FILTER (reason = head) AS first_clips,
        coalesce(sum(ms) FILTER (reason = head), 0) / {MS_PER_HOUR} AS first_hours,
        count(*) FILTER (count = 1) AS last_clips,
        coalesce(sum(ms) FILTER (count = 1), 0) / {MS_PER_HOUR} AS last_hours
        FROM each GROUP BY reason ORDER BY alone_hours DESC, reason"""


def hours_lines(run_root: Path | str, config: SelectConfig) -> list[str]:
    """`hours_rows` as text."""
    return [f"{duration_text(3600 * hours):>12}  {words}" for hours, words in hours_rows(run_root, config)]


def hours_rows(run_root: Path | str, config: SelectConfig) -> list[tuple[float, str]]:
    """Hours of the sources with a label each: rejected files, uncut parts, lost by each rule, kept.

    Losses are negative.
    """
    by_source = (
        "SELECT CASE WHEN state = 'kept' THEN '' ELSE reason END AS reason, count(*) AS sources, "
        "coalesce(sum(round(duration * 1000)), 0) / 3600000 AS hours, count(*) FILTER (duration IS NULL) AS unknown "
        "FROM sources GROUP BY 1 ORDER BY hours DESC, sources DESC, reason"
    )
    by_decision = f"""SELECT decision, count(*) AS clips, sum(round(duration * 1000)) / 3600000 AS hours
        FROM ({decided_sql(config)}) GROUP BY 1"""
    answers = _ask(run_root, _funnel_sql(config), by_source, by_decision)
    funnel, sources, decisions = (answer.to_pylist() for answer in answers)
    states = {row["decision"]: row for row in decisions}
    usable = sum(row["hours"] for row in sources if not row["reason"])
    clips, hours = (sum(row[name] for row in states.values()) for name in ("clips", "hours"))
    total = sum(row["hours"] for row in sources)
    rows = [(total, f"in {sum(row['sources'] for row in sources)} sources")]
    for row in sources:
        if row["reason"]:
            unknown = f", {row['unknown']} of unknown length" if row["unknown"] else ""
            rows.append((-row["hours"], f"{row['reason']}: {row['sources']} sources{unknown}"))
    rows.append((hours - usable, "in no clip (outside the spans of the data set, or less than a frame)"))
    for row in funnel:
        if row["first_clips"]:
            regained = f"{duration_text(3600 * row['last_hours'])} of {row['last_clips']} clips have no other fault"
            words = f"{row['reason']}: {row['first_clips']} of {clips} clips; {regained}"
            rows.append((-row["first_hours"], words))
    kept = states.get("kept", {"clips": 0, "hours": 0.0})
    return [*rows, (kept["hours"], f"kept: {kept['clips']} clips")]


def yield_lines(table: pa.Table) -> list[str]:
    """A yield table as text: for two thresholds the hours as a matrix, else a line per combination."""
    names = _axes_of(table)
    rows = table.to_pylist()
    most = max((row["hours"] for row in rows), default=0.0)
    unit = next((unit for unit, many in UNITS.items() if most * many >= (0.1 if unit == "hours" else 1)), "hours")
    if len(names) != 2:
        head = "  ".join(f"{name:>12}" for name in (*names, "clips", unit))
        return [head, *(_line([row[name] for name in names], row, UNITS[unit]) for row in rows)]
    down, across = (sorted(set(table[name].to_pylist())) for name in names)
    hours = {(row[names[0]], row[names[1]]): row["hours"] for row in rows}
    lines = [f"{unit} kept; down {names[0]}, across {names[1]}", " " * 8 + "".join(f"{value:>10g}" for value in across)]
    return lines + [
        f"{value:>8g}" + "".join(f"{hours[value, each] * UNITS[unit]:>10.2f}" for each in across) for value in down
    ]


def _line(values: Sequence[float], row: Mapping[str, float], many: float) -> str:
    return "  ".join(f"{value:>12g}" for value in (*values, row["clips"])) + f"  {row['hours'] * many:>12.2f}"


def draw_yield(table: pa.Table, path: Path) -> None:
    """Draw a yield table of one or two thresholds as PNG or SVG, by the suffix of `path`: hours as curves over the
    first threshold, one for each value of the second, beside a heat map of both. Raises ValueError, DiskFullError."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import
    from matplotlib.figure import Figure

    names = _axes_of(table)
    if len(names) > 2 or path.suffix.lower() not in (".png", ".svg"):
        raise InputError(
            f"{path} for {len(names)} thresholds cannot be drawn; expected a .png or .svg of one or two thresholds."
        )
    figure = Figure(figsize=(5.4 * len(names), 4.0), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    across = sorted(set(table[names[0]].to_pylist()))
    others = sorted(set(table[names[1]].to_pylist())) if len(names) == 2 else [None]
    # Rows come by rising first, then second threshold.
    hours = table["hours"].to_numpy().reshape(len(across), len(others))
    _draw_curves(axes[-1], names, across, others, hours)
    if len(names) == 2:
        _draw_map(axes[0], names, across, others, hours)
    FigureCanvasAgg(figure)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=150, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def _draw_curves(
    ax: "Axes", names: Sequence[str], across: Sequence[float], others: Sequence[float | None], hours: np.ndarray
) -> None:
    for number, value in enumerate(others):
        shade = 0.15 + 0.7 * number / max(1, len(others) - 1)
        label = None if value is None else f"{names[1]} {value:g}"
        ax.plot(across, hours[:, number], marker="o", markersize=3, color=(shade, 0.3, 1 - shade), label=label)
    ax.set(xlabel=names[0], ylabel="hours kept", ylim=(0, None))
    ax.grid(axis="y", linewidth=0.4)
    if len(names) == 2:
        ax.legend(fontsize=7, frameon=False)


def _draw_map(ax: "Axes", names: Sequence[str], across: Sequence[float], others: Sequence, hours: np.ndarray) -> None:
    ax.imshow(hours.T, origin="lower", aspect="auto", cmap="viridis", vmin=0)
    ax.set_xticks(range(len(across)), [f"{value:g}" for value in across])
    ax.set_yticks(range(len(others)), [f"{value:g}" for value in others])
    ax.set(xlabel=names[0], ylabel=names[1], title="hours kept")
    if hours.size <= 150:
        for (column, row), value in np.ndenumerate(hours):
            colour = "white" if value < 0.6 * hours.max() else "black"
            ax.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color=colour)


def _axes_of(table: pa.Table) -> list[str]:
    return table.column_names[: table.column_names.index("clips")]


def _ask(run_root: Path | str, *sql: str) -> list[pa.Table]:
    """The answer to each query, all from the files of one moment."""
    if not (Path(run_root) / "clips.parquet").exists():
        raise MissingFileError(f"There is no clip table in {run_root}; run the curation job, which writes it.")
    return ask(run_root, lambda connection: [connection.sql(each).to_arrow_table() for each in sql])
