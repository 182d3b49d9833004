"""Read frames with decord instead of PyAV: no AV1, no interlaced video; used through common.media.video.

decord is an option that nothing here needs (`pip install decord`); it is imported when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from av.video.frame import VideoFrame

from common.media.display import HDR_TRANSFERS
from common.media.index import VideoIndex
from common.media.open import MediaError, open_media


def decord_frames(path: str | Path, index: VideoIndex, requested: np.ndarray) -> Iterator[VideoFrame]:
    """The frames at increasing positions `requested` in presentation order, upright, in RGB.

    Raises ModuleNotFoundError where decord is not installed and MediaError: unsupported for AV1, interlaced video, HDR,
    several video tracks and files of which decord sees other frames than the index, unreadable where it fails.
    """
    with open_media(path) as container:  # by the allow-list, which decord has not
        several = len(container.streams.video) > 1
    refused = {
        "AV1": index.probe.codec == "av1",
        "interlaced video": index.probe.interlaced,
        "HDR in its colours": index.probe.color_transfer in HDR_TRANSFERS,
        "the default of several video tracks": several,
    }
    for what in (name for name, found in refused.items() if found):
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
        # Behind HEVC's open key frames decord loses the leading images and then counts wrong: it must not seek there.
        images = _in_order(reader, requested) if index.probe.codec == "hevc" else (reader[int(at)] for at in requested)
        for image in images:
            yield VideoFrame.from_ndarray(image.asnumpy(), format="rgb24")
    except (RuntimeError, IndexError, decord.DECORDError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
        raise MediaError(
            "unreadable", f"{path} cannot be decoded by decord ({reason}); fetch it again, or set the reader to pyav."
        ) from error


def _in_order(reader: Any, requested: np.ndarray) -> Iterator[Any]:
    chosen = set(requested.tolist())
    for number in range(int(requested.max(initial=-1)) + 1):
        image = reader.next()
        if number in chosen:
            yield image
