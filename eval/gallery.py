"""The best, the median and the worst clip of the judged system, side by side with the real one and the controls."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.runs import RunFolder
from eval.pictures import data_uri, frame_strip
from eval.study import TRUTH
from eval.summary import read_rows

JUDGED = "adapter"
ORDER = (TRUTH, JUDGED, "swapped_audio", "base")
# A page of tens of megabytes does not open on a telephone.
LARGEST_BYTES = 24_000_000


def gallery(run: RunFolder) -> list[dict[str, Any]]:
    """Rows of playable videos: `title`, `clip_id` and `videos` (method, data URI, poster, Sync-C) in ORDER.

    Empty without scores of the adapter, or when the videos would make the page too large.
    """
    scores: dict[str, dict[str, float]] = {}
    for row in read_rows(run.report / "metrics.parquet"):
        if row["metric"] == "sync_c" and row["value"] is not None:
            scores.setdefault(row["clip_id"], {})[row["method"]] = row["value"]
    judged = sorted((methods[JUDGED], clip) for clip, methods in scores.items() if JUDGED in methods)
    manifest = read_rows(run.videos / "manifest.parquet")
    files = {(row["clip_id"], row["method"]): Path(run.root) / row["video"] for row in manifest}
    chosen = [(title, clip, _files(files, clip)) for title, clip in best_median_worst(judged)]
    if sum(path.stat().st_size for *_, found in chosen for _, path in found) > LARGEST_BYTES:
        return []
    return [
        {"title": title, "clip_id": clip, "videos": [_video(path, method, scores[clip]) for method, path in found]}
        for title, clip, found in chosen
    ]


def best_median_worst(ranked: Sequence[tuple[float, str]]) -> list[tuple[str, str]]:
    """(title, clip) of the ends and the middle of clips in ascending order of score; fewer when there are fewer."""
    if not ranked:
        return []
    places = {"best": len(ranked) - 1, "median": len(ranked) // 2, "worst": 0}
    picked: dict[int, str] = {}
    for title, place in places.items():
        picked.setdefault(place, title)
    return [(title, ranked[place][1]) for place, title in picked.items()]


def _files(files: Mapping[tuple[str, str], Path], clip: str) -> list[tuple[str, Path]]:
    found = [(method, files[clip, method]) for method in ORDER if (clip, method) in files]
    return [(method, path) for method, path in found if path.exists()]


def _video(path: Path, method: str, scores: Mapping[str, float]) -> dict[str, Any]:
    content = data_uri(path.read_bytes(), "video/mp4")
    return {"method": method, "content": content, "poster": frame_strip(path, 1), "sync_c": scores.get(method)}
