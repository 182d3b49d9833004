"""Forecast of a latents job: bytes from arithmetic, hours from a measured speed."""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common.constants import FPS, SAMPLES_PER_FRAME
from common.runs import read_json
from latents.bill import KINDS
from latents.config import LatentsConfig
from latents.encode import Encoders, encode_clip
from omniavatar.video.buckets import nearest_bucket

HALF = 2  # bytes of float16
PER_SAMPLE = 4096  # headers, metadata and padding, about
PROBES = (5, 13)  # frames


class Length(NamedTuple):
    """The size of a clip: seconds, and pixels before it is fitted to a bucket."""

    seconds: float
    height: int
    width: int


@dataclass(frozen=True)
class Widths:
    """Values per stored frame or token; the defaults are the published models' (umT5-XXL, wav2vec2-base)."""

    text: int = 4096
    audio: int = 13 * 768  # without the duplicated layer
    text_tokens: int = 110  # of a caption, on average


class Speed(NamedTuple):
    """Seconds of one worker: per clip, and per megapixel of one frame."""

    clip: float
    megapixel_frame: float


@dataclass(frozen=True)
class Forecast:
    """Bytes by kind, hours of video and work: a megapixel of one frame is the unit; `seconds` of workers, if known."""

    clips: int
    hours: float
    kinds: dict[str, int]
    megapixel_frames: float
    seconds: float | None

    @property
    def total_bytes(self) -> int:
        """Of all shards."""
        return sum(self.kinds.values()) + self.clips * PER_SAMPLE

    def lines(self, workers: int = 1) -> list[str]:
        """Lines for the total, for each kind, and for the time."""
        per_clip = self.total_bytes / 1e6 / max(self.clips, 1)
        lines = [f"{self.clips} clips, {self.hours:.4g} h of video: {self.total_bytes / 1e9:.4g} GB"]
        lines += [f"  {kind:<10} {size / 1e9:>10.4g} GB" for kind, size in self.kinds.items()]
        lines += [f"  {per_clip:.3g} GB per 1000 clips; as much again in cache/, which may be deleted after packing"]
        if self.seconds is None:
            return [*lines, "time unknown: give a run that has encoded clips, or measure with --probe"]
        days = self.seconds / workers / 86400
        return [*lines, f"{self.seconds / 3600:.4g} worker hours, {days:.3g} days with {workers} at a time"]


def forecast(clips: Iterable[Length], config: LatentsConfig, widths: Widths, speed: Speed | None = None) -> Forecast:
    """Bytes of the shards of these clips under a recipe's settings, and the time at a measured speed."""
    sums, count, hours, work = dict.fromkeys(KINDS, 0), 0, 0.0, 0.0
    for clip in clips:
        height, width = nearest_bucket(clip.height, clip.width, config.buckets)
        frames = max(round(clip.seconds * FPS), 1)
        kept = (frames - 1) // 4 * 4 + 1
        plane = 16 * (height // 8) * (width // 8) * HALF
        sums["latents"] += ((kept - 1) // 4 + 1) * plane
        sums["references"] += config.references * plane
        sums["text"] += widths.text_tokens * widths.text * HALF
        waveform = config.audio == "waveform"
        sums["audio"] += frames * SAMPLES_PER_FRAME * HALF if waveform else kept * widths.audio * HALF
        count, hours, work = count + 1, hours + kept / FPS / 3600, work + kept * height * width / 1e6
    seconds = None if speed is None else count * speed.clip + work * speed.megapixel_frame
    return Forecast(count, hours, sums, work, seconds)


def read_widths(text_encoder: Path | None, audio_encoder: Path | None) -> Widths:
    """Widths of the models of a recipe, from their `config.json`; the published ones' where a model is absent."""
    widths = Widths()
    text, audio = (folder / "config.json" if folder else None for folder in (text_encoder, audio_encoder))
    states = read_json(audio) if audio and audio.exists() else None
    return Widths(
        text=read_json(text)["d_model"] if text and text.exists() else widths.text,
        audio=(states["num_hidden_layers"] + 1) * states["hidden_size"] if states else widths.audio,
    )


def probe(encoders: Encoders, bucket: tuple[int, int]) -> Speed:
    """Speed of this machine, from encoding two short clips of noise, the faster of two runs each."""

    def seconds(frames: int) -> float:
        frames_of_noise = np.random.default_rng(0).integers(0, 256, (frames, *bucket, 3)).astype(np.uint8)
        wave = np.zeros(frames * SAMPLES_PER_FRAME, np.float32)
        begin = time.perf_counter()
        encode_clip(encoders, frames_of_noise, wave, "a person speaks")
        return time.perf_counter() - begin

    seconds(PROBES[0])  # the first is slower than any later one
    short, long = (min(seconds(frames) for _ in range(2)) for frames in PROBES)
    per_frame = max(long - short, 0.0) / (PROBES[1] - PROBES[0])
    return Speed(max(short - PROBES[0] * per_frame, 0.0), per_frame / (bucket[0] * bucket[1] / 1e6))


def even_lengths(clips: int, hours: float, bucket: tuple[int, int]) -> list[Length]:
    """`clips` clips of equal length and size, of `hours` altogether."""
    return [Length(ceil(hours * 3600 / clips * FPS) / FPS, *bucket)] * clips
