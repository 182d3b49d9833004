"""Shots into clips of bounded length: arithmetic over the spans that the scan and the data set give."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from common.clips import clip_id
from curation.config import CutConfig
from curation.rows import ClipRow, Scan, Segment, SourceRow

RULE_VERSION = "1"  # part of every clip id: raise it when the same video would be cut elsewhere

FRAME = 0.04

STILL_CHANGE = 2  # of 255, in any cell of the scan's grid: what a good codec does to a frame that repeats the last


def split_shots(
    config: CutConfig,
    duration: float,
    cuts: Sequence[float],
    audio_span: Sequence[float] = (),
    shot_ends: Sequence[float] | None = None,
) -> list[tuple[int, float, float]]:
    """Shot number, start and end of each clip: seconds in whole milliseconds, its length a multiple of 40 ms.

    Shots begin at `cuts`, and end there or at `shot_ends`: a dissolve belongs to neither. Where `audio_span` gives the
    first and last moment with sound, no clip lies beyond: lips would move in silence.
    """
    least, most = audio_span or (0.0, duration)
    shots = enumerate(zip([0.0, *cuts], [*(cuts if shot_ends is None else shot_ends), duration], strict=True))
    pieces = (
        (shot, *piece)
        for shot, (begin, end) in shots
        for piece in split_span(config, max(begin, least), min(end, most))
    )
    return [piece for piece in pieces if piece[2] > piece[1]]


def split_span(config: CutConfig, begin: float, end: float) -> list[tuple[float, float]]:
    """Start and end of the equal pieces, none longer than `max_seconds`, of one span of a video; maybe empty ones."""
    frames = round((end - begin) / FRAME, 3)
    count = max(1, math.ceil(frames / math.floor(config.max_seconds / FRAME)))
    bounds = [math.floor(frames * number / count) for number in range(count + 1)]
    starts = [round(begin, 3) + bound * FRAME for bound in bounds]
    return [
        (round(start, 3), round(start + (last - first) * FRAME, 3))
        for start, first, last in zip(starts, bounds, bounds[1:], strict=False)
    ]


def source_fields(source: SourceRow) -> ClipRow:
    """What every clip of a source has of it."""
    return {
        "video_id": source["unit"],
        "path": source["path"],
        "source_sha256": source["sha256"],
        "presentation": source.get("presentation", ""),
        "source": source["source"],
        "fps_src": round(source["fps"], 4),
        "width": source["width"],
        "height": source["height"],
        "codec": source["codec"],
        "color_transfer": source.get("color_transfer") or None,
        "digital_source_type": source.get("digital_source_type"),
        "audio_rate": source["audio_rate"],
        "video_start_pts": round(source["video_start"], 6),
        "audio_start_pts": round(source["audio_start"], 6),
        "shot_judge": source.get("shot_judge", ""),
        "face_judge": source.get("face_judge", ""),
    }


class Piece(NamedTuple):
    """One clip to be: the fields of its own, which stand over those of `source_fields`, and the faces in it,
    [(seconds on the clip's clock, [[x0, y0, x1, y1], ...]), ...] in pixels of the clip; where keypoints are known, x
    and y of the five follow the box."""

    row: ClipRow
    faces: list[tuple[float, list[list[float]]]]


def split_source(config: CutConfig, source: SourceRow, scan: Scan) -> list[Piece]:
    """The clips of one probed and scanned source, each span once.

    A source with `segments` (see `curation.sources.remote.remote_row`) hands on of each clip's segment `row_index` and
    the annotated point: `x`, `y` (fractions of the clip's frame) at `point_at` (seconds on the clip's clock).
    """
    motion, seen = np.asarray(scan.motion), scan.with_points()
    # Times of the changes; the frames of a variable rate are a little off, which a share does not feel.
    shown = np.linspace(0, source["duration"], len(motion) + 1, endpoint=False)[1:]
    pieces: dict[str, Piece] = {}
    for shot, start, end, segment in _spans(config, source):
        inside = motion[(shown > start) & (shown < end)]
        name = clip_id(source["unit"], round(start * 1000), round(end * 1000), RULE_VERSION)
        row: ClipRow = {
            "unit": name,
            "clip_id": name,
            "row_index": segment["row_index"] if segment else source["row_index"],
            "t_start": start,
            "t_end": end,
            "duration": round(end - start, 3),
            "shot_id": shot,
            "static_pct": round(100 * float(np.mean(inside <= STILL_CHANGE)), 2) if len(inside) else None,
            "crop": None,
            "size": None,
        }
        faces = [(round(t - start, 4), boxes) for t, boxes in seen if start <= t < end]
        piece = Piece(row, faces)
        pieces.setdefault(name, _with_segment(config, piece, segment, source) if segment else piece)
    return list(pieces.values())


def _spans(config: CutConfig, source: SourceRow) -> Iterator[tuple[int, float, float, Segment | None]]:
    """Shot number, start, end and data set's segment of each clip."""
    segments, duration, cuts = source.get("segments") or [], source["duration"], source["cuts"]
    audio_span = source.get("audio_span") or [0.0, duration]
    if segments and config.use_segments == "exact":
        for segment in segments:
            # What lies beyond the video's end, or its sound's, stays a row, of no length.
            begin, end = (min(max(audio_span[0], segment[edge]), audio_span[1]) for edge in ("start", "end"))
            for first, last in split_span(config, begin, max(begin, end)):
                yield bisect_right(cuts, first), first, last, segment
        return
    for shot, first, last in split_shots(config, duration, cuts, audio_span, source.get("shot_ends")):
        if not segments or config.use_segments == "ignore":
            yield shot, first, last, None
            continue
        shared = [min(last, segment["end"]) - max(first, segment["start"]) for segment in segments]
        if max(shared) >= FRAME:
            yield shot, first, last, segments[shared.index(max(shared))]


def _with_segment(config: CutConfig, piece: Piece, segment: Segment, source: SourceRow) -> Piece:
    """A clip with its segment's point and, where the data set names a square to crop, all of it in that square."""
    row, faces = piece
    x, y = segment["x"], segment["y"]
    point_at = round(segment["start"] - row["t_start"], 3)
    if not segment.get("crop"):
        return Piece({**row, "x": x, "y": y, "point_at": point_at}, faces)
    x0, y0, width, height = segment["crop"]
    side = config.crop_side
    if x is not None:
        x = (x * source["width"] - x0) / width
        y = (y * source["height"] - y0) / height
    scale = side / np.array([width, height])
    moved = [  # corners and keypoints alike
        (time, ((np.reshape(boxes, (-1, 2)) - (x0, y0)) * scale).reshape(len(boxes), -1) if boxes else np.zeros((0, 4)))
        for time, boxes in faces
    ]
    square: ClipRow = {"crop": [x0, y0, width, height], "size": [side, side], "width": side, "height": side}
    cropped: ClipRow = {**row, "x": x, "y": y, "point_at": point_at, **square}
    return Piece(cropped, [(time, _inside(boxes, side)) for time, boxes in moved])


def _inside(boxes: np.ndarray, side: int) -> list[list[float]]:
    """Boxes (n, 4 or 14) whose middle lies in the crop."""
    middles = (boxes[:, :2] + boxes[:, 2:4]) / 2
    return [[round(float(edge), 1) for edge in box] for box in boxes[((middles >= 0) & (middles < side)).all(axis=1)]]
