"""Frames of one clip in every row of a sweep, one below the other: what the numbers of the table look like."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from common.runs import atomic_write
from eval.manifest import TRUTH
from eval.reporting.pictures import side_by_side
from eval.scoring.eval_table import Table, by_clip
from pipelines.config import JUDGED
from pipelines.sweep.plots import INK
from pipelines.sweep.settings import Places, SweepConfig
from pipelines.sweep.table import row_tables

FRAMES = 12
QUALITY = 88
WIDTH, LABELS = 10.5, 0.18  # inches, and the share of them that labels have
PAGES = (("clips", False), ("long_clips", True))  # picture, whether of long videos


def write_strips(config: SweepConfig, places: Places, folder: Path) -> list[Path]:
    """JPEGs: `clips`, the clip in which the base row is median by its first metric, of the first seed, below the real
    video; `long_clips`, the first long video from beginning to end. Rows whose video is not there are left out."""
    made = [_write_page(config, places, long, folder / f"{name}.jpg") for name, long in PAGES]
    return [path for path in made if path is not None]


def _write_page(config: SweepConfig, places: Places, long: bool, path: Path) -> Path | None:
    base, metrics = (config.long_base, config.long_metrics) if long else (config.base, config.metrics)
    seed = config.seeds[0]
    tables = row_tables(config, places, base) if base else {}
    if seed not in tables or (clip := _clip(tables[seed], metrics[0], long)) is None:
        return None
    rows = {name: row for name, row in config.rows.items() if bool(row.long) == long and not row.network}
    files = {row.label or name: places.row(name, seed) / "videos" / JUDGED for name, row in rows.items()}
    real = {} if long else {"ground truth": places.row(base, seed) / "videos" / TRUTH}
    strips = {label: side_by_side(folder / f"{clip}.mp4", FRAMES) for label, folder in (real | files).items()}
    found = {label: strip for label, strip in strips.items() if strip is not None}
    if not found:
        return None
    figure = _figure(found)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, pil_kwargs={"quality": QUALITY})
    return path


def _clip(table: Table, metric: str, first: bool) -> str | None:
    values = by_clip(table, JUDGED, metric)
    ranked = sorted(values) if first else sorted(values, key=lambda clip: (values[clip], clip))
    return ranked[0 if first else len(ranked) // 2] if ranked else None


def _figure(strips: dict[str, np.ndarray]) -> Figure:
    high, wide = next(iter(strips.values())).shape[:2]
    figure = Figure(figsize=(WIDTH, (1 - LABELS) * WIDTH * high / wide * len(strips)))
    figure.subplots_adjust(left=LABELS, right=1, bottom=0, top=1, hspace=0)
    axes = figure.subplots(len(strips), 1, squeeze=False)[:, 0]
    for ax, (label, strip) in zip(axes, strips.items(), strict=True):
        ax.imshow(strip, aspect="equal")
        ax.set_yticks([strip.shape[0] / 2], [label])
        ax.set_xticks([])
        ax.tick_params(length=0, labelsize=8, labelcolor=INK)
        ax.spines[:].set_visible(False)
    return figure
