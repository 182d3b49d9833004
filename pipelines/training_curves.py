"""Plot of a training: losses, audio gap, and Sync-C of its sample videos."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.ledger.jsonlines import JsonLines
from common.runs import RunFolder, atomic_write

logger = logging.getLogger(__name__)
Rows = Sequence[Mapping[str, Any]]
LABELS = {"right": "its own audio", "swapped": "another clip's audio"}


def draw_training_curves(run: RunFolder, target: Path, others: Mapping[str, RunFolder] | None = None) -> None:
    """Write a PNG of loss, audio gap and Sync-C over the steps of `run`, with `others` (name -> run) beside it.

    Panels without numbers are left out. Raises DiskFullError.
    """
    runs = {"": run} | dict(others or {})
    steps = {name: list(JsonLines(one.logs / "train.jsonl").rows()) for name, one in runs.items()}
    for name in (name for name, rows in steps.items() if not rows):
        logger.warning("%s holds no step of a training", runs[name].logs / "train.jsonl")
    samples = {name: list(JsonLines(one.logs / "sample_videos.jsonl").rows()) for name, one in runs.items()}
    with rc_context({"text.parse_math": False}):  # a $ in a name is a $
        figure = _figure(runs, steps, samples)
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _figure(runs: Iterable[str], steps: Mapping[str, Rows], samples: Mapping[str, Rows]) -> Figure:
    panels = [_loss, _gap, _sync] if any(samples.values()) else [_loss, _gap]
    figure = Figure(figsize=(4.6 * len(panels), 3.4), layout="constrained")
    for ax, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, name in enumerate(runs):
            panel(ax, steps[name], samples[name], name, f"C{number}")
        ax.set_xlabel("step")
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", linewidth=0.4)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(frameon=False, fontsize=8)
    return figure


def mean_by_step(rows: Rows, audio: str, score: str) -> tuple[list[int], list[float]]:
    """Steps, and the mean of a score over the sample videos made with this audio ("right" or "swapped")."""
    values: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        if row["sound"] == audio and row.get(score) is not None:
            values[row["step"]].append(row[score])
    return sorted(values), [float(np.mean(values[step])) for step in sorted(values)]


def _loss(ax: Axes, steps: Rows, samples: Rows, name: str, colour: str) -> None:
    ax.set_title("loss")
    trained = [row for row in steps if row.get("loss") is not None]
    ax.plot([row["step"] for row in trained], _smooth([row["loss"] for row in trained]), colour, alpha=0.35)
    _line(ax, steps, "heldout_loss", _with(name, "held out"), colour)


def _gap(ax: Axes, steps: Rows, samples: Rows, name: str, colour: str) -> None:
    ax.set_title("audio gap: rise of the held-out loss")
    _line(ax, steps, "audio_gap", _with(name, LABELS["swapped"]), colour)
    _line(ax, steps, "silence_gap", _with(name, "silence"), colour, "--")


def _sync(ax: Axes, steps: Rows, samples: Rows, name: str, colour: str) -> None:
    ax.set_title("Sync-C of sample videos")
    for audio, style in (("right", "-"), ("swapped", ":")):
        at, values = mean_by_step(samples, audio, "sync_c")
        if at:
            ax.plot(at, values, f"{colour}{style}", marker=".", label=_with(name, LABELS[audio]))


def _line(ax: Axes, rows: Rows, field: str, label: str, colour: str, style: str = "-") -> None:
    found = [(row["step"], row[field]) for row in rows if row.get(field) is not None]
    if found:
        ax.plot(*zip(*found, strict=True), f"{colour}{style}", marker=".", label=label)


def _with(name: str, label: str) -> str:
    return f"{name}: {label}" if name else label


def _smooth(values: Sequence[float], width: int = 21) -> np.ndarray:
    """Running mean over up to `width` steps."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)
