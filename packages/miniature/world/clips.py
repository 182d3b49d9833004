"""One clip of the small world from one seed: person, voice, and the truth of both."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from common.constants import FPS
from miniature.world.figure import Drawing, Framing, Identity, Motion, describe, draw_identity, draw_motion, render
from miniature.world.voice import Speaker, Speech, draw_speaker, speak

HELD_OUT_SEED = 1_000_000
"""Clips of this seed and above are never trained on; training draws its seeds from 0 to 99,999."""


@dataclass(frozen=True)
class DrawnClip:
    """A drawn talking person and everything that is true of it.

    Attributes: `frames` (T, H, W, 3) uint8 RGB at 25 fps, 64x64 for a face and 96x96 for half a body; `audio` (T*640,)
    float32 at 16 kHz; `phones` (T, P) mixture per frame; `mouth` (T, 3) opening, spread, teeth in 0..1; `boxes` (T, 4)
    face box xyxy in px; `keypoints` (T, 5, 2) left eye, right eye, nose, left and right mouth corner as seen, in px.
    """

    frames: np.ndarray
    audio: np.ndarray
    phones: np.ndarray
    mouth: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    caption: str
    identity: dict[str, Any]
    seed: int
    framing: Framing


@dataclass(frozen=True)
class Performance:
    """What is true of a clip before anything is drawn: who is seen, who speaks, what is said and how one moves."""

    speaker: Speaker
    identity: Identity
    speech: Speech
    motion: Motion


def perform(seed: int, seconds: float = 3.0) -> Performance:
    """The performance of clip number `seed`, `seconds` long at 25 fps."""
    # One generator per clip, used in a fixed order: speaker, identity, script and audio, motion.
    rng = np.random.default_rng(seed)
    speaker, identity = draw_speaker(rng), draw_identity(rng)
    speech = speak(speaker, round(seconds * FPS), rng)
    return Performance(speaker, identity, speech, draw_motion(speech.stress, rng))


def draw_clip(seed: int, seconds: float = 3.0, framing: Framing = "face") -> DrawnClip:
    """Draw clip number `seed`, `seconds` long at 25 fps; the same arguments give the same arrays in every process."""
    shown = perform(seed, seconds)
    identity, speech = shown.identity, shown.speech
    drawing: Drawing = render(identity, shown.motion, speech.lips, framing)
    return DrawnClip(
        frames=drawing.frames,
        audio=speech.audio,
        phones=speech.phones,
        mouth=speech.lips,
        boxes=drawing.boxes,
        keypoints=drawing.keypoints,
        caption=describe(identity, framing),
        identity={**asdict(identity), **{f"voice_{key}": value for key, value in asdict(shown.speaker).items()}},
        seed=seed,
        framing=framing,
    )
