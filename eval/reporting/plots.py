"""Plots of the report as inline SVG that follows the page's light or dark colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

# Drawn in stand-in colours, which the SVG then exchanges for the page's own CSS variables.
INK, MUTED, GRID, VOICE, LIPS, WARN = "#010101", "#020202", "#030303", "#040404", "#050505", "#060606"
THEME = {INK: "ink", MUTED: "muted", GRID: "line", VOICE: "voice", LIPS: "lips", WARN: "warn"}
Curve = tuple[np.ndarray, np.ndarray]
# Left and right edge of every plot area as a share of its width; the playhead of the video moves between them.
LEFT, RIGHT = 0.07, 0.985
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 10,
    "axes.edgecolor": GRID,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def _figure(height: float, rows: Sequence[float] = (1.0,), width: float = 9.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(len(rows), 1, sharex=len(rows) > 1, squeeze=False, height_ratios=list(rows))[:, 0]
    for ax in axes:
        ax.set_facecolor("none")
        ax.grid(axis="y", color=GRID, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.tick_params(length=0)
    figure.subplots_adjust(left=LEFT, right=RIGHT, top=0.97, bottom=min(0.3, 0.45 / height), hspace=0.12)
    return figure, list(axes)


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an SVG element; `name` keeps its inner ids apart from those of other plots."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.patch.set_alpha(0)
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for colour, variable in THEME.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font: \1 var(--sans)", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.S)
    # Without its fixed size the picture fills the column.
    end = svg.index(">")
    svg = re.sub(r' (width|height)="[^"]*"', "", svg[:end]) + svg[end:]
    return svg.replace("<svg", f'<svg role="img" aria-label="{label}"', 1)


def voice_and_lips(wave: np.ndarray, rate: int, curve: np.ndarray, joins: Sequence[float]) -> str:
    """Audio (n,) as an envelope above the sync distance per frame at 25 fps; `joins` are chunk starts in seconds."""
    with rc_context(STYLE):
        figure, (top, bottom) = _figure(3.3, (1.0, 1.15))
        seconds = len(wave) / rate
        columns = np.array_split(wave, min(len(wave), 1200))
        peaks = np.array([[part.min(), part.max()] for part in columns])
        at = np.linspace(0, seconds, len(columns))
        top.fill_between(at, peaks[:, 0], peaks[:, 1], color=VOICE, linewidth=0)
        top.set(ylabel="voice", yticks=[], xlim=(0, seconds))
        top.grid(False)
        if len(curve):
            times = np.arange(len(curve)) / 25.0
            bottom.plot(times, curve, color=LIPS, linewidth=1.6)
            bottom.fill_between(times, curve, np.nanmin(curve), color=LIPS, alpha=0.12, linewidth=0)
        else:
            bottom.text(0.5, 0.5, "not scored", transform=bottom.transAxes, ha="center", va="center", color=MUTED)
        for ax in (top, bottom):
            for join in joins:
                ax.axvline(join, color=MUTED, linewidth=0.9, linestyle=(0, (2, 3)))
        bottom.set(ylabel="sync distance", xlabel="seconds")
        return _svg(figure, "voice", "waveform of the voice above the sync distance per frame")


def loss_curve(loss: Curve, held_out: Curve, gap: Curve) -> str:
    """Training loss with its running mean and, where there are any, the held-out loss and the audio gap (%) below."""
    shows_gap = len(gap[0]) > 1
    with rc_context(STYLE):
        figure, axes = _figure(3.6 if shows_gap else 2.6, (1.6, 1.0) if shows_gap else (1.0,))
        top, bottom = axes[0], axes[-1]
        top.plot(*loss, color=VOICE, linewidth=0.7, alpha=0.45)
        top.plot(loss[0], running_mean(loss[1], max(1, len(loss[1]) // 20)), color=VOICE, linewidth=2, label="training")
        if len(held_out[0]):
            top.plot(*held_out, color=LIPS, linewidth=1.6, marker="o", markersize=3.5, label="held out")
            top.legend(frameon=False, labelcolor=MUTED, loc="upper right")
        top.set(ylabel="loss")
        if shows_gap:
            bottom.plot(*gap, color=LIPS, linewidth=1.6, marker="o", markersize=3.5)
            bottom.axhline(0, color=MUTED, linewidth=0.8)
            bottom.set(ylabel="audio gap, %")
        bottom.set(xlabel="step")
        return _svg(figure, "loss", "training loss over steps")


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Centred mean over `width` values (n,) -> (n,); the window shrinks at both ends."""
    sums = np.cumsum([0.0, *values])
    at = np.arange(len(values))
    low, high = np.maximum(0, at - width), np.minimum(len(values), at + width + 1)
    return (sums[high] - sums[low]) / (high - low)


def per_clip(values: Mapping[str, Mapping[str, float]], label: str) -> str:
    """One dot per clip and method, a line through the dots of one clip, a bar at the mean; method -> clip -> value."""
    with rc_context(STYLE):
        figure, (ax,) = _figure(3.4)
        methods = list(values)
        clips = sorted(set().union(*(values[method] for method in methods)))
        spread = np.linspace(-0.12, 0.12, max(2, len(clips)))
        for clip, shift in zip(clips, spread, strict=False):
            points = [(i + shift, values[method].get(clip, np.nan)) for i, method in enumerate(methods)]
            ax.plot(*zip(*points, strict=True), color=GRID, linewidth=0.7, zorder=1)
            ax.plot(*zip(*points, strict=True), "o", color=VOICE, markersize=4, alpha=0.65, zorder=2)
        for i, method in enumerate(methods):
            mean = float(np.mean(list(values[method].values())))
            ax.plot([i - 0.24, i + 0.24], [mean, mean], color=LIPS, linewidth=2.6, zorder=3)
            ax.annotate(f"{mean:.2f}", (i + 0.27, mean), color=INK, va="center", fontweight="bold")
        ax.set(ylabel=label, xlim=(-0.5, len(methods) - 0.4), xticks=range(len(methods)))
        ax.set_xticklabels([method.replace("_", " ") for method in methods], color=INK)
        return _svg(figure, "clips", f"{label} per clip and method")
