"""Joint training and the stages around it: every term pulls, the teacher alone teaches, made again the same bytes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity as reference
from torch import Tensor

from audioavatar.config import DistilConfig, GeneratorConfig, JointConfig, RefinementConfig
from audioavatar.distil.procedural_clips import ProceduralPerson, procedural_clip
from audioavatar.distil.teacher import GaussianTeacher
from audioavatar.driven.features import log_mel
from audioavatar.driven.generator import MotionTransformer, fit_generator
from training.audioavatar.joint import DISTORTION, TERMS, JointClip, joint, structural_similarity, train_joint
from training.audioavatar.refine import read_refiner, train_refiner
from training.audioavatar.stage_file import about, read_tensors

FRAMES = 8
SMALL = GeneratorConfig(width=16, layers=1, heads=2, window=FRAMES, overlap=2, steps=20, sampling_steps=2)
SHORT = JointConfig(steps=3, log_every=1, distil=DistilConfig(warm_up=1, critic_steps=1))


@pytest.fixture(scope="module")
def person() -> ProceduralPerson:
    return ProceduralPerson(60)


@pytest.fixture(scope="module")
def clips(person: ProceduralPerson) -> list[JointClip]:
    made = []
    for seed in range(2):
        clip = procedural_clip(seed, FRAMES)
        offsets = person.offsets(clip.swing)
        frames = person.video(offsets)
        made.append(JointClip(person, log_mel(clip.wave), clip.swing, person.tracks(offsets), frames, frames[0]))
    return made


@pytest.fixture
def net(clips: list[JointClip]) -> MotionTransformer:
    return fit_generator([clip.features for clip in clips], [clip.channels for clip in clips], SMALL)


def weights(net: MotionTransformer) -> Tensor:
    return torch.cat([value.flatten() for value in net.parameters()])


def test_every_term_pulls_as_hard_as_its_weight_says(net: MotionTransformer, clips: list[JointClip]) -> None:
    history = train_joint(net, clips, GaussianTeacher(0.2, 0.5), SHORT)
    first = history[0]
    assert len(history) == 3 and not any(value.requires_grad for value in net.parameters())
    for name in ("vsd", "traj", "ssim"):
        assert first[f"pull_{name}"] == pytest.approx(getattr(SHORT, name) * first["pull_l1"], rel=1e-5), name
    assert all(first[f"pull_{name}"] <= getattr(SHORT, name) * first["pull_l1"] * 1.001 for name in DISTORTION)
    assert first["norm_traj"] < 0.1 * first["norm_l1"]  # as they are, terms cannot be compared


def test_distortion_costs_only_beyond_that_of_the_fit(net: MotionTransformer, clips: list[JointClip]) -> None:
    """A price on all of it would pull every mouth shut."""

    def losses(channels: Tensor) -> dict[str, float]:
        clip = replace(clips[0], channels=channels)
        return train_joint(net, [clip], None, replace(SHORT, steps=1, rate=0.0, simple=0.0))[0]

    still, lively = losses(torch.zeros_like(clips[0].channels)), losses(4 * clips[0].channels)
    assert still["arap"] > 0 and lively["arap"] == lively["loc"] == 0


def test_each_term_alone_changes_the_generator(
    net: MotionTransformer, person: ProceduralPerson, clips: list[JointClip]
) -> None:
    nothing = replace(SHORT, steps=1, **dict.fromkeys(TERMS, 0.0))
    before = weights(net).clone()
    train_joint(net, clips, None, nothing)
    assert torch.equal(weights(net), before)
    still = [replace(clip, channels=torch.zeros_like(clip.channels)) for clip in clips]  # all distortion is too much
    for name in ("simple", "vsd", "traj", "l1", "ssim", "arap"):
        own = still if name == "arap" else clips
        train_joint(net, own, GaussianTeacher(), replace(nothing, **{name: 1.0}))
        assert not torch.equal(weights(net), before), name
        before = weights(net).clone()


def test_similarity_is_that_of_scikit_image() -> None:
    first, second = np.random.default_rng(0).random((2, 1, 24, 24, 3)).astype(np.float32)
    ours = float(structural_similarity(torch.from_numpy(first), torch.from_numpy(second)))
    options = {"channel_axis": -1, "data_range": 1.0, "use_sample_covariance": False, "full": True}
    theirs = reference(first[0], second[0], **options)[1][3:-3, 3:-3].mean()
    assert ours == pytest.approx(float(theirs), abs=1e-5)


def test_stages_stay_and_made_again_have_the_same_bytes(
    net: MotionTransformer, person: ProceduralPerson, clips: list[JointClip], tmp_path: Path
) -> None:
    features, channels = [clip.features for clip in clips], [clip.channels for clip in clips]

    def run() -> list[Path]:
        config = RefinementConfig(width=16, layers=1, heads=2, window=FRAMES, steps=2)
        refined = train_refiner(net, features, channels, 4, tmp_path / "refine.safetensors", "clips", SMALL, config)
        joined = tmp_path / "joint.safetensors"
        return [refined, joint(net, clips, GaussianTeacher(), joined, "clips", SHORT, 0, read_refiner(refined))]

    before = weights(net).clone()
    files = run()
    content, written = [file.read_bytes() for file in files], [file.stat().st_mtime_ns for file in files]
    assert torch.equal(weights(net), before)  # the generator it began with stays
    assert [file.stat().st_mtime_ns for file in run()] == written
    for file in files:  # as if killed before
        file.unlink()
    assert [file.read_bytes() for file in run()] == content
    assert set(read_tensors(files[1])) == set(net.state_dict()) and len(about(files[1])["history"]) == 3
