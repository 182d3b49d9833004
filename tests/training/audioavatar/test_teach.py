"""Teacher clips through the first system's own pipeline: kept, not made twice, made again when settings change."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from audioavatar.config import TeacherConfig
from common.runs import RunFolder
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from training.audioavatar.config import TEACHER_ROLES, AvatarTrainConfig, PeopleConfig, ScoreConfig, VoicesConfig
from training.audioavatar.stages import training_units
from training.audioavatar.stages import teach as run_teach
from training.audioavatar.teach import read_clip

MODELS = {role: model_paths()[role] for role in TEACHER_ROLES}
QUICK = TeacherConfig(steps=1, chunk_frames=17, audio_guidance=1.0)
TINY = AvatarTrainConfig(
    people=PeopleConfig(train=1),
    voices=VoicesConfig(each=2, seconds=0.36),
    teachers={"omniavatar": QUICK},
    score=ScoreConfig(people=0, voices=1),
)


def test_clips_are_kept_and_made_again_only_when_something_changes(tmp_path: Path) -> None:
    config = replace(TINY, relief=replace(TINY.relief, steps=0))
    run = RunFolder(tmp_path)
    out = run_teach(config, run, MODELS)
    first, second = (out / unit.file for unit in training_units(config))
    clip = read_clip(first)
    assert clip.frames.shape == (9, 64, 64, 3) and clip.frames.dtype == torch.uint8
    assert np.array_equal(clip.wave.numpy(), draw_clip(101, 0.36).audio)
    content, stamp = first.read_bytes(), second.stat().st_mtime_ns
    first.unlink()  # as if the process had been killed before
    run_teach(config, run, MODELS)
    assert first.read_bytes() == content and second.stat().st_mtime_ns == stamp
    run_teach(replace(config, seed=1), run, MODELS)
    assert first.read_bytes() != content
