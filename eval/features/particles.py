"""Particles of a talking avatar, from the file of their motion beside the video: distortion, jerk, trajectories."""

from pathlib import Path

import numpy as np
import torch

from audioavatar.export import TalkFile, read_talk
from audioavatar.motion import pose
from audioavatar.regularisers import arap
from common.errors import InputError, MissingFileError
from eval.features.records import Arrays, UnscorableError
from eval.metrics.jerk import jerk_spectrum


def particle_motion(path: Path | None) -> Arrays:
    """`arap`, the mean squared distortion of neighbourhoods in px^2 of the avatar's picture, the head's motion apart;
    `jerk`, the root mean square of the third difference in px; `jerk_power` (F,) at each `frequency` (F,); `frames`.

    Raises UnscorableError for a file that cannot be read.
    """
    talk = _read(path)
    rest = talk.avatar.particles.mean[:, :2]
    frequency, power = jerk_spectrum(_seen(talk))
    return {
        "arap": np.asarray(float(arap(rest + talk.motion.shift, rest, talk.avatar.graph))),
        "jerk": np.asarray(float(np.sqrt(power.sum() / max(len(power), 1)))),
        "jerk_power": power,
        "frequency": frequency,
        "frames": np.asarray(len(talk.motion)),
    }


def trajectory_error(path: Path | None, reference: Path | None) -> Arrays:
    """How far particles are seen from where the reference has them, over the frames that both have: `error`, mean px of
    the avatar's picture, and `share`, that of the mean distance from rest. Only over particles that no fit was told of.

    Raises UnscorableError for motion of another avatar or a file that cannot be read.
    """
    own, other = _read(path), _read(reference)
    if not torch.equal(own.avatar.particles.mean, other.avatar.particles.mean):
        raise UnscorableError("the motion and its reference are of different avatars")
    frames = min(len(own.motion), len(other.motion))
    untracked = slice(None) if other.tracked is None else ~other.tracked.numpy()
    seen, true = (_seen(talk)[:frames, untracked] for talk in (own, other))
    rest = own.avatar.camera.project(own.avatar.particles.mean)[0].numpy()[untracked]
    error, moved = (float(np.linalg.norm(true - place, axis=-1).mean()) for place in (seen, rest))
    if moved == 0:
        raise UnscorableError("nothing moves in the reference")
    return {"error": np.asarray(error), "share": np.asarray(error / moved), "frames": np.asarray(frames)}


def _read(path: Path | None) -> TalkFile:
    assert path is not None  # the extractors name it as one of their inputs
    try:
        return read_talk(path)
    except (MissingFileError, InputError) as error:
        raise UnscorableError(f"no motion: {error}") from error


def _seen(talk: TalkFile) -> np.ndarray:
    """Where particles are in the picture (T, N, 2), px."""
    return talk.avatar.camera.project(pose(talk.avatar, talk.motion).mean)[0].numpy()
