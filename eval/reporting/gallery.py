"""Best, median and worst clip of the judged method, side by side with the real video and the controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runs import RunFolder
from eval.manifest import Methods, arrange
from eval.metrics.clip_metrics import METRICS
from eval.reporting.card import best_median_worst
from eval.reporting.pictures import data_uri, frame_strip
from eval.reporting.summary import read_optional, read_rows

RANKED_BY = ("sync_c", "csim", "psnr", "iqa")
# A page of tens of megabytes does not open on a telephone.
LARGEST_BYTES = 24_000_000


def gallery(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of playable videos: `title`, `clip_id`, `label` of the score they are ranked by, and `videos` (method, data
    URI, poster, score, digits), the real one first.

    Empty without scores of a generated video, or when the videos would make the page too large.
    """
    rows = read_rows(run.report / "metrics.parquet")
    roles = (read_optional(run.report / "scores.json") or {}).get("roles", {})
    methods = arrange({row["method"] for row in rows}, roles)
    judged = methods.judged
    metric, scores = _ranking(rows, judged)
    ranked = sorted(
        (METRICS[metric].better * values[judged], clip) for clip, values in scores.items() if judged in values
    )
    files: dict[tuple[str, str], Path] = {}
    for row in read_rows(run.videos / "manifest.parquet"):
        files.setdefault((row["clip_id"], row["method"]), Path(run.root) / row["video"])
    chosen = [(title, clip, _files(files, clip, methods)) for title, clip in best_median_worst(ranked)]
    if sum(path.stat().st_size for *_, videos in chosen for _, path in videos) > LARGEST_BYTES:
        return []
    about = {"label": METRICS[metric].label, "method": judged}
    return [
        about
        | {"title": title, "clip_id": clip}
        | {"videos": [_video(path, method, scores[clip], metric) for method, path in videos]}
        for title, clip, videos in chosen
    ]


def _ranking(rows: Sequence[Mapping[str, Any]], judged: str) -> tuple[str, dict[str, dict[str, float]]]:
    """The first of RANKED_BY that the judged system has values for, and clip -> method -> value."""
    for metric in RANKED_BY:
        scores: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["metric"] == metric and row["value"] is not None:
                scores.setdefault(row["clip_id"], {})[row["method"]] = row["value"]
        if any(judged in values for values in scores.values()):
            return metric, scores
    return RANKED_BY[0], {}


def _files(files: Mapping[tuple[str, str], Path], clip: str, methods: Methods) -> list[tuple[str, Path]]:
    listed = [(method, files[clip, method]) for method in methods.order if (clip, method) in files]
    return [(method, path) for method, path in listed if path.exists()]


def _video(path: Path, method: str, scores: Mapping[str, float], metric: str) -> dict[str, Any]:
    content = data_uri(path.read_bytes(), "video/mp4")
    about = {"method": method, "content": content, "poster": frame_strip(path, 1)}
    return about | {"score": scores.get(method), "digits": METRICS[metric].digits}
