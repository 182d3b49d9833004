"""Decoding of an audio stream to mono: which channels are heard and how much of it; used through common.media.audio."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import InputContainer

from common.media.open import MediaError, audio_stream, check_audio, open_media

# Stamps that stray less than this from the running sample count are rounding, not a gap in the audio.
AUDIO_JITTER = 0.02
# Decoding starts this much before the wanted audio: a transform codec needs the previous block.
AUDIO_PREROLL = 0.3
# A longer silence between two packets is a damaged stamp.
MAX_GAP = 600.0
# Bounds of one reading: silence packs 5,000 to 1, so the size of a file says nothing.
LONGEST_AUDIO = 4 * 3600.0  # seconds
MAX_SAMPLES = int(LONGEST_AUDIO) * 48_000
# Channels of a named layout: the mean of left and right, the centre whole, which carries the speech, the surround
# channels 3 dB below the front ones together, no low-frequency effects (ITU-R BS.775-4 annex 4, whose mono equation is
# this 3 dB louder but for the centre).
FRONT, CENTRE, EFFECTS = ("FL", "FR", "FLC", "FRC", "DL", "DR"), "FC", ("LFE", "LFE2")
FRONT_GAIN, CENTRE_GAIN, SURROUND_GAIN = 0.5, 1.0, 0.5


def decode_mono(container: InputContainer, start: float, end: float | None) -> tuple[np.ndarray, float, int]:
    """Mono samples covering [start, end] of the container's clock, the time of the first, and their rate.

    Mixed by `MonoMix`. Raises MediaError: unsupported for more than `LONGEST_AUDIO`, before it is decoded.
    """
    stream = audio_stream(container)
    assert stream is not None  # the caller has looked
    _check_length(container, start, end)
    mix = MonoMix()
    decoded = _decode(container, stream, start, end, mix)
    if mix.cancels():
        with open_media(container.name) as again:
            stream = audio_stream(again)
            assert stream is not None
            decoded = _decode(again, stream, start, end, mix)
    return mix.without_overshoot(decoded[0]), *decoded[1:]


def _check_length(container: InputContainer, start: float, end: float | None) -> None:
    seconds = _packet_seconds(container.name) if end is None else end - start
    if seconds > LONGEST_AUDIO:
        raise _too_long(container)


def _packet_seconds(path: str) -> float:
    """Seconds of audio in a file by its packets, whatever its header says, without decoding; not counted to the end
    where it is too long."""
    seconds = 0.0
    with open_media(path) as container:
        stream = audio_stream(container)
        assert stream is not None
        for packet in container.demux(stream):
            seconds += float((packet.duration or 0) * (packet.time_base or 0))
            if seconds > LONGEST_AUDIO:
                break
    return seconds


def _too_long(container: InputContainer) -> MediaError:
    return MediaError("unsupported", f"{container.name} has over {LONGEST_AUDIO / 3600:g} hours of sound; cut it.")


def _decode(
    container: InputContainer, stream: AudioStream, start: float, end: float | None, mix: MonoMix
) -> tuple[np.ndarray, float, int]:
    if start > AUDIO_PREROLL:
        container.seek(int((start - AUDIO_PREROLL) * av.time_base))
    packer, form = av.AudioResampler(format="flt"), ("", "")
    blocks: list[np.ndarray] = []
    first, length, rate = 0.0, 0, stream.rate
    for frame in container.decode(stream):
        if not blocks:
            rate = frame.sample_rate  # some codecs know it only now
            check_audio(container, rate, frame.layout.nb_channels)
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
            packer, form = av.AudioResampler(format="flt"), (frame.format.name, frame.layout.name)
        for packed in packer.resample(frame):
            blocks.append(mix.add(packed))
            length += len(blocks[-1])
        if length > min(LONGEST_AUDIO * rate, MAX_SAMPLES):
            raise _too_long(container)
    return (np.concatenate(blocks) if blocks else np.zeros(0, np.float32)), (first if blocks else start), rate


@dataclass
class _Channels:
    """Gains of the channels of one layout, and the energy heard so far of each channel and of their sum."""

    gains: np.ndarray
    energy: np.ndarray
    mixed: float = 0.0


@dataclass
class MonoMix:
    """Mixing of any channel layout to mono.

    Left and right are averaged; see `FRONT` for what is added of larger layouts. Channels without names are averaged.
    Where channels cancel each other (one with inverted polarity) or all but one are mute, a mean would hide the speech:
    when less is left than an eighth of the loudest channel's energy, that channel is heard alone.
    """

    layouts: dict[str, _Channels] = field(default_factory=dict)

    def add(self, packed: AudioFrame) -> np.ndarray:
        """Interleaved float samples -> mono (n,) float32."""
        count = packed.layout.nb_channels
        # PyAV holds at most eight planes of a frame; interleaved samples are one plane, whatever the channels.
        samples = packed.to_ndarray().reshape(-1, count)
        if count == 1:
            return samples[:, 0]
        layout = self.layouts.get(packed.layout.name)
        if layout is None:
            layout = _Channels(layout_gains(packed.layout), np.zeros(count))
            self.layouts[packed.layout.name] = layout
        mono = sum_channels(samples, layout.gains)
        layout.energy += np.einsum("nc,nc->c", samples, samples, dtype=np.float64)
        layout.mixed += float(np.dot(mono, mono))
        return mono

    def cancels(self) -> bool:
        """Whether, after all was added, other gains are needed; they are those of the next time."""
        changed = False
        for layout in self.layouts.values():
            # Effects count only where there is nothing else.
            candidates = layout.energy * (layout.gains > 0) if (layout.energy * layout.gains).any() else layout.energy
            loudest = int(np.argmax(candidates))
            # Of n unrelated channels of one loudness a mean leaves 1/n.
            if layout.mixed < candidates[loudest] / max(8, 2 * len(candidates)):
                layout.gains = np.eye(len(candidates), dtype=np.float32)[loudest]
                changed = True
        return changed

    def without_overshoot(self, samples: np.ndarray) -> np.ndarray:
        """The samples; turned down as a whole where the sum of more than two channels goes beyond [-1, 1]."""
        if any(len(layout.gains) > 2 for layout in self.layouts.values()) and len(samples):
            peak = float(np.abs(samples).max())
            if 1 < peak < math.inf:
                return samples / np.float32(peak)
        return samples


def layout_gains(layout: AudioLayout) -> np.ndarray:
    """Gain (n,) float32 of every channel in the mono mix."""
    names = [channel.name for channel in layout.channels]
    front = [name in FRONT for name in names]
    if not any(front) and CENTRE not in names:
        return np.full(layout.nb_channels, 1 / layout.nb_channels, np.float32)
    surround = sum(name not in (*FRONT, CENTRE, *EFFECTS) for name in names)
    gains = np.full(len(names), SURROUND_GAIN / math.sqrt(max(1, surround)), np.float32)
    gains[front] = FRONT_GAIN
    gains[[name == CENTRE for name in names]] = CENTRE_GAIN
    gains[[name in EFFECTS for name in names]] = 0
    return gains


def sum_channels(samples: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(n, channels) -> (n,) float32, channel by channel: the same bytes on every machine."""
    mono = np.zeros(len(samples), np.float32)
    for channel in np.flatnonzero(gains):
        mono += gains[channel] * samples[:, channel]
    return mono
