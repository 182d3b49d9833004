"""Particles of an avatar against motion that is known, and files that are no motion."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from audioavatar.avatar import GESTURES, Avatar, Mouth
from audioavatar.canonical.procedural import procedural_avatar
from audioavatar.export import TalkFile, read_talk, write_talk
from audioavatar.motion import Motion, still
from audioavatar.particles import Part
from eval.features.particles import particle_motion, trajectory_error
from eval.features.records import UnscorableError

FRAMES = 8


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    """Flat, so that a pixel of the world is a pixel of the picture."""
    particles = procedural_avatar()
    particles = replace(particles, mean=particles.mean * torch.tensor([1.0, 1.0, 0.0]))
    mouth = Mouth(torch.zeros(2), 5.0, 0.0, torch.tensor([[-5.0, 0.0], [5.0, 0.0]]))
    gestures = torch.zeros(len(GESTURES), len(particles), 2)
    return Avatar(
        particles, torch.zeros(64, 64, 3), mouth, torch.tensor([20.0, 10.0, 44.0, 40.0]), gestures, "procedural"
    )


def moved(avatar: Avatar, by: float) -> Motion:
    """Everything to the right by as many px in every frame."""
    motion = still(avatar, FRAMES)
    return replace(motion, shift=motion.shift + torch.tensor([by, 0.0]))


def saved(path: Path, avatar: Avatar, motion: Motion, tracked: torch.Tensor | None = None) -> Path:
    write_talk(TalkFile(avatar, motion, tracked), path)
    return path


def test_a_talk_comes_back_from_its_file(avatar: Avatar, tmp_path: Path) -> None:
    talk = read_talk(saved(tmp_path / "a", avatar, moved(avatar, 2)))
    assert talk.tracked is None and torch.equal(talk.motion.shift, moved(avatar, 2).shift)
    assert torch.equal(talk.avatar.particles.mean, avatar.particles.mean) and talk.avatar.builder == "procedural"
    assert saved(tmp_path / "b", talk.avatar, talk.motion).read_bytes() == (tmp_path / "a").read_bytes()


def test_the_head_is_rigid_and_lips_torn_from_it_are_not(avatar: Avatar, tmp_path: Path) -> None:
    nod = replace(still(avatar, FRAMES), head=torch.randn(FRAMES, 3, generator=torch.Generator().manual_seed(0)))
    rigid = particle_motion(saved(tmp_path / "rigid", avatar, nod))
    assert rigid["arap"] < 1e-9 and rigid["jerk"] > 1 and rigid["frames"] == FRAMES
    torn = still(avatar, FRAMES)
    torn.shift[:, avatar.particles.part == Part.LOWER_LIP, 1] = 3
    torn = particle_motion(saved(tmp_path / "torn", avatar, torn))
    assert torn["arap"] > 1e-3 and torn["jerk"] == 0


def test_trajectories_are_held_against_particles_no_fit_was_told_of(avatar: Avatar, tmp_path: Path) -> None:
    tracked = torch.arange(len(avatar.particles)) % 2 == 0
    reference = moved(avatar, 4)
    own = replace(reference, shift=reference.shift + torch.where(tracked, 10.0, 1.0)[:, None] * torch.tensor([0, 1.0]))
    paths = saved(tmp_path / "own", avatar, own), saved(tmp_path / "reference", avatar, reference, tracked)
    found = trajectory_error(*paths)
    follow = np.linalg.norm([1.0, 0.0])
    assert found["error"] == pytest.approx(follow, rel=1e-4) and found["share"] == pytest.approx(1 / 4, rel=1e-4)
    at_rest = saved(tmp_path / "still", avatar, still(avatar, FRAMES))
    with pytest.raises(UnscorableError, match="nothing moves"):
        trajectory_error(paths[0], at_rest)
    other = replace(avatar, particles=avatar.particles.chosen(torch.arange(20)))
    with pytest.raises(UnscorableError, match="of different avatars"):
        trajectory_error(paths[0], saved(tmp_path / "other", other, moved(other, 1)))


def test_other_files_are_a_reason_and_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("not a tensor file")
    for name, message in (("text", "is not a file of a talk"), ("nowhere", "There is no file of a talk")):
        with pytest.raises(UnscorableError, match=f"no motion: .*{message}"):
            particle_motion(tmp_path / name)
