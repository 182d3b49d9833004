"""HDTF (Zhang et al., CVPR 2021): five text files for each of three subsets, which have gaps.

Times and crops belong to one clip, `name_index`; crops are in pixels at the height of the authors' copy, which is
listed beside them and may differ from the current video.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from common.errors import MissingFileError
from common.untrusted.lists import text_lines
from curation.sources.remote import WATCH, Row, SourcesError, refused_row, remote_row, youtube_id

logger = logging.getLogger(__name__)

SUBSETS = ("RD", "WDA", "WRA")
INTERVAL = re.compile(r"(\d+):(\d\d)-(\d+):(\d\d)")
# A crop may pass the edge of the frame by this share of its side; beyond that it belongs to another version.
OVERHANG = 0.02


def list_hdtf(folder: Path, source: str = "") -> list[Row]:
    """One row per video with its intervals as segments, in the order of the time lists; then the invalid entries.

    `folder` holds the text files or is the data set's repository. Raises FileNotFoundError for a file that is missing
    and SourcesError for files without a single interval.
    """
    folder = folder / "HDTF_dataset" if (folder / "HDTF_dataset").is_dir() else folder
    videos: dict[str, Row] = {}
    refused: list[Row] = []
    number = 0
    for subset in SUBSETS:
        for name, url, intervals, problem in _videos(folder, subset, source or "hdtf"):
            if problem:
                refused.append(problem)
                continue
            unit = youtube_id(url) or name
            row = videos.setdefault(unit, remote_row(unit, _address(url), source or "hdtf", []))
            row["segments"] += [interval | {"row_index": number + i} for i, interval in enumerate(intervals)]
            number += len(intervals)
    if not videos:
        raise SourcesError(f"{folder} holds no HDTF interval; expected RD_annotion_time.txt and its fourteen siblings.")
    cropless = sum(segment["crop"] is None for row in videos.values() for segment in row["segments"])
    logger.info("%s: %d intervals of %d videos, %d without a usable crop", folder, number, len(videos), cropless)
    return [*videos.values(), *refused]


def _address(url: str) -> str:
    name = youtube_id(url)
    return WATCH + name if name else url


def _videos(folder: Path, subset: str, source: str) -> Iterator[tuple[str, str, list[Row], Row | None]]:
    """Name, address and segments of each annotated video of a subset, or the row that rejects it."""
    urls, heights, times, crops = (_table(folder, subset, kind) for kind in KINDS)
    for name, spans in times.items():
        bad = [span for span in spans if not _seconds(span)]
        if name not in urls or not spans or bad:
            what = f"the interval {bad[0]!r}" if bad else "no address" if name not in urls else "no interval"
            message = f"{name} has {what} in the HDTF lists of {subset}; expected an address and mm:ss-mm:ss."
            yield name, "", [], refused_row(f"{subset}:{name}", source, "malformed_row", message)
            continue
        height = int(heights[name][0]) if heights.get(name, [""])[0].isdigit() else 0
        yield name, urls[name][0], [_segment(name, i, span, height, crops) for i, span in enumerate(spans)], None
    for name in urls.keys() - times.keys():
        message = f"{name} has an address in the HDTF lists of {subset} and no interval; nothing of it is used."
        yield name, "", [], refused_row(f"{subset}:{name}", source, "no_interval", message)


KINDS = ("video_url", "resolution", "annotion_time", "crop_wh")


def _table(folder: Path, subset: str, kind: str) -> dict[str, list[str]]:
    """First column without .mp4 -> the other columns."""
    file = folder / f"{subset}_{kind}.txt"
    if not file.is_file():
        raise MissingFileError(f"HDTF's {file} does not exist; set sources.path to the folder with its text files.")
    return {line.split()[0].removesuffix(".mp4"): line.split()[1:] for _, line in text_lines(file)}


def _seconds(span: str) -> tuple[float, float] | None:
    match = INTERVAL.fullmatch(span)
    if not match:
        return None
    begin_minutes, begin, end_minutes, end = map(int, match.groups())
    start, stop = 60.0 * begin_minutes + begin, 60.0 * end_minutes + end
    return (start, stop) if start < stop else None


def _segment(name: str, index: int, span: str, height: int, crops: dict[str, list[str]]) -> Row:
    start, end = _seconds(span) or (0.0, 0.0)
    crop = crops.get(f"{name}_{index}", [])
    usable = height > 0 and len(crop) == 4 and all(value.isdigit() for value in crop)
    x, width, y, high = map(int, crop) if usable else (0, 0, 0, 0)  # the files' order
    return {
        "name": f"{name}_{index}", "start": start, "end": end, "x": None, "y": None,
        "crop": [x, y, width, high] if usable else None,
        "crop_height": height if usable else None,
    }  # fmt: skip


def fit_crops(segments: Sequence[Row], width: int, height: int) -> list[Row]:
    """The segments with their crops in pixels of a video of this size, inside its frame, and without `crop_height`.

    A crop that does not fit the frame belongs to another version of the video and becomes None.
    """
    return [_fitted(segment, width, height) if "crop_height" in segment else segment for segment in segments]


def _fitted(segment: Row, width: int, height: int) -> Row:
    fitted: dict[str, Any] = {key: value for key, value in segment.items() if key != "crop_height"}
    if segment["crop"] is None:
        return fitted
    x, y, wide, high = (value * height / segment["crop_height"] for value in segment["crop"])
    beyond = max(-x, -y, x + wide - width, y + high - height)
    if min(wide, high) < 2 or beyond > OVERHANG * max(wide, high):
        logger.warning("The crop of %s does not fit a frame of %dx%d and was dropped", segment["name"], width, height)
        return fitted | {"crop": None}
    side = min(round(wide), round(high), width, height)
    return fitted | {"crop": [min(max(round(x), 0), width - side), min(max(round(y), 0), height - side), side, side]}


HdtfSet = Literal["hdtf100", "hdtf400_15s"]

CLIPS, CLIP_SECONDS, LONG_SECONDS = 100, 10.0, 15.0


def list_hdtf_set(name: HdtfSet, folder: Path, seed: int = 0) -> list[Row]:
    """Source rows as `list_hdtf` gives them, one segment each, by video id; cut them with `cut.use_segments: exact`.

    hdtf100: 100 videos drawn by `seed`; of each the first interval that has a crop and 10 s, and of that the first
    10 s. hdtf400_15s: of every video the first 15 s of its first interval (all of it, where it is shorter); the seed
    does not matter. Raises the errors of `list_hdtf`, and SourcesError for another name or too few videos.
    """
    if name not in get_args(HdtfSet):
        raise SourcesError(f"There is no HDTF set '{name}'; expected one of {', '.join(get_args(HdtfSet))}.")
    videos = sorted((row for row in list_hdtf(folder, name) if row["segments"]), key=lambda row: row["unit"])
    if name == "hdtf400_15s":
        return [_first(row, min(row["segments"], key=lambda each: each["start"]), LONG_SECONDS) for row in videos]
    usable = {row["unit"]: segment for row in videos if (segment := _usable(row))}
    if len(usable) < CLIPS:
        raise SourcesError(f"{folder} has {len(usable)} videos with a crop and {CLIP_SECONDS:g} s; expected {CLIPS}.")
    drawn = set(sorted(usable, key=lambda unit: hashlib.sha256(f"{seed}\0{unit}".encode()).hexdigest())[:CLIPS])
    return [_first(row, usable[row["unit"]], CLIP_SECONDS) for row in videos if row["unit"] in drawn]


def _usable(row: Row) -> dict[str, Any] | None:
    for segment in sorted(row["segments"], key=lambda each: each["start"]):
        if segment["crop"] and segment["end"] - segment["start"] >= CLIP_SECONDS:
            return dict(segment)
    return None


def _first(row: Row, segment: Row, seconds: float) -> Row:
    end = min(segment["end"], segment["start"] + seconds)
    return row | {"segments": [segment | {"end": end}]}
