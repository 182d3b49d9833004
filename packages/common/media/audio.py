"""Audio of a video on the clock of its frames; imported through common.media.video."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from common.constants import AUDIO_RATE
from common.media.index import index_video
from common.media.open import MediaError, audio_stream, open_media, video_stream
from common.media.write import audio_frame

# Stamps that stray less than this from the running sample count are rounding, not a gap in the audio.
AUDIO_JITTER = 0.02
# Decoding starts this much before the wanted audio: a transform codec needs the previous block.
AUDIO_PREROLL = 0.3
# A longer silence between two packets is a damaged stamp.
MAX_GAP = 600.0


def read_audio(
    path: str | Path, rate: int = AUDIO_RATE, start: float = 0.0, end: float | None = None, whole: bool = False
) -> np.ndarray:
    """Audio between two times (s) after the first video frame: float32 mono (n,) at `rate`.

    `end` None means the end of the last frame, so T frames at 25 fps come with T * 640 samples at 16 kHz; where the
    audio starts late, has a gap or ends early there are zeros. In a file without images time 0 is the first sample
    and the audio is returned whole. `whole`: all of the audio, however few, slow or short the images beside it are;
    time 0 is the first image or the first sample, whichever comes first, and `start` and `end` do not count.
    Raises FileNotFoundError or MediaError ("no_audio": there is no audio stream).
    """
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise MediaError("no_audio", f"{path} has no sound; expected a file with an audio stream.")
        if whole:
            return _resample(*_whole_audio(path, container, stream), rate)
        if video_stream(container) is not None:
            index = index_video(path)
            origin, end = index.start, index.probe.duration if end is None else end
        else:
            origin = float((stream.start_time or 0) * (stream.time_base or 0))
        samples, first, stored = _decode_audio(container, origin + start, None if end is None else origin + end)
        samples, first = _resample(samples, stored, rate), first - origin
    begin = round((start - first) * rate)
    stop = len(samples) if end is None else begin + round((end - start) * rate)
    lead = np.zeros(min(max(0, -begin), max(0, stop - begin)), np.float32)
    kept = samples[max(0, begin) : max(0, stop)]
    tail = np.zeros(max(0, stop - begin - len(lead) - len(kept)), np.float32)
    return np.concatenate([lead, kept, tail])


def _whole_audio(path: str | Path, container: InputContainer, stream: AudioStream) -> tuple[np.ndarray, int]:
    """All mono samples, after the silence in which only images are there, and their rate."""
    first_image, last_image = _image_span(path, container)
    samples, first, rate = _decode_audio(container, 0.0, None)
    lead = max(0.0, first - first_image)
    if lead > MAX_GAP:
        raise MediaError(
            "unreadable", f"{path}: the sound starts {lead:.0f} s after the picture; fetch the file again."
        )
    # A codec fills its last block with silence: the sound ends where the header of an MP4 says, or with the images.
    stop, block = first + len(samples) / rate, 2 * (stream.codec_context.frame_size or 0) / rate
    for end in (_announced_end(container, stream), last_image):
        stop = end if 0 < stop - end < block else stop
    samples = samples[: round((stop - first) * rate)]
    return np.concatenate([np.zeros(round(lead * rate), np.float32), samples]), rate


def _announced_end(container: InputContainer, stream: AudioStream) -> float:
    if "mp4" not in container.format.name or not stream.duration:
        return math.inf  # elsewhere it is an estimate
    return float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0))


def _image_span(path: str | Path, container: InputContainer) -> tuple[float, float]:
    """First and last moment (s on the container's clock) with an image; infinity for what is not known."""
    images = video_stream(container)
    if images is None:
        return math.inf, math.inf
    try:
        index = index_video(path)
    except MediaError as error:
        if error.kind == "truncated":
            raise
        # Images that are no video (slides, say) are nothing the sound has to answer for.
        begin = math.inf if images.start_time is None else float(images.start_time * (images.time_base or 0))
        return begin, math.inf
    return index.start, index.start + index.probe.duration


def _decode_audio(container: InputContainer, start: float, end: float | None) -> tuple[np.ndarray, float, int]:
    """Mono samples covering [start, end] of the container's clock, the time of the first, and their rate."""
    stream = container.streams.audio[0]
    if start > AUDIO_PREROLL:
        container.seek(int((start - AUDIO_PREROLL) * av.time_base))
    flat, form = av.AudioResampler(format="fltp"), ("", "")
    blocks: list[np.ndarray] = []
    first, length, rate = 0.0, 0, stream.rate
    for frame in container.decode(stream):
        rate = rate if blocks else frame.sample_rate  # some codecs know it only now
        time = first + length / rate if frame.time is None else frame.time
        if end is not None and time > end + AUDIO_PREROLL:
            break
        first = first if blocks else time
        gap = time - first - length / rate
        if gap > MAX_GAP or frame.sample_rate != rate:
            what = f"a gap of {gap:.0f} s" if gap > MAX_GAP else f"a change from {rate} to {frame.sample_rate} Hz"
            raise MediaError("unreadable", f"{container.name}: {what} in the sound; fetch the file again.")
        if gap > AUDIO_JITTER:
            blocks.append(np.zeros(round(gap * rate), np.float32))
            length += len(blocks[-1])
        if (frame.format.name, frame.layout.name) != form:
            flat, form = av.AudioResampler(format="fltp"), (frame.format.name, frame.layout.name)
        for planar in flat.resample(frame):
            # A plain mean keeps any channel layout inside [-1, 1].
            blocks.append(planar.to_ndarray().mean(axis=0))
            length += len(blocks[-1])
    return (np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), (first if blocks else start), rate


def _resample(samples: np.ndarray, stored_rate: int, rate: int) -> np.ndarray:
    if stored_rate == rate or not len(samples):
        return samples
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = audio_frame(samples, stored_rate, 0)
    return np.concatenate([part.to_ndarray()[0] for part in chain(resampler.resample(frame), resampler.resample(None))])
