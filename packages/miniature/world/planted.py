"""Planted faults: from the truth of a source to its frames, its audio and, at times, a damaged file."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from common.constants import SAMPLES_PER_FRAME
from miniature.world.clips import DrawnClip, draw_clip
from miniature.world.figure import Framing, draw_identity, draw_motion, render
from miniature.world.voice import draw_speaker, music, silence, speak

_SPARE_FRAMES = 12  # drawn on either side of an offset clip, so that shifted audio is real audio
_ANOTHER_PERSON = 50_000  # seeds between the two people of one source
_SUBTITLES = ("AND THEN", "SHE SAYS", "NO MORE", "GOOD DAY", "WE KNOW", "LET US GO", "IT IS SO")


@dataclass(frozen=True)
class Truth:
    """What was planted. `shift` in frames: positive = audio comes late; of a drift, by which the lateness grows from
    the first frame to the last. `original` of a duplicate.

    `seconds` is the length of an ordinary source; where one shot is cut to the next, of the first.
    """

    kind: str
    seed: int
    framing: Framing = "face"
    seconds: float = 0.0
    shift: int = 0
    original: str = ""


@dataclass
class Source:
    """A source about to be written: images and audio may be replaced by a fault; `finish` damages the file.

    `annotated` is the centre of the speaker's face as a data set's row gives it, in fractions of the frame.
    """

    frames: np.ndarray
    audio: np.ndarray | None
    caption: str
    annotated: tuple[float, float] | None = None
    fps: float = 25.0
    timestamps: list[float] | None = None
    crf: int = 18
    finish: Callable[[Path], None] = field(default=lambda path: None)


def _clean(truth: Truth) -> Source:
    clip = draw_clip(truth.seed, truth.seconds, truth.framing)
    return Source(clip.frames, clip.audio, clip.caption)


def _offset(truth: Truth) -> Source:
    clip = draw_clip(truth.seed, truth.seconds + 2 * _SPARE_FRAMES / 25, truth.framing)
    frames = clip.frames[_SPARE_FRAMES:-_SPARE_FRAMES]
    start = (_SPARE_FRAMES - truth.shift) * SAMPLES_PER_FRAME
    return Source(frames, clip.audio[start : start + len(frames) * SAMPLES_PER_FRAME], clip.caption)


def _shot_cut(truth: Truth) -> Source:
    first = draw_clip(truth.seed, truth.seconds, truth.framing)
    second = draw_clip(truth.seed + _ANOTHER_PERSON, truth.seconds, truth.framing)
    frames, audio = (np.concatenate(pair) for pair in ((first.frames, second.frames), (first.audio, second.audio)))
    return Source(frames, audio, first.caption)


def _blur(truth: Truth) -> Source:
    source = _clean(truth)
    sigma = 2.4 + 0.2 * (truth.seed % 5)
    return _with_frames(source, np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in source.frames]))


def _noise(truth: Truth) -> Source:
    source = _clean(truth)
    grain = np.random.default_rng(truth.seed).normal(0, 35 + 5 * (truth.seed % 4), source.frames.shape)
    return _with_frames(source, np.clip(source.frames + grain, 0, 255).astype(np.uint8))


def _frozen(truth: Truth) -> Source:
    source = _clean(truth)
    return _with_frames(source, np.repeat(source.frames[:1], len(source.frames), axis=0))


def _second_face(truth: Truth) -> Source:
    """A second person beside the speaker who moves as people do but says nothing; the row names the speaker."""
    return _pair(truth, annotate_speaker=True)


def _wrong_person(truth: Truth) -> Source:
    """The same, but the row names the one who says nothing."""
    return _pair(truth, annotate_speaker=False)


def _pair(truth: Truth, annotate_speaker: bool) -> Source:
    speaker = draw_clip(truth.seed, truth.seconds)
    other = draw_clip(truth.seed + _ANOTHER_PERSON, truth.seconds)
    on_left = bool(truth.seed % 2)
    views = [speaker.frames, _listener(other)]
    named = speaker.boxes[0] if annotate_speaker else other.boxes[0]
    side = speaker.frames.shape[1]
    x, y = (named[0] + named[2]) / 2, (named[1] + named[3]) / 2
    on_the_right = on_left != annotate_speaker
    return Source(
        np.concatenate(views if on_left else views[::-1], axis=2),
        speaker.audio,
        speaker.caption,
        annotated=(float(x + side * on_the_right) / (2 * side), float(y) / side),
    )


def _listener(clip: DrawnClip) -> np.ndarray:
    """The frames of `clip` with lips closed: the frame of least opening nearest in time stands in for each."""
    closed = np.flatnonzero(clip.mouth[:, 0] < 0.12)
    if len(closed) == 0:
        closed = np.array([int(clip.mouth[:, 0].argmin())])
    return clip.frames[[int(closed[np.abs(closed - t).argmin()]) for t in range(len(clip.frames))]]


def _music(truth: Truth) -> Source:
    source = _clean(truth)
    return replace(source, audio=music(len(source.frames), np.random.default_rng(truth.seed)))


def _silence(truth: Truth) -> Source:
    source = _clean(truth)
    return replace(source, audio=np.zeros(len(source.frames) * SAMPLES_PER_FRAME, np.float32))


def _too_short(truth: Truth) -> Source:
    return _clean(replace(truth, seconds=1.4 + 0.2 * (truth.seed % 5)))


def _too_long(truth: Truth) -> Source:
    return _clean(replace(truth, seconds=22.0 + truth.seed % 5))


def _fps15(truth: Truth) -> Source:
    source = _clean(truth)
    kept = (np.arange(math.floor(truth.seconds * 15)) * 25 / 15).astype(int)
    return replace(source, frames=source.frames[kept], fps=15.0)


def _variable_rate(truth: Truth) -> Source:
    """Frames are missing here and there, the others keep their time: what a phone under load records."""
    source = _clean(truth)
    rng = np.random.default_rng(truth.seed)
    kept = np.flatnonzero(rng.random(len(source.frames)) > 0.12)
    kept = np.union1d(kept, [0, len(source.frames) - 1])
    return replace(source, frames=source.frames[kept], timestamps=[float(t) / 25 for t in kept])


def _duplicate(truth: Truth) -> Source:
    return replace(_clean(truth), crf=23)


def _truncated(truth: Truth) -> Source:
    def cut_off(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * (0.45 + 0.1 * (truth.seed % 4)))])

    return replace(_clean(truth), finish=cut_off)


def _no_audio(truth: Truth) -> Source:
    return replace(_clean(truth), audio=None)


def _not_a_video(truth: Truth) -> Source:
    def replace_by_page(path: Path) -> None:
        path.write_text("<!DOCTYPE html><html><body>This video is no longer available.</body></html>\n" * 40)

    return replace(_clean(truth), finish=replace_by_page)


def _drift(truth: Truth) -> Source:
    """Audio of another speed: early by half of `shift` at the first frame, late by as much at the last."""
    clip = draw_clip(truth.seed, truth.seconds + 2 * _SPARE_FRAMES / 25, truth.framing)
    frames = clip.frames[_SPARE_FRAMES:-_SPARE_FRAMES]
    samples = np.arange(len(frames) * SAMPLES_PER_FRAME)
    late = truth.shift * SAMPLES_PER_FRAME * (samples / len(samples) - 0.5)
    shifted = np.interp(samples + _SPARE_FRAMES * SAMPLES_PER_FRAME - late, np.arange(len(clip.audio)), clip.audio)
    return Source(frames, shifted.astype(np.float32), clip.caption)


def _dubbed(truth: Truth) -> Source:
    """Another person's voice saying something else."""
    other = draw_clip(truth.seed + _ANOTHER_PERSON, truth.seconds, truth.framing)
    return replace(_clean(truth), audio=other.audio)


def _off_screen(truth: Truth) -> Source:
    """Somebody who listens, lips closed, to a voice from elsewhere."""
    rng = np.random.default_rng(truth.seed)
    speaker, identity = draw_speaker(rng), draw_identity(rng)
    speech = speak(speaker, round(truth.seconds * 25), rng)
    lips = silence(len(speech.lips)).lips
    drawing = render(identity, draw_motion(speech.stress, rng), lips, truth.framing)
    return replace(_clean(truth), frames=drawing.frames)


def _burned_text(truth: Truth) -> Source:
    """Subtitles: one line of white letters with a dark edge near the lower border, another text after each second."""
    source = _clean(truth)
    frames = source.frames.copy()
    for number, frame in enumerate(frames):
        text = _SUBTITLES[(truth.seed + number // 25) % len(_SUBTITLES)]
        write_text(frame, text, frame.shape[0] - 4)
    return _with_frames(source, frames)


def write_text(frame: np.ndarray, text: str, baseline: int, scale: float = 0.27) -> None:
    """Burn one centred line of white letters with a dark edge into an image (H, W, 3), its baseline at that row."""
    (width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    at = (frame.shape[1] - width) // 2, baseline
    for colour, thickness in (((16, 16, 16), 3), ((250, 250, 250), 1)):
        cv2.putText(frame, text, at, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, thickness, cv2.LINE_AA)


def _with_frames(source: Source, frames: np.ndarray) -> Source:
    return replace(source, frames=frames)


FAULTS: dict[str, Callable[[Truth], Source]] = {
    "clean": _clean,
    "offset": _offset,
    "shot_cut": _shot_cut,
    "blur": _blur,
    "noise": _noise,
    "frozen": _frozen,
    "second_face": _second_face,
    "music": _music,
    "silence": _silence,
    "too_short": _too_short,
    "too_long": _too_long,
    "fps15": _fps15,
    "variable_rate": _variable_rate,
    "duplicate": _duplicate,
    "truncated": _truncated,
    "no_audio": _no_audio,
    "not_a_video": _not_a_video,
    "drift": _drift,
    "dubbed": _dubbed,
    "off_screen": _off_screen,
    "burned_text": _burned_text,
    "wrong_person": _wrong_person,
}
