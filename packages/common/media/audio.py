"""Audio of a video on the clock of its frames; imported through common.media.video."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import av
import numpy as np

from common.constants import AUDIO_RATE
from common.media.downmix import decode_mono
from common.media.index import index_video
from common.media.open import MediaError, audio_stream, open_media, video_stream
from common.media.write import audio_frame


def read_audio(path: str | Path, rate: int = AUDIO_RATE, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Audio between two times (s) after the first video frame: float32 mono (n,) at `rate`.

    `end` None means the end of the last frame, so T frames at 25 fps come with T * 640 samples at 16 kHz; where the
    audio starts late, has a gap or ends early there are zeros. In a file without images time 0 is the first sample
    and the audio is returned whole. Any channels are mixed as `common.media.downmix.MonoMix` says. Raises
    FileNotFoundError or MediaError (no_audio: there is no audio stream; unsupported: more than 4 hours of it).
    """
    with open_media(path) as container:
        stream = audio_stream(container)
        if stream is None:
            raise MediaError("no_audio", f"{path} has no sound; expected a file with an audio stream.")
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


def _resample(samples: np.ndarray, stored_rate: int, rate: int) -> np.ndarray:
    if stored_rate == rate or not len(samples):
        return samples
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = audio_frame(samples, stored_rate, 0)
    return np.concatenate([part.to_ndarray()[0] for part in chain(resampler.resample(frame), resampler.resample(None))])
