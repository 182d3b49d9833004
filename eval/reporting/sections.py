"""Sections of the report, read from the files of a run; an absent part is None or empty."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from common.constants import AUDIO_RATE
from common.media.audio import read_audio
from common.media.index import probe
from common.media.open import MediaError
from common.progress import MetricLog
from common.runs import RunFolder, read_text
from eval.manifest import FLOOR, TRUTH, Methods
from eval.metrics.clip_metrics import METRICS
from eval.reporting import plots
from eval.reporting.pictures import data_uri, frame_strip, image_file_uri
from eval.reporting.summary import read_optional, read_rows, read_run_recipe, scored_methods

KEPT_SHOWN, REFUSED_SHOWN = 4, 12
SCORES_SHOWN = {
    "sync_c": "Sync-C",
    "sync_offset": "offset",
    "iqa_1to5": "IQA",
    "ase_1to5": "ASE",
    "speech_pct": "speech %",
    "snr_db": "SNR dB",
    "sharpness": "sharpness",
    "static_pct": "still %",
    "n_faces_median": "faces",
    "duration": "seconds",
}
MAIN_PACKAGES = (
    "torch", "diffusers", "transformers", "peft", "deepspeed", "ray", "av", "opencv-python", "numpy", "scipy",
)  # fmt: skip


def number(value: float | None, digits: int = 2) -> str:
    """A number for a table, with a true minus sign; a dash for none."""
    return "–" if value is None else f"{round(value, digits) + 0.0:,.{digits}f}".replace("-", "−")


def demo(run: RunFolder) -> dict[str, Any] | None:
    """The generated video as a data URI, its driving voice, sync curve and chunk joins."""
    video = run.videos / "demo.mp4"
    if not video.exists():
        return None
    about = read_optional(run.videos / "demo.json") or {}
    sync = read_optional(run.report / "demo_sync.json") or {"status": "not run"}
    facts = probe(video)
    try:
        wave = read_audio(video)
    except MediaError:
        wave = np.zeros(round(facts.duration * AUDIO_RATE), np.float32)
    curve = np.concatenate([np.full(sync.get("curve_start", 0), np.nan), np.array(sync.get("curve", []), dtype=float)])
    starts = [start / facts.fps for start in about.get("chunk_starts", [])]
    portrait = Path(run.root) / str(about.get("image") or "none")
    return {
        "video": data_uri(video.read_bytes(), "video/mp4"),
        "poster": frame_strip(video, frames=1),
        "portrait": image_file_uri(portrait),
        "prompt": about.get("prompt"),
        "chunks": len(starts),
        "facts": facts,
        "sync": sync,
        "plot": Markup(plots.voice_and_lips(wave, AUDIO_RATE, curve, [s for s in starts if s > 0])),
        "edges": (plots.LEFT, plots.RIGHT),
    }


def avatar(run: RunFolder) -> dict[str, Any] | None:
    """The second system's video of the same picture and voice, from the front and from a camera that swings."""
    front, turned = run.videos / "demo_avatar.mp4", run.videos / "turned" / "demo_avatar.mp4"
    if not front.exists():
        return None
    videos = [("from the front", front)] + ([("the camera swings", turned)] if turned.exists() else [])
    return {
        "videos": [(label, data_uri(path.read_bytes(), "video/mp4"), frame_strip(path, 1)) for label, path in videos],
        "facts": probe(front),
        "sync": read_optional(run.report / "demo_avatar_sync.json") or {"status": "not run"},
        "teacher": read_optional(run.report / "demo_sync.json") or {"status": "not run"},
    }


def funnel(run: RunFolder, summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Bars from sources to kept clips, and the reasons of refusal with their counts."""
    if summary["clips"] is None:
        return None
    rows = read_rows(run.clips_parquet)
    states = Counter(row["decision"] for row in rows)
    sources = read_rows(Path(run.root) / "sources.parquet")
    readable = sum(row.get("state") == "kept" for row in sources) or None
    bars = [
        ("sources", summary["sources"]),
        ("readable", readable),
        ("clips", summary["clips"]),
        ("kept", summary["kept"]),
    ]
    widest = max([count or 0 for _, count in bars] + [1])
    reasons = sorted(summary["refused"].items(), key=lambda item: (-item[1], item[0]))
    return {
        "bars": [(name, count, 100 * count / widest) for name, count in bars if count is not None],
        "reasons": [(name, count, 100 * count / reasons[0][1]) for name, count in reasons],
        "states": {state: count for state, count in sorted(states.items()) if state not in ("kept", "rejected")},
    }


def strips(run: RunFolder) -> dict[str, list[dict[str, Any]]]:
    """Cards of some kept clips and of refused ones, one per reason before any reason comes twice."""
    rows = sorted(read_rows(run.clips_parquet), key=lambda row: row["clip_id"])
    kept_rows = [row for row in rows if row["decision"] == "kept"]
    kept = kept_rows[:: max(1, len(kept_rows) // KEPT_SHOWN)][:KEPT_SHOWN]
    refused = one_of_each([row for row in rows if row["decision"] == "rejected"])[:REFUSED_SHOWN]
    return {"kept": [_card(run, row) for row in kept], "refused": [_card(run, row) for row in refused]}


def one_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows reordered so that each new combination of reasons comes before any repetition."""
    turns: Counter[tuple[str, ...]] = Counter()
    ranked = []
    for number, row in enumerate(rows):
        reasons = tuple(sorted(row["reasons"] or []))
        ranked.append((turns[reasons], number))
        turns[reasons] += 1
    return [rows[number] for _, number in sorted(ranked)]


def _card(run: RunFolder, row: dict[str, Any]) -> dict[str, Any]:
    return {
        "clip_id": row["clip_id"],
        "strip": _strip(run, row),
        "reasons": row["reasons"] or [],
        "caption": row.get("caption"),
        "scores": [(label, row[name]) for name, label in SCORES_SHOWN.items() if row.get(name) is not None],
    }


def _strip(run: RunFolder, row: dict[str, Any]) -> str | None:
    """The cut clip where there is one, else the stretch of the source it stands for."""
    uri = row.get("bytes_uri")
    clip = Path(run.root) / uri if uri else run.clips / f"{row['clip_id']}.mp4"
    if clip.exists():
        return frame_strip(clip)
    source = _source_path(run, row["video_id"])
    return frame_strip(source, start=row["t_start"] or 0.0, end=row["t_end"]) if source else None


def _source_path(run: RunFolder, video_id: str) -> Path | None:
    for row in read_rows(Path(run.root) / "sources.parquet"):
        if row.get("video_id") == video_id and row.get("path"):
            return Path(run.root) / row["path"]
    return None


def training(run: RunFolder) -> dict[str, Any] | None:
    """The loss curve and, where the log has them, the held-out loss and the audio gap."""
    rows = MetricLog(run.logs / "train.jsonl").rows()
    loss, held_out, gap = (_curve(rows, name) for name in ("loss", "heldout_loss", "audio_gap"))
    if len(loss[0]) < 2:
        return None
    tail = max(1, len(loss[0]) // 10)
    return {
        "steps": int(loss[0][-1]),
        "first": float(loss[1][:tail].mean()),
        "last": float(loss[1][-tail:].mean()),
        "gap": float(gap[1][-1]) if len(gap[1]) else None,
        "plot": Markup(plots.loss_curve(loss, held_out, (gap[0], 100 * gap[1]))),
    }


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> plots.Curve:
    """Steps and values (n,) of the log lines that have the number."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return steps, values


def sync_facts(summary: Mapping[str, Any], methods: Methods) -> list[tuple[str, float]]:
    """Label and Sync-C of each method that has one."""
    called = {TRUTH: "real", methods.swapped: "other audio"}
    values = [(called.get(name, name.replace("_", " ")), summary["sync_c"].get(name)) for name in methods.order]
    return [(name, value) for name, value in values if value is not None]


@dataclass(frozen=True)
class Cell:
    """One number of the metric table with its uncertainty in words; `best` only where the paired tests say so."""

    value: float | None
    digits: int
    error: str
    status: str
    n: int
    best: bool


def results(run: RunFolder) -> dict[str, Any] | None:
    """The metric table, the paired tests, the red flags and the per-clip plot."""
    scores = read_optional(run.report / "scores.json")
    if not scores:
        return None
    methods = scores["methods"]
    order = [name for name in (*scored_methods(scores).order, FLOOR) if name in methods]
    by_metric = {name: [scores[name] for scores in methods.values() if name in scores] for name in METRICS}
    shown = {name: m for name, m in METRICS.items() if m.shown and any(s["value"] is not None for s in by_metric[name])}
    absent = [
        (METRICS[name].label, by_metric[name][0]["status"]) for name in METRICS if by_metric[name] and name not in shown
    ]
    rows = [(method, [_cell(scores, method, name) for name in shown], _clips(methods[method])) for method in order]
    return {
        "metrics": list(shown.values()),
        "absent": [(label, status) for label, status in absent if status != "ok"],
        "rows": rows,
        "tests": _tests(scores["comparisons"]),
        "flags": scores["flags"],
        "protocol": scores["protocol"],
        "floor": next((s["how"] for s in methods.get(FLOOR, {}).values() if s.get("how")), None),
        "plot": _per_clip_plot(run, [method for method in order if method != FLOOR]),
    }


def _tests(comparisons: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The tests of each pair of methods; `better` is the share of clips on which the first is the better one."""
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for test in comparisons:
        metric, wins = METRICS[test["metric"]], test.get("win_rate")
        better = wins if wins is None or metric.better > 0 else 1 - wins
        shown = {"label": metric.label, "digits": metric.digits + 1, "better": better}
        grouped.setdefault((test["a"], test["b"]), []).append({**test, **shown})
    return grouped


def _cell(scores: Mapping[str, Any], method: str, name: str) -> Cell:
    metric, score = METRICS[name], scores["methods"][method].get(name)
    if score is None:
        return Cell(None, metric.digits, "", "", 0, False)
    error = ""
    if score["value"] is not None:
        digits = metric.digits
        interval = f"{number(score['low'], digits)} … {number(score['high'], digits)}" if "low" in score else ""
        error = interval or f"± {score['se']:.{digits}f}"
    best = metric.better != 0 and _wins(scores["comparisons"], method, name, metric.better)
    return Cell(score["value"], metric.digits, error, score["status"], score["n"], best)


def _wins(comparisons: Sequence[Mapping[str, Any]], method: str, name: str, better: int) -> bool:
    """Whether every comparison of this method on this metric, and there is one, rejects in its favour."""
    mine = [test for test in comparisons if test["a"] == method and test["metric"] == name]
    return bool(mine) and all(test["p_holm"] < 0.05 and test["difference"] * better > 0 for test in mine)


def _clips(scores: Mapping[str, Any]) -> str:
    sync = scores.get("sync_c")
    if sync is None:
        return str(max((score["n"] for score in scores.values()), default=0))
    return f"{sync['n']}/{sync['clips']}" if sync["n"] else str(sync["clips"])


def _per_clip_plot(run: RunFolder, methods: Sequence[str]) -> Markup | None:
    values: dict[str, dict[str, float]] = {}
    for row in read_rows(run.report / "metrics.parquet"):
        if row["metric"] == "sync_c" and row["value"] is not None and row["method"] in methods:
            values.setdefault(row["method"], {})[row["clip_id"]] = row["value"]
    ordered = {method: values[method] for method in methods if method in values}
    return Markup(plots.per_clip(ordered, "Sync-C")) if ordered else None


def provenance(run: RunFolder) -> dict[str, Any]:
    """The resolved recipe, versions and model hashes that every number above can be traced to."""
    versions = read_optional(Path(run.root) / "versions.json") or {}
    packages = versions.get("packages", {})
    scores = read_optional(run.report / "scores.json") or {}
    return {
        "recipe": read_text(run.recipe_yaml) if read_run_recipe(run) else None,
        "python": versions.get("python"),
        "packages": [(name, packages[name]) for name in MAIN_PACKAGES if name in packages],
        "models": sorted(versions.get("models", {}).items()),
        "code": sorted(versions.get("code", {}).items()),
        "manifest": scores.get("manifest"),
    }
