"""Motion models as files: the same motion after saving, whatever drives them; other files are refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.config import Driver, EmbeddingConfig, GeneratorConfig, RefinementConfig, TcnConfig
from audioavatar.driven.generator import MotionTransformer
from audioavatar.driven.model import HEAD, fit_motion_model, load_motion_model, with_sampling
from audioavatar.driven.refinement import Refiner
from audioavatar.driven.space import fit_space
from audioavatar.fit.fields import mouth_fields
from audioavatar.motion import Motion, lip_gap
from common.errors import InputError, MissingFileError

QUICK = GeneratorConfig(width=16, layers=1, heads=2, window=16, overlap=4, steps=5, sampling_steps=3)


def spoken(avatar: Avatar, seed: int, frames: int = 24) -> tuple[Avatar, Motion, torch.Tensor]:
    """Motion of a mouth that opens as the first of three features says, of a head that nods with the second."""
    features = torch.rand(frames, 3, generator=torch.Generator().manual_seed(seed))
    fields = torch.stack([2 * features[:, 0], 2 * features[:, 0], features[:, 2], 0 * features[:, 0]], dim=1)
    shift = torch.einsum("tf,fnd->tnd", fields, mouth_fields(avatar))
    head = torch.stack([0 * features[:, 1], features[:, 1], 0 * features[:, 1]], dim=1)
    gesture = torch.zeros(frames, len(GESTURES))
    gesture[:, 3] = features[:, 1]
    return avatar, Motion(head, shift, torch.zeros_like(shift), gesture), features


@pytest.mark.parametrize("driver", ["ridge", "tcn", "generator"])
def test_saved_and_read_it_moves_the_same(avatar: Avatar, tmp_path: Path, driver: Driver) -> None:
    clips = [spoken(avatar, seed) for seed in range(4)]
    model = fit_motion_model(clips, "logmel", driver, tcn=TcnConfig(width=8, steps=5), generator=QUICK)
    model.save(tmp_path / "motion.safetensors")
    again = load_motion_model(tmp_path / "motion.safetensors")
    _, _, features = spoken(avatar, 9, frames=30)
    first, second = model.drive(avatar, features), again.drive(avatar, features)
    assert (
        again.features == "logmel" and torch.equal(first.shift, second.shift) and torch.equal(first.head, second.head)
    )
    again.save(tmp_path / "again.safetensors")
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "motion.safetensors").read_bytes()
    generated = isinstance(model.net, MotionTransformer)
    other = model.drive(avatar, features, seed=1)
    assert torch.equal(other.shift, first.shift) != generated  # only the generator has another way to say it
    assert bool(first.head.any()) == generated


def test_a_learnt_space_and_a_refiner_travel_in_the_file(avatar: Avatar, tmp_path: Path) -> None:
    clips = [spoken(avatar, seed) for seed in range(2)]
    sizes = EmbeddingConfig(embedding=2, width=8, audio_width=8, steps=2, clips=2, particles=16)
    space, _ = fit_space(clips, sizes)
    model = fit_motion_model(clips, "logmel", generator=QUICK, space=space)
    settings = RefinementConfig(width=8, layers=1, heads=1, window=16)
    refiner = Refiner(len(space) + len(GESTURES), HEAD, 3, settings)
    nn.init.normal_(refiner.exit.weight)  # else it changes nothing
    replace(model, refiner=refiner.eval()).save(tmp_path / "motion.safetensors")
    again, features = load_motion_model(tmp_path / "motion.safetensors"), clips[0][2]
    refined, raw = (each.drive(avatar, features) for each in (again, model))
    assert not torch.equal(refined.shift, raw.shift) and torch.equal(refined.head, raw.head)
    assert torch.equal(replace(model, refiner=refiner).drive(avatar, features).shift, refined.shift)


def test_ridge_drives_the_lips_of_the_avatar(avatar: Avatar) -> None:
    model = fit_motion_model([spoken(avatar, seed) for seed in range(6)], "logmel", "ridge")
    _, motion, features = spoken(avatar, 9)
    gaps = torch.stack([lip_gap(avatar, motion), lip_gap(avatar, model.drive(avatar, features))])
    assert float(torch.corrcoef(gaps)[0, 1]) > 0.95


def test_sampling_can_be_changed_and_other_files_are_refused(avatar: Avatar, tmp_path: Path) -> None:
    model = fit_motion_model([spoken(avatar, 0)], "logmel", "ridge")
    assert with_sampling(model, guidance=3.0).sampling.guidance == 3.0
    with pytest.raises(InputError, match="overlap is 12 of windows of 8 frames"):
        with_sampling(model, window=8)  # windows that overlap whole would never end
    with pytest.raises(MissingFileError, match="no motion model"):
        load_motion_model(tmp_path / "nowhere")
    path = avatar.save(tmp_path)
    with pytest.raises(InputError, match="expected 'audioavatar-motion-model-2'"):
        load_motion_model(path)
    path.write_bytes(b"not a tensor file")
    with pytest.raises(InputError, match="is not a motion model"):
        load_motion_model(path)
