"""Read frames with decord instead of PyAV: no AV1, no interlaced video; used through common.media.video.

decord is an option that nothing here needs (`pip install decord`); it is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from common.media.index import VideoIndex
from common.media.open import MediaError


def decord_frames(path: str | Path, index: VideoIndex, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """The frames at increasing positions `wanted` in presentation order, upright, in RGB.

    Raises ModuleNotFoundError where decord is not installed and MediaError: unsupported for AV1, interlaced video and
    files of which decord sees other frames than the index, unreadable where it fails.
    """
    if index.probe.codec == "av1" or index.probe.interlaced:
        what = "AV1" if index.probe.codec == "av1" else "interlaced video"
        raise MediaError("unsupported", f"{path}: decord does not read {what}; set the reader to pyav.")
    try:
        import decord
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "The reader decord was asked for, but it is not installed: pip install decord, or set the reader to pyav."
        ) from error
    try:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        if len(reader) != len(index.pts):
            raise MediaError(
                "unsupported", f"{path}: decord sees {len(reader)} of {len(index.pts)} frames; set the reader to pyav."
            )
        # Behind HEVC's open key frames decord loses the leading pictures and then counts wrong: it must not seek there.
        pictures = _in_order(reader, wanted) if index.probe.codec == "hevc" else (reader[int(at)] for at in wanted)
        for picture in pictures:
            yield VideoFrame.from_ndarray(picture.asnumpy(), format="rgb24")
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        said = str(error).splitlines()[0][:200]
        raise MediaError(
            "unreadable", f"{path} cannot be decoded by decord ({said}); fetch it again, or set the reader to pyav."
        ) from error


def _in_order(reader: Any, wanted: np.ndarray) -> Iterator[Any]:
    chosen = set(wanted.tolist())
    for number in range(int(wanted.max(initial=-1)) + 1):
        picture = reader.next()
        if number in chosen:
            yield picture
