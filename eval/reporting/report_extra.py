"""Further tables of the report: drift of the long video, the metrics outside the main table, numbers of papers."""

from collections.abc import Mapping
from typing import Any

from common.runs import RunFolder
from eval.manifest import FLOOR
from eval.metrics.clip_metrics import METRICS
from eval.reporting.reported import METRIC_IDS, read_reported
from eval.reporting.summary import read_optional

# The rows of papers' tables that are one of the two systems.
PAPER_ROWS = ("Ours", "AudioAvatar (Ours)", "OmniAvatar")
# Part of a video's own description -> its figures: name, label, unit, digits.
DRIFT = {
    "colour": (
        ("total", "Colour drift", "Lab units a minute", 2),
        ("shift", "Colour, last second to first", "CIEDE2000", 2),
        ("contrast", "Contrast", "a minute", 2),
        ("saturation", "Saturation", "a minute", 2),
    ),
    "background": (
        ("total", "Colour drift behind people", "Lab units a minute", 2),
        ("shift", "Colour behind people, last second to first", "CIEDE2000", 2),
    ),
    "identity": (
        ("slope", "Likeness", "cosine a minute", 3),
        ("change", "Likeness, last 10 s less first", "cosine", 3),
        ("lowest", "Likeness, lowest 5 s", "cosine", 3),
        ("coverage", "Frames with a face", "share", 2),
    ),
    "seam": (
        ("mean_z", "Jump at the joins", "z", 2),
        ("share", "Joins that stand out (z > 3)", "share", 2),
        ("p", "Joins against other frames", "p", 3),
        ("p_latent", "Joins against other frames that begin a latent", "p", 3),
    ),
}


def drift(run: RunFolder) -> list[dict[str, Any]]:
    """Drift of the long video, from the JSON beside it: `label`, `unit`, `value`, `digits` or why there is none.

    Empty without a long video or without its figures.
    """
    measured = (read_optional(run.videos / "demo.json") or {}).get("drift", {})
    rows: list[dict[str, Any]] = []
    for part, figures in DRIFT.items():
        values = measured.get(part)
        if values is None:
            continue
        if "status" in values:
            rows.append({"label": figures[0][1], "status": values["status"]})
            continue
        rows += [
            {"label": label, "unit": unit, "value": values.get(name), "digits": digits}
            for name, label, unit, digits in figures
        ]
    return rows


def further_metrics(run: RunFolder) -> dict[str, Any] | None:
    """The metrics that are not in the main table and have a value: `methods`, and `rows` of label, digits and cells
    (value and clips, one for each method)."""
    methods: Mapping[str, Any] = (read_optional(run.report / "scores.json") or {}).get("methods", {})
    further = [metric for metric, about in METRICS.items() if not about.shown]
    names = [
        name
        for name, scores in methods.items()
        if name != FLOOR and any(scores.get(metric, {}).get("value") is not None for metric in further)
    ]
    rows = []
    for metric, about in METRICS.items():
        cells = [(methods[name].get(metric, {}).get("value"), methods[name].get(metric, {}).get("n")) for name in names]
        if not about.shown and any(value is not None for value, _ in cells):
            rows.append({"label": about.label, "better": about.better, "digits": about.digits, "cells": cells})
    return {"methods": names, "rows": rows} if rows else None


def paper_numbers(run: RunFolder) -> dict[str, Any] | None:
    """What papers print for the two systems in the tables of `eval.reported`: `metrics` (labels) and `rows` (table and,
    but for "Ours", method; values); None without such a table. Never one column with ours: other clips, other
    frames."""
    config = (read_optional(run.report / "scores.json") or {}).get("config", {})
    tables = {
        table if method == "Ours" else f"{table}: {method}": values
        for table in config.get("reported", ())
        for method, values in read_reported(table).items()
        if method in PAPER_ROWS
    }
    if not tables:
        return None
    metrics = [name for name in METRIC_IDS.values() if any(name in values for values in tables.values())]
    rows = [(table, [values.get(name) for name in metrics]) for table, values in tables.items()]
    return {"metrics": [METRICS[name].label for name in metrics], "rows": rows}
