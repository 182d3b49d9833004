"""MP4 writer for frames and audio with reproducible bytes; imported through common.media.video."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace
from av.video.stream import VideoStream

from common.constants import AUDIO_RATE, FPS
from common.runs import atomic_write

AUDIO_BIT_RATE = 64_000
# Fine enough for every usual frame rate; the clock of MPEG.
VARIABLE_TICK = Fraction(1, 90_000)
AAC_BLOCK = 1024
# A key frame every two seconds at 25 fps keeps single frames cheap to reach.
KEY_FRAME_INTERVAL = 50
BT709 = 1
# x264's AVX-512 code does not give the same bytes every time (measured: 25 encodes of one 96x96 clip, 7 results; one
# result without it), and other processors have none.
_SAME_BYTES = {"x264-params": "asm=SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}


def write_video(
    path: str | Path,
    frames: Iterable[np.ndarray],
    audio: np.ndarray | None,
    fps: float = FPS,
    audio_rate: int = AUDIO_RATE,
    crf: int = 18,
    timestamps: Sequence[float] | None = None,
    tags: Mapping[str, str] | None = None,
    boxes: bytes = b"",
) -> None:
    """Write frames uint8 RGB (T, H, W, 3) and mono audio (n,) as MP4: H.264 yuv420p (BT.709) and AAC.

    `timestamps` (s, increasing, one per frame) replace the constant rate. `tags` is metadata of any names, `boxes`
    whole MP4 boxes for the end of the file (see common.media.marks). The same input gives the same bytes, and the file
    appears whole or not at all. Raises ValueError for no frames, odd sizes or wrong arrays, and what
    common.runs.atomic_write raises (a full disk).
    """
    iterator = iter(frames)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"No frames were given for {path}; expected at least one.")
    _check_image(path, first, first.shape)
    # bitexact leaves dates and library versions out of the file
    options = {"fflags": "+bitexact", "movflags": "+faststart"}
    if tags:
        options["movflags"] += "+use_metadata_tags"
    with atomic_write(path) as temporary:
        with av.open(str(temporary), "w", format="mp4", options=options) as container:
            container.metadata.update(tags or {})
            video_writer = _VideoWriter.open(container, first.shape, fps, crf, timestamps)
            audio_writer = _AudioWriter.open(container, audio, audio_rate)
            for number, image in enumerate(chain([first], iterator)):
                _check_image(path, image, first.shape)
                audio_writer.write(until=video_writer.write(number, image))
            audio_writer.write(until=None)
            container.mux(video_writer.stream.encode(None))
        with temporary.open("ab") as file:
            file.write(boxes)


def _check_image(path: str | Path, image: np.ndarray, shape: tuple[int, ...]) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.shape != shape:
        raise ValueError(
            f"A frame for {path} is {image.dtype} of shape {image.shape}; expected uint8 (H, W, 3) of one size."
        )
    if image.shape[0] % 2 or image.shape[1] % 2:
        raise ValueError(f"A frame for {path} is {image.shape[1]}x{image.shape[0]}; yuv420p needs even sizes: crop it.")


@dataclass
class _VideoWriter:
    container: OutputContainer
    stream: VideoStream
    tick: Fraction
    timestamps: Sequence[float] | None

    @classmethod
    def open(
        cls,
        container: OutputContainer,
        shape: tuple[int, ...],
        fps: float,
        crf: int,
        timestamps: Sequence[float] | None,
    ) -> _VideoWriter:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": str(crf), "preset": "veryfast", "threads": "1"} | _SAME_BYTES
        stream = container.add_stream("libx264", rate=rate, options=options)
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = shape[0], shape[1], "yuv420p"
        context.thread_type, context.thread_count, context.gop_size = "NONE", 1, KEY_FRAME_INTERVAL
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = ColorRange.MPEG
        tick = VARIABLE_TICK if timestamps is not None else 1 / rate
        context.time_base = tick
        return cls(container, stream, tick, timestamps)

    def write(self, number: int, image: np.ndarray) -> float:
        """Encode one image; returns its time in seconds."""
        rgb = VideoFrame.from_ndarray(image, format="rgb24")
        frame = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
        frame.pts = number if self.timestamps is None else round(float(self.timestamps[number]) / self.tick)
        frame.time_base = self.tick
        self.container.mux(self.stream.encode(frame))
        return float(frame.pts * self.tick)


@dataclass
class _AudioWriter:
    container: OutputContainer
    stream: AudioStream | None
    samples: np.ndarray
    rate: int
    written: int = 0

    @classmethod
    def open(cls, container: OutputContainer, audio: np.ndarray | None, rate: int) -> _AudioWriter:
        if audio is None:
            return cls(container, None, np.zeros(0, np.float32), rate)
        samples = np.asarray(audio, np.float32)
        if samples.ndim != 1:
            raise ValueError(f"The sound has shape {samples.shape}; expected mono samples (n,).")
        stream = container.add_stream("aac", rate=rate, layout="mono")
        stream.bit_rate = AUDIO_BIT_RATE
        return cls(container, stream, samples, rate)

    def write(self, until: float | None) -> None:
        """Encode whole blocks up to a time in seconds; everything that is left when it is None."""
        if self.stream is None:
            return
        stop = len(self.samples) if until is None else min(len(self.samples), int(until * self.rate))
        while self.written < stop and (until is None or self.written + AAC_BLOCK <= stop):
            block = self.samples[self.written : self.written + AAC_BLOCK]
            self.container.mux(self.stream.encode(audio_frame(block, self.rate, self.written)))
            self.written += len(block)
        if until is None:
            self.container.mux(self.stream.encode(None))


def audio_frame(samples: np.ndarray, rate: int, position: int) -> AudioFrame:
    """Mono samples (n,) as a planar float frame that starts at sample `position`."""
    frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples, np.float32)[None], format="fltp", layout="mono")
    frame.sample_rate, frame.pts, frame.time_base = rate, position, Fraction(1, rate)
    return frame
