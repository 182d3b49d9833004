"""Report of the ablations: every row and seed as Parquet, a table of means and spreads, and a plot."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from common.runs import atomic_write

METRICS = {
    "track_error": "2D error of untracked particles, of rest",
    "sync_c": "Sync-C",
    "sync_share": "share of the teacher's",
    "offset_zero": "offset 0",
    "lip_gap_r": "lip gap r",
    "l1": "L1 to the teacher",
    "arap": "ARAP, px^2",
    "jerk": "energy above the cutoff",
    "retrieval": "R@1 of frames",
    "retrieval_windows": "R@1 of windows",
    "refinement_gain": "gain by refinement",
    "track_error_before_joint": "2D error before joint",
    "sync_c_before_joint": "Sync-C before joint",
}


REPORTED = {
    "full": 7.20, "without embedding": 7.05, "without patch level": 7.15, "without refinement": 7.10,
    "without hybrid synthesis": 6.85, "without VSD": 6.90, "without trajectories": 6.70,
}  # fmt: skip
"""Sync-C of rows in the note on the paper ("AudioAvatar ablation"): of other people, teachers and judges."""


def write_report(rows: Path, results: Path) -> None:
    """Read every `rows`/*.json there is -> `results`: table.parquet, table.md, plots/rows.png.

    A score that a row does not have, such as the retrieval of one without embedding, is left out.
    """
    found = sorted((json.loads(file.read_text("utf-8")) for file in rows.glob("*.json")), key=lambda row: row["seed"])
    table = pa.Table.from_pylist(
        [
            {"row": row["row"], "seed": row["seed"], "metric": name, "value": float(row[name])}
            for row in found
            for name in sorted(row)
            if isinstance(row[name], int | float) and name != "seed"
        ]
    )
    with atomic_write(results / "table.parquet") as temporary:
        pq.write_table(table, temporary)
    names = sorted({str(row["row"]) for row in found}, key=lambda name: (name != "full", name))
    titles = " | ".join(("row", "seeds", *METRICS.values(), "Sync-C, reported"))
    lines = [f"| {titles} |", "|---" * (len(METRICS) + 3) + "|"]
    for name in names:
        own = [row for row in found if row["row"] == name]
        cells = [_cell([row[metric] for row in own if row.get(metric) is not None]) for metric in METRICS]
        lines.append(f"| {name} | {len(own)} | {' | '.join(cells)} | {_reported(name)} |")
    with atomic_write(results / "table.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", "utf-8")
    _plot(found, names, results / "plots" / "rows.png")


def _reported(row: str) -> str:
    return f"{REPORTED[row]:.2f}" if row in REPORTED else ""


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def _plot(found: list[dict[str, float]], names: list[str], path: Path) -> None:
    """One panel per metric: every seed as a dot, the mean as a line."""
    chosen = ("sync_c", "sync_c_before_joint", "track_error", "lip_gap_r", "arap")
    figure = Figure(figsize=(12, 0.4 * len(names) + 1.4), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(chosen), sharey=True), chosen, strict=True):
        for place, name in enumerate(names):
            values = [row[metric] for row in found if row["row"] == name]
            axes.plot(values, [place] * len(values), "o", color="#22303c", alpha=0.6)
            axes.plot([np.mean(values)], [place], "|", color="#c8553d", markersize=16)
        axes.set_yticks(range(len(names)), names)
        axes.set_title(METRICS[metric], fontsize=9)
    figure.axes[0].invert_yaxis()
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
