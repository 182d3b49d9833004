"""Read, write and cut video with sound (PyAV).

Pictures are uint8 RGB (T, H, W, 3); sound is float32 mono in [-1, 1]. Time 0 is the first video frame: stream start
times of the container are honoured, so what is read together belongs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from common.media_index import (
    MediaError,
    Probe,
    VideoIndex,
    index_video,
    open_media,
    probe,
    quarter_turns,
    video_stream,
)
from common.media_write import AUDIO_RATE, FPS, audio_frame, write_video

__all__ = [
    "AUDIO_RATE",
    "FPS",
    "MediaError",
    "Probe",
    "cut_clip",
    "decode_video",
    "index_video",
    "probe",
    "read_audio",
    "read_frames",
    "read_video",
    "write_video",
]

# Stamps that stray less than this from the running sample count are rounding, not a gap in the sound.
AUDIO_JITTER = 0.02
# Decoding starts this much before the wanted sound: a transform codec needs the previous block.
AUDIO_PREROLL = 0.3


def decode_video(
    path: str | Path,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = FPS,
    size: tuple[int, int] | None = None,
) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) shown between two times (s), resampled to `fps` by the nearest presentation time.

    `fps` None yields every stored frame once; `size` is (width, height). One pass, started at the key frame before
    `start`. Raises FileNotFoundError or MediaError.
    """
    index = index_video(path)
    return _decode(path, index, index.sample(fps, start, end), size)


def read_video(path: str | Path, fps: float | None = FPS, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """All frames of `decode_video` as one array (T, H, W, 3)."""
    return _stack(path, decode_video(path, start, end, fps))


def read_frames(path: str | Path, indices: Sequence[int]) -> np.ndarray:
    """Frames (n, H, W, 3) by their position in presentation order, in the order asked for, repeats allowed.

    Decodes from the key frame before each, and only seeks where a key frame lies between two wanted frames. Raises
    IndexError for a position outside the video, FileNotFoundError or MediaError.
    """
    index = index_video(path)
    wanted = np.asarray(indices, dtype=np.int64)
    if len(wanted) and (wanted.min() < 0 or wanted.max() >= len(index.pts)):
        worst = wanted.min() if wanted.min() < 0 else wanted.max()
        raise IndexError(f"Frame {worst} of {path} was asked for, but it has frames 0 to {len(index.pts) - 1}.")
    unique, places = np.unique(wanted, return_inverse=True)
    return _stack(path, _decode(path, index, unique, None))[places]


def _stack(path: str | Path, frames: Iterator[np.ndarray]) -> np.ndarray:
    listed = list(frames)
    if listed:
        return np.stack(listed)
    described = probe(path)
    return np.empty((0, described.height, described.width, 3), np.uint8)


def _decode(
    path: str | Path, index: VideoIndex, wanted: np.ndarray, size: tuple[int, int] | None
) -> Iterator[np.ndarray]:
    """Yield the frames at non-decreasing positions `wanted`."""
    with open_media(path) as container:
        picture, shown = None, -1
        stored = _stored_frames(container, index, wanted)
        for position in wanted:
            if position != shown or picture is None:
                shown, picture = int(position), _to_rgb(next(stored), size)
            yield picture


def _stored_frames(container: InputContainer, index: VideoIndex, wanted: np.ndarray) -> Iterator[VideoFrame]:
    """Decode each distinct wanted position once, seeking only when that skips at least one key frame."""
    stream = video_stream(container)
    assert stream is not None  # the index exists, so the stream does
    stream.thread_type, stream.codec_context.thread_count = "NONE", 1
    frames, reached = _numbered(container.decode(stream), index), -1
    for position in np.unique(wanted):
        key = index.keys[max(0, np.searchsorted(index.keys, position, side="right") - 1)]
        if key > reached + 1:
            frames = _numbered(_decode_from(container, stream, int(index.pts[key]), int(index.pts[0])), index)
        frame = next((frame for number, frame in frames if number >= position), None)
        if frame is None:
            raise MediaError(
                "truncated", f"{container.name} ends before frame {position} of {len(index.pts)}; fetch the file again."
            )
        reached = int(position)
        yield frame


def _decode_from(container: InputContainer, stream: VideoStream, key: int, first: int) -> Iterator[VideoFrame]:
    """Decode from the key frame stamped `key`; from the very first where the container seeks past it (MPEG-TS)."""
    container.seek(key, stream=stream)
    frames = container.decode(stream)
    found = next(frames, None)
    if found is None or _stamp(found) > key:
        container.seek(first, stream=stream)
        return container.decode(stream)
    return chain([found], frames)


def _numbered(frames: Iterator[VideoFrame], index: VideoIndex) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames with their position in presentation order."""
    if not index.stamped:
        return enumerate(frames)
    return ((int(np.searchsorted(index.pts, _stamp(frame))), frame) for frame in frames)


def _stamp(frame: VideoFrame) -> int:
    return (frame.dts if frame.pts is None else frame.pts) or 0


def _to_rgb(frame: VideoFrame, size: tuple[int, int] | None) -> np.ndarray:
    turns = quarter_turns(frame)
    width, height = size or (None, None)
    if turns % 2:
        width, height = height, width
    picture = frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="AREA" if size else None)
    return np.ascontiguousarray(np.rot90(picture, turns)) if turns else picture


def read_audio(path: str | Path, rate: int = AUDIO_RATE, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """Sound between two times (s) after the first video frame: float32 mono (n,) at `rate`.

    `end` None means the end of the last frame, so T frames at 25 fps come with T * 640 samples at 16 kHz; where the
    sound starts late, has a gap or ends early there are zeros. In a file without pictures time 0 is the first sample
    and the sound is returned whole. Raises FileNotFoundError or MediaError ("no_audio": there is no sound stream).
    """
    with open_media(path) as container:
        if not container.streams.audio:
            raise MediaError("no_audio", f"{path} has no sound; expected a file with an audio stream.")
        stream = container.streams.audio[0]
        if video_stream(container) is not None:
            index = index_video(path)
            origin, end = index.start, index.probe.duration if end is None else end
        else:
            origin = float((stream.start_time or 0) * (stream.time_base or 0))
        sound, first = _decode_audio(container, origin + start, None if end is None else origin + end)
        sound, first = _resample(sound, stream.rate, rate), first - origin
    begin = round((start - first) * rate)
    stop = len(sound) if end is None else begin + round((end - start) * rate)
    lead = np.zeros(min(max(0, -begin), max(0, stop - begin)), np.float32)
    kept = sound[max(0, begin) : max(0, stop)]
    tail = np.zeros(max(0, stop - begin - len(lead) - len(kept)), np.float32)
    return np.concatenate([lead, kept, tail])


def _decode_audio(container: InputContainer, start: float, end: float | None) -> tuple[np.ndarray, float]:
    """Mono samples at the stored rate covering [start, end] of the container's clock, and the time of the first."""
    stream = container.streams.audio[0]
    if start > AUDIO_PREROLL:
        container.seek(int((start - AUDIO_PREROLL) * av.time_base))
    flat = av.AudioResampler(format="fltp")
    blocks: list[np.ndarray] = []
    first, length = 0.0, 0
    for frame in container.decode(stream):
        time = first + length / stream.rate if frame.time is None else frame.time
        if end is not None and time > end + AUDIO_PREROLL:
            break
        first = first if blocks else time
        missing = round((time - first) * stream.rate) - length
        if missing > AUDIO_JITTER * stream.rate:
            blocks.append(np.zeros(missing, np.float32))
            length += missing
        for planar in flat.resample(frame):
            # A plain mean keeps any channel layout inside [-1, 1].
            blocks.append(planar.to_ndarray().mean(axis=0))
            length += len(blocks[-1])
    return (np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), (first if blocks else start)


def _resample(sound: np.ndarray, stored_rate: int, rate: int) -> np.ndarray:
    if stored_rate == rate or not len(sound):
        return sound
    resampler = av.AudioResampler(format="fltp", layout="mono", rate=rate)
    frame = audio_frame(sound, stored_rate, 0)
    return np.concatenate([part.to_ndarray()[0] for part in chain(resampler.resample(frame), resampler.resample(None))])


def cut_clip(
    src: str | Path, dst: str | Path, start: float, end: float, audio_shift: float = 0.0, fps: float = FPS
) -> None:
    """Cut [start, end) s of a video into a new file at `fps` with 16 kHz mono sound, both re-encoded.

    The cut is exact to half a source frame. The sound is delayed by `audio_shift` s (negative: moved earlier) against
    the picture, taken from beyond the cut where the source has it; it is as long as the picture. Raises what
    `read_audio` and `write_video` raise, and ValueError for an empty span.
    """
    count = len(index_video(src).sample(fps, start, end))
    if not count:
        raise ValueError(f"The span {start} to {end} s of {src} holds no frame; expected start < end inside the video.")
    stop = start + count / fps
    sound = read_audio(src, AUDIO_RATE, start - audio_shift, stop - audio_shift)
    write_video(dst, decode_video(src, start, end, fps), sound, fps)
