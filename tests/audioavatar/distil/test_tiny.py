"""TinyVideoTeacher, trained here on clips of the analytic person: it draws what it hears, and its score teaches."""

import numpy as np
import pytest
import torch

from audioavatar.config import DistilConfig
from audioavatar.distil.procedural_clips import ProceduralPerson, procedural_clip, procedural_clips, to_teacher
from audioavatar.distil.score import Distillation
from audioavatar.distil.tiny import TinyTeacherConfig, TinyVideoTeacher

IMAGE = np.zeros((64, 64, 3), np.uint8)
SMALL = TinyTeacherConfig(latents=8, width=32, layers=1, steps=150, rate=8e-3)


@pytest.fixture(scope="module")
def person() -> ProceduralPerson:
    return ProceduralPerson(200)


@pytest.fixture(scope="module")
def teacher(person: ProceduralPerson) -> TinyVideoTeacher:
    return TinyVideoTeacher.train(person, procedural_clips(range(16), 16), SMALL)


def test_it_draws_what_it_hears(teacher: TinyVideoTeacher, person: ProceduralPerson) -> None:
    clip, other = procedural_clip(100, 16), procedural_clip(101, 16)
    truth = teacher.encode(to_teacher(person.video(person.offsets(clip.swing))))
    right, wrong = (
        teacher.encode(to_teacher(torch.from_numpy(teacher.generate(IMAGE, each.wave, "", 0)).float() / 255))
        for each in (clip, other)
    )
    assert float((right - truth).square().mean()) < 0.6 * float(truth.square().mean())
    assert float((wrong - truth).square().mean()) > float(truth.square().mean())


def test_the_gradient_reaches_the_particles_and_none_the_teacher(
    teacher: TinyVideoTeacher, person: ProceduralPerson
) -> None:
    clip = procedural_clip(100, 8)
    own = {name: value.clone() for name, value in teacher.net.named_parameters()}
    for method in ("sds", "vsd"):
        offsets = person.offsets(clip.swing).requires_grad_()
        distillation = Distillation(teacher, DistilConfig(method, rank=2))  # type: ignore[arg-type]
        distillation.loss(to_teacher(person.video(offsets)), teacher.condition(IMAGE, clip.wave, "")).backward()
        assert offsets.grad is not None and float(offsets.grad.abs().sum()) > 0
        names = [name for name, value in teacher.net.named_parameters() if ".lora_" not in name]
        assert all(teacher.net.get_parameter(name).grad is None for name in names)
        for name in names:
            assert torch.equal(teacher.net.get_parameter(name), own[name.replace(".base_layer", "")])
