"""What networks learn from: gestures of teachers that show them, and of no other."""

from dataclasses import replace

import pytest
import torch

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.config import ReliefConfig, TeacherConfig
from audioavatar.motion import Motion, still
from audioavatar.say import build
from common.errors import InputError
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from training.audioavatar.config import AvatarTrainConfig
from training.audioavatar.embed import FittedClip
from training.audioavatar.networks import _with_gestures
from training.audioavatar.people import Voice
from training.audioavatar.stages import Unit

CONFIG = AvatarTrainConfig(
    teachers={"omniavatar": TeacherConfig(), "drawn": TeacherConfig()}, gesture_teachers=("drawn",)
)
FRAMES = 40


def clip(avatar: Avatar, seed: int, follows: bool) -> FittedClip:
    """A head and brows that do as the first feature says, or anything else."""
    random = torch.Generator().manual_seed(seed)
    features = torch.rand(FRAMES, 3, generator=random)
    nod = features[:, 0] if follows else torch.rand(FRAMES, generator=random)
    gesture = torch.zeros(FRAMES, len(GESTURES))
    gesture[:, GESTURES.index("brows")] = nod
    rest = still(avatar, FRAMES)
    motion = Motion(torch.stack([0 * nod, nod, 0 * nod], dim=1), rest.shift + seed, rest.growth, gesture)
    return FittedClip(avatar, motion, features)


def test_clips_without_gestures_take_those_that_audio_tells() -> None:
    avatar = build(draw_clip(1_000_007, 0.2).frames[0], model_paths()["face_detector"], ReliefConfig(steps=0))
    names = ["omniavatar", "drawn", "drawn", "drawn", "omniavatar"]
    units = [Unit("somebody", Voice(str(number), number), name) for number, name in enumerate(names)]
    clips = [clip(avatar, number, name == "drawn") for number, name in enumerate(names)]
    changed = _with_gestures(CONFIG, units, clips)
    for before, after, name in zip(clips, changed, names, strict=True):
        assert torch.equal(before.motion.shift, after.motion.shift)
        nods = torch.corrcoef(torch.stack([after.motion.head[:, 1], after.features[:, 0]]))[0, 1]
        brows = torch.corrcoef(torch.stack([after.motion.gesture[:, 1:].sum(1), after.features[:, 0]]))[0, 1]
        assert nods > 0.95 and brows > 0.95, name
        assert (after is before) == (name == "drawn")
    for same in (replace(CONFIG, gesture_teachers=()), replace(CONFIG, gesture_teachers=("omniavatar", "drawn"))):
        assert _with_gestures(same, units, clips) is clips


def test_a_gesture_teacher_has_to_be_a_teacher() -> None:
    with pytest.raises(InputError, match=r"names someone; expected some of avatar\.teachers: omniavatar, drawn"):
        replace(CONFIG, gesture_teachers=("someone",))
