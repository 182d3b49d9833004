"""The two HDTF test sets that go by the name of OmniAvatar's, as spans drawn from HDTF's own files.

The paper says 100 samples, unlisted; its maintainer (Omni-Avatar/OmniAvatar issue 90) the first 15 s of every video,
about 400. Numbers measured on the one do not belong in a column with numbers of the other. `eval/lists` publishes both.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

from curation.sources.hdtf import list_hdtf
from curation.sources.remote import Row, SourcesError

HdtfSet = Literal["hdtf100", "hdtf400_15s"]
CLIPS, CLIP_SECONDS, LONG_SECONDS = 100, 10.0, 15.0


def list_hdtf_set(name: HdtfSet, folder: Path, seed: int = 0) -> list[Row]:
    """Source rows as `list_hdtf` gives them, one segment each, by video id; cut them with `cut.use_segments: exact`.

    hdtf100: 100 videos drawn by `seed`; of each the first interval that has a crop and 10 s, and of that the first
    10 s. hdtf400_15s: of every video the first 15 s of its first interval (all of it, where it is shorter); the seed
    does not matter. Raises what `list_hdtf` raises, and SourcesError for another name or too few videos.
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
