"""Stage `embed`: the joint embedding of audio and particle motion, of fitted clips of any people."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.config import EmbeddingConfig
from audioavatar.driven.embedding import patches, retrieval, similarity_by_offset
from audioavatar.driven.space import LearntSpace, fit_space
from audioavatar.motion import Motion
from common.progress import MetricLog
from common.runs import fingerprint, plain
from training.audioavatar.stage_file import about, checkpoint_of, read_tensors, save_tensors

logger = logging.getLogger(__name__)


class FittedClip(NamedTuple):
    """An `avatar`, its fitted `motion` of T frames, and the audio's `features` (T, D)."""

    avatar: Avatar
    motion: Motion
    features: Tensor


def train_space(
    clips: Sequence[FittedClip],
    out: Path,
    made_of: str,
    config: EmbeddingConfig = EmbeddingConfig(),
    seed: int = 0,
    log: MetricLog | None = None,
) -> Path:
    """Train on clips of one length -> `out`. A file made of the same (`made_of`: their fingerprint) stays; a killed
    stage goes on from its checkpoint and makes the same bytes."""
    key = fingerprint([made_of, plain(config), seed])
    if about(out).get("made_of") != key:
        checkpoint = checkpoint_of(out, key, "embed", log)
        space, history = fit_space(clips, config, seed, checkpoint)
        logger.info("embedding, the last step: %s", history[-1])
        save_tensors(out, space.state_dict(), {"made_of": key, "sizes": space.sizes(), "history": history})
        if checkpoint:
            checkpoint.remove()
    return out


def read_space(path: Path) -> LearntSpace:
    """What `embed` wrote."""
    return LearntSpace.restored(about(path)["sizes"], read_tensors(path))


class Similarity(NamedTuple):
    """R@1 of frames and of windows of 8, what chance would give of each, and the offset in frames at which motion is
    most like the audio: 0, and -3 where the audio comes three frames late."""

    frames: float
    windows: float
    chance_frames: float
    chance_windows: float
    offset: int


@torch.no_grad()
def similarity(space: LearntSpace, clips: Sequence[FittedClip]) -> Similarity:
    """How well audio finds its own motion among all frames of the clips."""
    spoken = [space.audio(clip.features[None])[0] for clip in clips]
    moved = [space.motion_head(space.encode(clip.avatar, clip.motion)) for clip in clips]
    curve = torch.stack([similarity_by_offset(*pair) for pair in zip(spoken, moved, strict=True)]).mean(0)
    frames, windows = (
        (torch.cat(spoken), torch.cat(moved)),
        [torch.cat([*map(patches, each)]) for each in (spoken, moved)],
    )
    return Similarity(
        retrieval(*frames), retrieval(*windows), 1 / len(frames[0]), 1 / len(windows[0]),
        int(curve.argmax()) - len(curve) // 2,
    )  # fmt: skip
