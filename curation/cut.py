"""Shots into clips: pieces of a bearable length, each its own 25 fps file with 16 kHz sound."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from common.clips import clip_id
from common.executors import Stage
from common.ledger import Outcome
from common.media import MediaError, cut_clip
from common.runs import sha256_file
from curation.duplicates import fingerprint_clip

RULE_VERSION = "1"  # part of every clip id: raise it when the same video would be cut elsewhere
FRAME = 0.04
STILL_CHANGE = 2  # of 255, in any cell of the scan's grid: what a good codec does to a frame that repeats the last


@dataclass(frozen=True)
class CutConfig:
    """`max_seconds`: a longer shot is cut into equal pieces. `min_seconds`: a shorter one stays a row without a file
    or scores; keep it at or below `select.min_seconds`."""

    min_seconds: float = 2.0
    max_seconds: float = 20.0

    def __post_init__(self) -> None:
        if not 0 < self.min_seconds <= self.max_seconds / 2:
            raise ValueError(
                f"cut.min_seconds {self.min_seconds} and cut.max_seconds {self.max_seconds}: expected "
                "0 < min_seconds <= max_seconds / 2, or pieces of a long shot would be too short."
            )


def split_shots(config: CutConfig, duration: float, cuts: Sequence[float]) -> list[tuple[int, float, float]]:
    """Shot number, start and end of each clip: seconds in whole milliseconds, its length a multiple of 40 ms."""
    edges = [0.0, *cuts, duration]
    pieces = []
    for shot, (begin, end) in enumerate(zip(edges, edges[1:], strict=False)):
        frames = round((end - begin) / FRAME, 3)
        count = max(1, math.ceil(frames / math.floor(config.max_seconds / FRAME)))
        bounds = [math.floor(frames * number / count) for number in range(count + 1)]
        for first, last in zip(bounds, bounds[1:], strict=False):
            start = round(begin, 3) + first * FRAME
            pieces.append((shot, round(start, 3), round(start + (last - first) * FRAME, 3)))
    return [piece for piece in pieces if piece[2] > piece[1]]


def clip_rows(config: CutConfig, source: dict[str, Any]) -> list[dict[str, Any]]:
    """The clips of one probed and scanned source: fields of the clip table, plus `unit`, `path`, `source_sha256` and
    `faces` (the scan's, on the clip's clock)."""
    motion = np.asarray(source["motion"])
    # Times of the changes; the frames of a variable rate are a little off, which a share does not feel.
    shown = np.linspace(0, source["duration"], len(motion) + 1, endpoint=False)[1:]
    rows = []
    for shot, start, end in split_shots(config, source["duration"], source["cuts"]):
        inside = motion[(shown > start) & (shown < end)]
        name = clip_id(source["unit"], round(start * 1000), round(end * 1000), RULE_VERSION)
        rows.append(
            {
                "unit": name,
                "clip_id": name,
                "video_id": source["unit"],
                "path": source["path"],
                "source_sha256": source["sha256"],
                "source": source["source"],
                "row_index": source["row_index"],
                "t_start": start,
                "t_end": end,
                "duration": round(end - start, 3),
                "shot_id": shot,
                "static_pct": round(100 * float(np.mean(inside <= STILL_CHANGE)), 2) if len(inside) else None,
                "faces": [(round(t - start, 4), boxes) for t, boxes in source["faces"] if start <= t < end],
            }
            | _stream_fields(source)
        )
    return rows


def _stream_fields(source: dict[str, Any]) -> dict[str, Any]:
    return {
        "fps_src": round(source["fps"], 4),
        "width": source["width"],
        "height": source["height"],
        "codec": source["codec"],
        "audio_rate": source["audio_rate"],
        "video_start_pts": round(source["video_start"], 6),
        "audio_start_pts": round(source["audio_start"], 6),
    }


def cut_stage(folder: Path) -> Stage:
    """The stage over clip rows; it writes `<folder>/<clip_id>.mp4`.

    Outputs: sha256 of that file and its fingerprint for finding duplicates (hashes, loudness).
    """
    reads = ("unit", "source_sha256", "t_start", "t_end")
    return Stage("cut", RULE_VERSION, {}, {}, partial(_make, folder), reads=reads)


def _make(folder: Path) -> Callable[[dict[str, Any]], Outcome]:
    return partial(_cut_and_fingerprint, folder)


def _cut_and_fingerprint(folder: Path, row: dict[str, Any]) -> Outcome:
    outcome = cut_row(folder, row)
    if outcome.state != "kept":
        return outcome
    return replace(outcome, outputs=outcome.outputs | fingerprint_clip(folder / f"{row['unit']}.mp4"))


def cut_row(folder: Path, row: dict[str, Any], shift: int = 0) -> Outcome:
    """Write one clip file, its sound delayed by `shift` frames; rejected when the source cannot be decoded there."""
    target = folder / f"{row['unit']}.mp4"
    try:
        cut_clip(row["path"], target, row["t_start"], row["t_end"], audio_shift=shift * FRAME)
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    return Outcome(row["unit"], "kept", outputs={"sha256": sha256_file(target)})
