"""Real time: an avatar that says audio as it arrives; `AudioAvatar.say` is the same computation on a whole recording.

Motion is made in blocks of frames. Each block sees a window of audio that ends `AHEAD` frames after it, and goes on
from the motion before it. So frames depend on the audio so far, not on how it was cut into pushes, and memory does not
grow with the length of the audio.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch

from audioavatar.avatar import Avatar
from audioavatar.config import SayConfig
from audioavatar.driven.features import audio_features
from audioavatar.driven.model import MotionModel
from audioavatar.frames import FrameRenderer
from audioavatar.motion import Motion, blinks
from common.constants import SAMPLES_PER_FRAME
from omniavatar.encoders.audio import AudioEncoder

AHEAD = 4
"""Frames of audio that a frame waits for: 160 ms."""
FIRST, BLOCK = 1, 4
"""Frames of the first block, which is to come soon, and of every other."""


class MotionStream:
    """Motion of an avatar from audio that arrives piece by piece.

    Before the audio lies silence, of which nothing is shown. The frames of a window that were made before are kept as
    they are; the noise of a frame follows from the seed and its number.
    """

    def __init__(self, avatar: Avatar, model: MotionModel, encoder: AudioEncoder | None, config: SayConfig) -> None:
        self._model, self._encoder, self._config = model, encoder, config
        self._bound = model.bound(avatar)
        self._window = max(model.sampling.window, AHEAD + 2 * BLOCK)  # a shorter one would hold nothing from before
        self._stop = FIRST  # of the next block
        self._finished, self._silence = False, 0  # samples after the end
        self.done = 0
        """Frames that were made."""
        # The frame that both of these begin at; the audio reaches to the last sample, the motion to `done`.
        self._begin = FIRST + AHEAD - self._window
        self._audio = np.zeros(-self._begin * SAMPLES_PER_FRAME, np.float32)
        self._channels = torch.zeros(0, model.channels)

    @property
    def samples(self) -> int:
        """Samples of audio that were taken in, less what was dropped."""
        return len(self._audio) + self._begin * SAMPLES_PER_FRAME - self._silence

    def take(self, samples: np.ndarray) -> None:
        """Append mono 16 kHz audio (n,). Raises ValueError after `finish`."""
        if self._finished:
            raise ValueError("This stream is finished; open another one.")
        self._audio = np.concatenate([self._audio, np.asarray(samples, np.float32)])

    def blocks(self) -> Iterator[Motion]:
        """The motion of every block whose audio is there, in order."""
        while self.samples >= (self._stop + AHEAD) * SAMPLES_PER_FRAME:
            yield self._block(self._stop)

    def finish(self) -> Iterator[Motion]:
        """The rest, with silence after it: as many frames as the audio has begun. Raises ValueError the second time."""
        frames = -(-self.samples // SAMPLES_PER_FRAME)
        silence = (frames + AHEAD) * SAMPLES_PER_FRAME - self.samples
        self.take(np.zeros(silence, np.float32))
        self._finished, self._silence = True, silence
        return self._remaining(frames)

    def _remaining(self, frames: int) -> Iterator[Motion]:
        while self.done < frames:
            yield self._block(min(self._stop, frames))

    def drop(self) -> None:
        """Forget the audio of frames that were not made."""
        self._audio = self._audio[: (self.done - self._begin) * SAMPLES_PER_FRAME]

    @torch.inference_mode()
    def _block(self, stop: int) -> Motion:
        begin = stop + AHEAD - self._window
        self._audio = self._audio[(begin - self._begin) * SAMPLES_PER_FRAME :]
        window = self._audio[: self._window * SAMPLES_PER_FRAME]
        features = audio_features(window, self._model.features, self._encoder)  # type: ignore[arg-type]
        before = self._channels[begin - self._begin :]
        channels = self._model.window(features, before, begin, self._config.seed)
        refined = self._model.refined(channels, features)
        motion = self._bound(refined[self.done - begin : stop - begin])
        # Lids are the rule's, whatever the model learned of them: those that passed each other would uncover the eyes.
        lids = blinks(self._config.seed, self.done, stop - self.done)
        gesture = torch.cat([lids[:, None], motion.gesture[:, 1:]], dim=1)
        self._channels, self._begin = channels[: stop - begin].clone(), begin
        self.done, self._stop = stop, stop + BLOCK
        strength = self._config.strength
        return replace(motion, shift=strength * motion.shift, growth=strength * motion.growth, gesture=gesture)


@dataclass(frozen=True)
class Clock:
    """Where a stream is: `frames` that came out and `samples` of audio that went in (640 a frame, less what was
    flushed), `seconds` of computation, and `waiting`, the frames that could be made of the audio now."""

    frames: int
    samples: int
    seconds: float
    waiting: int


class AvatarStream:
    """Frames of an avatar, as the audio that it says arrives: `push` it in pieces of any length, `finish` at its end.

    Between sentences push silence: without audio no time passes.
    """

    def __init__(self, avatar: Avatar, model: MotionModel, encoder: AudioEncoder | None, config: SayConfig) -> None:
        self._motion = MotionStream(avatar, model, encoder, config)
        self._renderer = FrameRenderer(avatar, config)
        self._frames, self._seconds = 0, 0.0

    @property
    def clock(self) -> Clock:
        """See Clock."""
        ready = self._motion.samples // SAMPLES_PER_FRAME - AHEAD
        return Clock(self._frames, self._motion.samples, self._seconds, max(0, ready - self._frames))

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """Mono 16 kHz audio (n,) -> pieces of frames, uint8 RGB (k, H, W, 3), in order; what is not taken from the
        iterator comes with the next push. Raises ValueError after `finish`."""
        self._motion.take(samples)
        return self._rendered(self._motion.blocks())

    def finish(self) -> Iterator[np.ndarray]:
        """The rest, as if silence followed; a frame that has begun counts as one."""
        return self._rendered(self._motion.finish())

    def flush(self) -> None:
        """Drop the audio that was pushed and whose frames have not come out, as when somebody interrupts."""
        self._motion.drop()

    def _rendered(self, blocks: Iterator[Motion]) -> Iterator[np.ndarray]:
        while True:
            begin = time.perf_counter()
            motion = next(blocks, None)
            if motion is None:
                return
            piece = np.stack(list(self._renderer.frames(motion, self._frames)))
            self._frames += len(piece)
            self._seconds += time.perf_counter() - begin
            yield piece
