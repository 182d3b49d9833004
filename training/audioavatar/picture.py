"""Picture of a trained second system: losses of its networks, and talks beside their teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from common.progress import MetricLog
from common.runs import atomic_write

_LOSSES = {
    "embed": ("similar", "rebuilt"),
    "motion": ("loss",),
    "refine": ("loss",),
    "joint": ("simple", "l1", "ssim"),
}
_SHOWN = 12  # frames of a talk


@dataclass(frozen=True)
class Shown:
    """A talk: what is written above it, the frames of the teacher and those of the avatar (T, H, W, 3) uint8."""

    title: str
    teacher: np.ndarray
    avatar: np.ndarray


def draw_training(log: MetricLog, talks: Sequence[Shown], target: Path) -> None:
    """Write a PNG: the losses in the log, then of each talk twelve frames by the teacher above the avatar's.

    Raises DiskFullError.
    """
    rows = log.rows()
    panels = {stage: [row for row in rows if row["stage"] == f"{stage} losses"] for stage in _LOSSES}
    panels = {stage: found for stage, found in panels.items() if found}
    figure = Figure(figsize=(14, 2.8 + 2.5 * len(talks)), layout="constrained")
    parts = figure.subfigures(1 + len(talks), 1, height_ratios=[2.8, *[2.5] * len(talks)], squeeze=False)[:, 0]
    for axes, (stage, found) in zip(
        parts[0].subplots(1, max(len(panels), 1), squeeze=False)[0], panels.items(), strict=False
    ):
        _losses(axes, stage, found)
    for part, talk in zip(parts[1:], talks, strict=True):
        axes = part.subplots()
        axes.imshow(_strip(talk))
        axes.set_title(talk.title, fontsize=9, loc="left", parse_math=False)  # a $ in a name is a $
        axes.set_axis_off()
    with atomic_write(target) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _losses(axes: Axes, stage: str, rows: Sequence[dict[str, float]]) -> None:
    # A training that was killed has done some steps twice.
    rows = [row for _, row in sorted({row["step"]: row for row in rows}.items())]
    for name in _LOSSES[stage]:
        axes.semilogy([row["step"] for row in rows], [row[name] for row in rows], label=name)
    axes.set_title(stage, fontsize=9)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _strip(talk: Shown) -> np.ndarray:
    """Frames at equal distances: the teacher's in a row, below it the avatar's at the same times."""
    count = min(len(talk.teacher), len(talk.avatar))
    chosen = np.linspace(0, count - 1, min(_SHOWN, count)).round().astype(int)
    return np.concatenate([np.concatenate(list(video[chosen]), axis=1) for video in (talk.teacher, talk.avatar)])
