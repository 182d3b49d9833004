"""Read, write and cut video with audio (PyAV).

Images are uint8 RGB (T, H, W, 3); audio is float32 mono in [-1, 1]. Time 0 is the first video frame: stream start
times of the container are honoured, so what is read together belongs together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from av.video.frame import VideoFrame

from common.constants import AUDIO_RATE, FPS, Reader
from common.media.audio import read_audio
from common.media.decode import of_display_size, stored_frames
from common.media.decord_reader import decord_frames
from common.media.display import to_rgb
from common.media.index import VideoIndex, index_video
from common.media.open import MediaError, open_decoder, open_media, video_stream
from common.media.write import write_video

MAX_VIDEO_BYTES = 2**36  # of images held at once: 7 minutes of 1080p


def decode_video(
    path: str | Path,
    start: float = 0.0,
    end: float | None = None,
    fps: float | None = FPS,
    size: tuple[int, int] | None = None,
    crop: tuple[int, int, int, int] | None = None,
    reader: Reader = "pyav",
) -> Iterator[np.ndarray]:
    """Yield the frames (H, W, 3) shown between two times (s), resampled to `fps` by the nearest presentation time.

    `fps` None yields every stored frame once; `crop` is x, y, width, height in the upright image and `size` the
    width and height after it. One pass, started at the key frame before `start`. Raises FileNotFoundError, MediaError
    or ValueError for a crop outside the image.
    """
    index = index_video(path)
    requested = index.sample(fps, start, end)
    frames, shown = _frames(path, index, requested, reader), -1
    image = np.empty(0, np.uint8)
    for position in requested:
        if position != shown:
            shown, image = int(position), to_rgb(next(frames), size, crop)
        yield image


def _frames(path: str | Path, index: VideoIndex, positions: np.ndarray, reader: Reader) -> Iterator[VideoFrame]:
    """Each distinct position once, in order, by the reader of that name."""
    if reader == "decord":
        return (of_display_size(frame, index) for frame in decord_frames(path, index, np.unique(positions)))
    return stored_frames(path, index, positions)


def decode_stored(path: str | Path, reader: Reader = "pyav") -> Iterator[VideoFrame]:
    """Every stored frame once, in presentation order and as it is stored; convert those you need with `to_rgb`, or look
    at their `planes`. Frame number i is shown at `index_video(path).times[i]`. Raises what `decode_video` raises."""
    index = index_video(path)
    return _frames(path, index, np.arange(len(index.pts)), reader)


def read_video(path: str | Path, fps: float | None = FPS, start: float = 0.0, end: float | None = None) -> np.ndarray:
    """All frames of `decode_video` as one array (T, H, W, 3). Raises MediaError: unsupported for more than any memory
    holds, before anything is decoded."""
    index = index_video(path)
    count, (height, width, _) = len(index.sample(fps, start, end)), _shape(index)
    if count * height * width * 3 > MAX_VIDEO_BYTES:
        raise MediaError("unsupported", f"{path} has {count} images of {width}x{height} px; cut it to some minutes.")
    images = np.empty((count, height, width, 3), np.uint8)
    for number, image in enumerate(decode_video(path, start, end, fps)):
        images[number] = image
    return images


def read_frames(path: str | Path, indices: Sequence[int], reader: Reader = "pyav") -> np.ndarray:
    """Frames (n, H, W, 3) by their position in presentation order, in the order asked for, repeats allowed.

    Decodes from the key frame before each, without the images that no other depends on, and only seeks where a key
    frame lies between two wanted frames. Raises IndexError for a position outside the video, FileNotFoundError or
    MediaError.
    """
    index = index_video(path)
    requested = np.asarray(indices, dtype=np.int64)
    if len(requested) and (requested.min() < 0 or requested.max() >= len(index.pts)):
        worst = requested.min() if requested.min() < 0 else requested.max()
        raise IndexError(f"Frame {worst} of {path} was asked for, but it has frames 0 to {len(index.pts) - 1}.")
    unique, places = np.unique(requested, return_inverse=True)
    images = np.empty((len(unique), *_shape(index)), np.uint8)
    for number, frame in enumerate(_frames(path, index, unique, reader)):
        images[number] = to_rgb(frame)
    return images if np.array_equal(unique, requested) else images[places]


def read_first_image(path: str | Path) -> np.ndarray:
    """The first image (H, W, 3) of a video of any length and frame rate. Raises FileNotFoundError or MediaError."""
    try:
        return read_frames(path, [0])[0]
    except MediaError as error:
        if error.kind != "unreadable":
            raise
    # Frame times that no camera makes (slides, say) do not matter for one image.
    with open_media(path) as container:
        stream = video_stream(container)
        assert stream is not None  # else its index was refused as no_video
        open_decoder(stream)
        for frame in container.decode(stream):
            return to_rgb(frame)
    raise MediaError("unreadable", f"{path} yields no picture; fetch the file again.")


def _shape(index: VideoIndex) -> tuple[int, int, int]:
    return index.probe.height, index.probe.width, 3


def cut_clip(
    src: str | Path,
    dst: str | Path,
    start: float,
    end: float,
    audio_shift: float = 0.0,
    fps: float = FPS,
    crop: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] | None = None,
) -> None:
    """Cut [start, end) s of a video into a new file at `fps` with 16 kHz mono audio, both re-encoded.

    The cut is exact to half a source frame. The audio is delayed by `audio_shift` s (negative: moved earlier) against
    the image, taken from beyond the cut where the source has it; it is as long as the image. `crop` and `size` as
    for `decode_video`. Raises what `read_audio` and `write_video` raise, and ValueError for an empty span or a crop
    outside the image.
    """
    count = len(index_video(src).sample(fps, start, end))
    if not count:
        raise ValueError(f"The span {start} to {end} s of {src} holds no frame; expected start < end inside the video.")
    stop = start + count / fps
    wave = read_audio(src, AUDIO_RATE, start - audio_shift, stop - audio_shift)
    write_video(dst, decode_video(src, start, end, fps, size, crop), wave, fps)
