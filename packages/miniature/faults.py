"""Draws source videos of the small world into a folder, some with a planted fault, each with its truth in a sidecar.

`<name>.mp4` has `<name>.json` beside it: the caption (which any captioned source may bring) and under `truth` what was
planted, which curation never reads.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from common.media import write_video
from common.progress import progress
from common.runs import read_json, write_json
from miniature.figure import Framing
from miniature.voice import music
from miniature.world import DrawnClip, draw_clip

SAMPLES_PER_FRAME = 640
_SPARE_FRAMES = 12  # drawn on either side of an offset clip, so that shifted sound is real sound


@dataclass(frozen=True)
class SmallWorldConfig:
    """How many sources of each kind are drawn; `seed` is the first clip number, counted up for every source."""

    clean: int = 30
    offset: int = 21
    each_fault: int = 3
    seconds: float = 3.6
    seed: int = 500_000


@dataclass(frozen=True)
class Truth:
    """What was planted. `shift` in frames (positive = sound comes late); `original` of a duplicate.

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
    """A source about to be written: pictures and sound may be replaced by a fault; `finish` damages the file."""

    frames: np.ndarray
    audio: np.ndarray | None
    caption: str
    fps: float = 25.0
    timestamps: list[float] | None = None
    crf: int = 18
    finish: Callable[[Path], None] = field(default=lambda path: None)


def plan(config: SmallWorldConfig) -> list[Truth]:
    """The truth of every source, in the order of their numbers; framings alternate, offsets run through -10..10."""
    kinds = ["clean"] * config.clean + ["offset"] * config.offset
    kinds += [kind for kind in FAULTS if kind not in ("clean", "offset") for _ in range(config.each_fault)]
    truths: list[Truth] = []
    for number, kind in enumerate(kinds):
        framing: Framing = "half" if number % 3 == 2 else "face"
        truth = Truth(kind, config.seed + number, framing, config.seconds)
        if kind == "offset":
            truth = replace(truth, shift=(number - config.clean) % 21 - 10)
        if kind == "duplicate":
            # Sources are judged in the order of their names, so the original always comes first.
            index = kinds[:number].count("duplicate") % max(1, config.clean)
            truth = replace(truths[index], kind=kind, original=source_name(index))
        truths.append(truth)
    return truths


def source_name(number: int) -> str:
    """File name, without ending, of source `number`."""
    return f"source_{number:04d}"


def draw_sources(folder: Path, config: SmallWorldConfig) -> list[Path]:
    """Write every planned source that is not there yet; the sidecar comes last and marks a source as finished."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, truth in enumerate(progress(plan(config), "draw sources")):
        path = folder / f"{source_name(number)}.mp4"
        sidecar = path.with_suffix(".json")
        if not sidecar.exists() or read_json(sidecar)["truth"] != asdict(truth):
            source = FAULTS[truth.kind](truth)
            write_video(path, source.frames, source.audio, source.fps, crf=source.crf, timestamps=source.timestamps)
            source.finish(path)
            write_json(sidecar, {"caption": source.caption, "truth": asdict(truth)})
        paths.append(path)
    return paths


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
    second = draw_clip(truth.seed + 50_000, truth.seconds, truth.framing)
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
    """A second person beside the speaker who moves as people do but says nothing."""
    source = _clean(replace(truth, framing="face"))
    other = _listener(draw_clip(truth.seed + 50_000, truth.seconds))
    pair = (source.frames, other) if truth.seed % 2 else (other, source.frames)
    return _with_frames(source, np.concatenate(pair, axis=2))


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
}
