"""A drawn person, and the avatar built from one picture of it."""

import numpy as np
import pytest

from audioavatar.avatar import Avatar
from audioavatar.config import ReliefConfig
from audioavatar.say import AudioAvatar, build
from miniature.weights import model_paths
from miniature.world.clips import DrawnClip, draw_clip


@pytest.fixture(scope="session")
def portrait() -> np.ndarray:
    """The first frame (64, 64, 3) of a held-out drawn person."""
    return draw_clip(1_000_000, 0.2).frames[0]


@pytest.fixture(scope="session")
def avatar(portrait: np.ndarray) -> Avatar:
    """Its avatar, colours refined."""
    return build(portrait, model_paths()["face_detector"], ReliefConfig())


@pytest.fixture(scope="session")
def speaker(avatar: Avatar, tmp_path_factory: pytest.TempPathFactory) -> AudioAvatar:
    """The avatar, saved and read again, with the shipped motion."""
    folder = tmp_path_factory.mktemp("avatar")
    avatar.save(folder)
    return AudioAvatar.load(folder, model_paths()["audio_encoder"])


@pytest.fixture(scope="session")
def voice() -> DrawnClip:
    """30 frames of a voice never trained on."""
    return draw_clip(1_000_101, 1.2)
