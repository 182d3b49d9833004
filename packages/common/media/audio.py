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
from common.media.downmix import MAX_GAP, decode_mono
from common.media.index import index_video
from common.media.open import MediaError, audio_stream, open_media, video_stream
from common.media.write import audio_frame


def read_audio(
    path: str | Path, rate: int = AUDIO_RATE, start: float = 0.0, end: float | None = None, whole: bool = False
) -> np.ndarray:
    """Audio between two times (s) after the first video frame: float32 mono (n,) at `rate`.

    `end` None means the end of the last frame, so T frames at 25 fps come with T * 640 samples at 16 kHz; where the
    audio starts late, has a gap or ends early there are zeros. In a file without images time 0 is the first sample
    and the audio is returned whole. `whole`: all of the audio, however few, slow or short the images beside it are;
    time 0 is the first image or the first sample, whichever comes first, and `start` and `end` do not count. Any
    channels are mixed as `common.media.downmix.MonoMix` says. Raises FileNotFoundError or MediaError (no_audio: there
    is no audio stream; unsupported: more than 4 hours of it).
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
        samples, first, stored = decode_mono(container, origin + start, None if end is None else origin + end)
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
    samples, first, rate = decode_mono(container, 0.0, None)
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
    images = None
    try:
        images = video_stream(container)
        index = index_video(path) if images is not None else None
    except MediaError as error:
        if error.kind == "truncated":
            raise
        index = None  # slides, or no decoder: images that are no video are nothing the sound has to answer for
    if index is not None:
        return index.start, index.start + index.probe.duration
    if images is None or images.start_time is None:
        return math.inf, math.inf
    return float(images.start_time * (images.time_base or 0)), math.inf


def _resample(samples: np.ndarray, stored_rate: int, rate: int) -> np.ndarray:
    if stored_rate == rate or not len(samples):
        return samples
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = audio_frame(samples, stored_rate, 0)
    parts = [part.to_ndarray()[0] for part in chain(resampler.resample(frame), resampler.resample(None))]
    # Of one or two samples the resampler may make nothing.
    return np.concatenate(parts) if parts else np.zeros(max(1, round(len(samples) * rate / stored_rate)), np.float32)
