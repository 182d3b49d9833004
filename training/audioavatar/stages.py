"""Stages of the second system's training: fits of a teacher's clips, and motion from audio. Each goes on where it was
killed: a unit is a file that is there whole or not at all, with what it was made of inside.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from audioavatar.avatar import FILE, Avatar
from audioavatar.config import Driver, FitConfig, GeneratorConfig
from audioavatar.driven.features import audio_features
from audioavatar.driven.model import MotionModel, fit_motion_model
from audioavatar.fit.clip import fit_clip
from audioavatar.motion import Motion
from common.runs import atomic_write, sha256_file
from omniavatar.encoders.audio import AudioEncoder
from training.audioavatar.teach import read_clip

logger = logging.getLogger(__name__)


def fit_clips(avatar: Avatar, folder: Path, clips: Sequence[Path], out: Path, config: FitConfig) -> list[Path]:
    """Fit the avatar saved in `folder` to teacher clips -> `out`/<name>.safetensors of each.

    A fit of the same avatar, clip and settings stays. A fit has no randomness.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for clip in clips:
        path = out / clip.name
        made_of = [sha256_file(folder / FILE), sha256_file(clip), json.dumps(asdict(config), sort_keys=True)]
        key = hashlib.sha256("\n".join(made_of).encode()).hexdigest()
        if not path.is_file() or _about(path).get("made_of") != key:
            result = fit_clip(avatar, read_clip(clip).frames, config)
            about = {"made_of": key, "psnr": round(result.psnr, 2), "arap": round(result.arap, 4)}
            logger.info("fit of %s: %.1f dB, distortion %.3f px^2", clip.stem, result.psnr, result.arap)
            tensors = vars(result.motion)
            with atomic_write(path) as temporary:
                save_file(
                    {name: value.contiguous() for name, value in tensors.items()},
                    temporary,
                    {"about": json.dumps(about)},
                )
        paths.append(path)
    return paths


def _about(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        return dict(json.loads((file.metadata() or {}).get("about", "{}")))


def read_motion(path: Path) -> Motion:
    """A motion that `fit_clips` wrote."""
    with safe_open(path, "pt") as file:
        return Motion(**{field.name: file.get_tensor(field.name) for field in fields(Motion)})


def train_motion(
    avatar: Avatar,
    clips: Sequence[Path],
    fits: Sequence[Path],
    encoder: AudioEncoder,
    driver: Driver = "generator",
    seed: int = 0,
    generator: GeneratorConfig = GeneratorConfig(),
) -> MotionModel:
    """Motion from wav2vec2 states, of fitted clips of one avatar."""
    pairs = []
    for clip, fit in zip(clips, fits, strict=True):
        wave = read_clip(clip).wave.numpy()
        pairs.append((read_motion(fit), audio_features(wave, "wav2vec2", encoder)))
    frames = min(min(len(motion), len(features)) for motion, features in pairs)
    cut = [(Motion(*(each[:frames] for each in vars(m).values())), features[:frames]) for m, features in pairs]
    with torch.random.fork_rng(devices=[]):
        return fit_motion_model(avatar, cut, "wav2vec2", driver, seed, generator=generator)
