"""Rows of remote videos, with the spans that a data set annotates."""

import re
from typing import Any
from urllib.parse import parse_qs, urlsplit

from common.errors import UserError

Row = dict[str, Any]

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")  # a file name that is neither hidden nor a path
WATCH = "https://www.youtube.com/watch?v="


class SourcesError(UserError, ValueError):
    """The sources of the recipe cannot be listed."""


def remote_row(unit: str, url: str, source: str, segments: list[Row]) -> Row:
    """The source row of one video to fetch: `unit` (the video id, safe as a file name), `url`, `segments`.

    A segment is one row of the data set: `row_index` (its place in the list, from 0), `start` and `end` (seconds on
    the video's clock), `x` and `y` (the annotated face centre, fractions of the frame from its top left corner, or
    None). HDTF adds `name` (its clip name) and `crop`: None, or the square [x, y, w, h] to cut out, in pixels of a
    frame `crop_height` high; once the video is fetched the crop is in the video's own pixels and `crop_height` is
    gone (`curation.sources.hdtf.fit_crops`). No segments: the data set means the whole video.
    """
    row: Row = {"unit": unit, "url": url, "source": source, "segments": segments}
    return row | {"path": None, "bytes": None, "mtime_ns": None, "row_index": None, "caption": None}


def refused_row(unit: str, source: str, reason: str, message: str) -> Row:
    """Row of an invalid list entry; the first stage rejects it with this reason, so that the ledger records it."""
    return remote_row(unit, "", source, []) | {"refused": {"reason": reason, "message": message}}


def youtube_id(url: str) -> str | None:
    """The video id of a YouTube address, whatever else is in it; None for any other address."""
    parts = urlsplit(url)
    host = (parts.hostname or "").removeprefix("www.").removeprefix("m.")
    if host == "youtu.be":
        candidate = parts.path.strip("/")
    elif host in ("youtube.com", "youtube-nocookie.com"):
        first, _, rest = parts.path.strip("/").partition("/")
        candidate = parse_qs(parts.query).get("v", [""])[0] if first == "watch" else rest
    else:
        return None
    return candidate if YOUTUBE_ID.fullmatch(candidate) else None
