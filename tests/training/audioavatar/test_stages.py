"""Fits and motion as stages: a unit that is there is not made again, and made again it has the same bytes."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from audioavatar.avatar import Avatar
from audioavatar.config import FitConfig, ReliefConfig
from audioavatar.say import build
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from omniavatar.encoders.audio import load_audio_encoder
from training.audioavatar.stages import fit_clips, read_motion, train_motion

BRIEF = FitConfig(field_steps=2, particle_stages=((1, 1.0, 6.0, 0.25, 0.04),))


def write_clip(folder: Path, seed: int) -> Path:
    drawn = draw_clip(seed, 0.4)
    path = folder / f"{seed}.safetensors"
    save_file({"frames": torch.from_numpy(drawn.frames), "wave": torch.from_numpy(drawn.audio)}, path)
    return path


def test_fits_go_on_where_they_were_and_motion_is_trained_of_them(tmp_path: Path) -> None:
    avatar: Avatar = build(draw_clip(1_000_000, 0.2).frames[0], model_paths()["face_detector"], ReliefConfig(steps=0))
    avatar.save(tmp_path / "avatar")
    clips = [write_clip(tmp_path, seed) for seed in (1_000_000, 1_000_001)]
    fits = fit_clips(avatar, tmp_path / "avatar", clips[:1], tmp_path / "fits", BRIEF)
    before = fits[0].stat().st_mtime_ns, fits[0].read_bytes()
    fits = fit_clips(avatar, tmp_path / "avatar", clips, tmp_path / "fits", BRIEF)
    assert len(fits) == 2 and fits[0].stat().st_mtime_ns == before[0]
    fits[0].unlink()
    fit_clips(avatar, tmp_path / "avatar", clips, tmp_path / "fits", BRIEF)
    assert fits[0].read_bytes() == before[1]
    motion = read_motion(fits[0])
    assert motion.shift.shape == (10, len(avatar.particles), 2) and bool(motion.shift.any())
    encoder = load_audio_encoder(model_paths()["audio_encoder"])
    model = train_motion(avatar, clips, fits, encoder, "ridge")
    assert model.features == "wav2vec2" and len(model.basis) == 16
