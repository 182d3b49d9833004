"""Curation report: one offline HTML file that accounts for every hour of the sources."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
from jinja2 import Environment, FileSystemLoader
from PIL import Image

from common.media.index import index_video
from common.media.open import MediaError
from common.media.video import read_frames
from common.progress import duration_text
from common.query import connect, run_query
from common.runs import RunFolder, atomic_write, read_json, write_json
from curation.config import SelectConfig
from curation.decide.select import decided_sql
from curation.decide.yields import hours_rows
from curation.reporting.pilot import read_pilot
from curation.reporting.plan import Plan

TEMPLATES = Path(__file__).parent / "templates"
PLAN_FILE = "plan.json"
REASONS_SHOWN, THUMBNAILS = 30, 3
THUMBNAIL_HEIGHT = 96  # pixels
WIDTH, HEIGHT = 560, 130  # of a histogram, in its own units

_OFFSETS = """
    WITH scored AS (SELECT sync_offset AS before, sync_offset - coalesce(sync_offset_applied, 0) AS after FROM clips
                    WHERE sync_offset IS NOT NULL),
    moved AS (UNPIVOT scored ON before, after INTO NAME time VALUE shift)
    SELECT time, shift AS at_least, count(*) AS clips FROM moved GROUP BY ALL ORDER BY ALL"""
_DOWNLOADS = """
    SELECT coalesce(json_extract_string(outputs, '$.exit'), 'not asked') AS exit, count(*) AS videos,
    count(*) FILTER (state = 'kept') AS fetched, count(*) FILTER (state = 'rejected') AS dead,
    count(*) FILTER (state IN ('failed', 'pending')) AS waiting,
    coalesce(sum(json_extract(outputs, '$.bytes')::DOUBLE), 0) / 1e9 AS gigabytes,
    coalesce(sum(json_extract(outputs, '$.forbidden')::INT), 0) AS forbidden, sum(seconds) / 3600 AS hours
    FROM outcomes WHERE stage = 'download' GROUP BY 1 ORDER BY 1"""


def save_plan(run: RunFolder, plan: Plan) -> None:
    """Store a forecast with its run, for comparison with the actual costs. Raises DiskFullError."""
    write_json(run.report / PLAN_FILE, plan)


def write_curation_report(run: RunFolder, config: SelectConfig) -> Path:
    """Write `report/curation.html` from the tables, clips and ledger of a run, decided by `config`; returns its path.

    Includes a forecast stored by `save_plan` and the results on planted faults, where they exist. Raises
    FileNotFoundError before the first `curate`, and DiskFullError.
    """
    hours = _hours(hours_rows(run.root, config))
    with connect(run.root) as connection:
        reasons = _rows(connection, _reasons_sql(config))
        offsets = _rows(connection, _OFFSETS)
        downloads = _rows(connection, _DOWNLOADS)
    scores = run_query(run.root, "scores").to_pylist()
    for reason in reasons:
        files = [run.clips / f"{clip}.mp4" for clip in reason["samples"]]
        reason["images"] = [image for file in files if (image := thumbnail(file))]
    faults = run.report / "faults.json"
    page = _render(
        run=Path(run.root).name,
        hours=hours,
        reasons=[reason for reason in reasons if not reason["pending"]],
        pending=[reason for reason in reasons if reason["pending"]],
        histograms=[
            histogram("Sync-C of SyncNet", _bins(scores, "sync_c"), 0.25, config.min_sync_c),
            histogram("image quality, 1 to 5", _bins(scores, "iqa_1to5"), 0.1, config.min_iqa),
            histogram("offset of the audio as measured, frames", _shifts(offsets, "before"), 1.0),
            histogram("offset after correction, frames", _shifts(offsets, "after"), 1.0),
        ],
        downloads=downloads,
        stages=_forecast_and_fact(run),
        faults=read_json(faults) if faults.exists() else None,
    )
    path = run.report / "curation.html"
    with atomic_write(path) as temporary:
        temporary.write_text(page, "utf-8", "backslashreplace")
    return path


def histogram(
    title: str, bins: Sequence[tuple[float, int]], width: float, threshold: float | None = None
) -> dict[str, Any]:
    """What the template draws of (lower edge, count) pairs of bins `width` wide: bars below and above `threshold`."""
    if not bins:
        return {"title": title, "clips": 0}
    low, high = bins[0][0], bins[-1][0] + width
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    scale, top = WIDTH / (high - low), max(count for _, count in bins)
    bars = [
        {
            "x": round((edge - low) * scale, 2),
            "width": round(width * scale * 0.92, 2),
            "height": round(HEIGHT * count / top, 2),
            "refused": threshold is not None and edge + width / 2 < threshold,
            "text": f"{edge:g}: {count} clips",
        }
        for edge, count in bins
    ]
    mark = None if threshold is None else {"x": round((threshold - low) * scale, 2), "text": f"{threshold:g}"}
    clips = sum(count for _, count in bins)
    return {"title": title, "clips": clips, "bars": bars, "mark": mark, "low": low, "high": high, "top": top}


def _reasons_sql(config: SelectConfig) -> str:
    return f"""
        WITH decided AS ({decided_sql(config)}),
        others AS (SELECT clip_id, decision = 'pending' AS pending, duration, unnest(reasons) AS reason
                   FROM decided WHERE decision <> 'kept')
        SELECT pending, reason, count(*) AS clips, sum(duration) / 3600 AS hours, min(clip_id, {THUMBNAILS}) AS samples
        FROM others GROUP BY pending, reason ORDER BY clips DESC, reason LIMIT {REASONS_SHOWN}"""


def _rows(connection: duckdb.DuckDBPyConnection, sql: str) -> list[dict[str, Any]]:
    return connection.sql(sql).to_arrow_table().to_pylist()


def _hours(rows: Sequence[tuple[float, str]]) -> list[tuple[float, str, float]]:
    """Hours, words and bar width in percent, of the rows of `curation.decide.yields.hours_rows`."""
    widest = max([abs(hours) for hours, _ in rows] + [1e-9])
    return [(hours, words, round(100 * abs(hours) / widest, 2)) for hours, words in rows]


def _bins(scores: Sequence[Mapping[str, Any]], name: str) -> list[tuple[float, int]]:
    return [(r["at_least"], r["clips"]) for r in scores if r["score"] == name and r["at_least"] is not None]


def _shifts(offsets: Sequence[Mapping[str, Any]], time: str) -> list[tuple[float, int]]:
    """Bins around whole frames."""
    return [(row["at_least"] - 0.5, row["clips"]) for row in offsets if row["time"] == time]


def _forecast_and_fact(run: RunFolder) -> list[dict[str, Any]]:
    """Hours of work per stage as it came, and as it was forecast (None where it was not)."""
    file = run.report / PLAN_FILE
    planned = {row["stage"]: row for row in read_json(file, "stages")["stages"]} if file.exists() else {}
    pilot = read_pilot(run.root)
    written = {"download": "wire_bytes", "cut": "clip_bytes", "latents": "shard_bytes"}
    stages = [*planned, *(stage for stage in pilot.cpu if stage not in planned)]
    return [
        {
            "stage": stage,
            "planned": planned.get(stage),
            "cpu": float(pilot.cpu[stage].sum()) if stage in pilot.cpu else None,
            "gpu": float(pilot.gpu[stage].sum()) if stage in pilot.gpu else None,
            "gb": float(pilot.bases[written[stage]].sum()) / 1e9 if stage in written and stage in pilot.cpu else None,
        }
        for stage in stages
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _estimate(value: Mapping[str, float | None] | None) -> str:
    """A figure of the plan with its interval."""
    if value is None:
        return "–"
    spread = "" if value["low"] is None else f" [{_number(value['low'], 3)}, {_number(value['high'], 3)}]"
    return _number(value["value"], 3) + spread


def _render(**context: Any) -> str:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": _number,
        "estimate": _estimate,
        "duration": lambda hours: duration_text(3600 * hours),
    }
    environment.filters["words"] = lambda name: name.replace("_", " ")
    return environment.get_template("curation.html.j2").render(width=WIDTH, height=HEIGHT, **context)


def thumbnail(file: Path) -> str | None:
    """The middle frame as a JPEG `data:` address, `THUMBNAIL_HEIGHT` px high; None for an absent or damaged file."""
    try:
        middle = len(index_video(file).times) // 2
        image = Image.fromarray(read_frames(file, [middle])[0])
    except (FileNotFoundError, MediaError):
        return None
    width = min(4 * THUMBNAIL_HEIGHT, max(1, round(image.width * THUMBNAIL_HEIGHT / image.height)))
    buffer = io.BytesIO()
    image.resize((width, THUMBNAIL_HEIGHT), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
