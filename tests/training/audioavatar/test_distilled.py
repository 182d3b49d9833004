"""Proof that score distillation teaches: a disturbed generator is mended by the teacher's score alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from audioavatar.config import DistilConfig, GeneratorConfig, JointConfig
from audioavatar.distil.procedural_clips import ProceduralClip, ProceduralPerson, procedural_clips
from audioavatar.distil.tiny import TinyTeacherConfig, TinyVideoTeacher
from audioavatar.driven.features import log_mel
from audioavatar.driven.generator import MotionTransformer, fit_generator, sample_motion
from training.audioavatar.joint import TERMS, JointClip, train_joint

FRAMES = 24
GENERATOR = GeneratorConfig(
    width=48, layers=2, heads=4, window=FRAMES, steps=200, rate=5e-3, noise=0.0, guidance=1.0, sampling_steps=6
)
ALONE = replace(JointConfig(steps=120, rate=3e-4, own_samples=True), **{**dict.fromkeys(TERMS, 0.0), "vsd": 1.0})


def track_error(person: ProceduralPerson, net: MotionTransformer, clips: list[ProceduralClip]) -> float:
    """Mean distance of particles in the picture from where they should be, in that of a person at rest."""
    error = rest = 0.0
    for clip in clips:
        truth = person.tracks(person.offsets(clip.swing))
        made = person.tracks(person.offsets(sample_motion(net, log_mel(clip.wave), GENERATOR)))
        error += float((made - truth).norm(dim=-1).mean())
        rest += float((person.tracks(person.offsets(torch.full_like(clip.swing, 0.5))) - truth).norm(dim=-1).mean())
    return error / rest


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("method", ["vsd", "sds"])
def test_a_disturbed_generator_is_mended_by_the_teacher_alone(method: str, seed: int) -> None:
    person = ProceduralPerson(200)
    clips = procedural_clips(range(1000 * seed, 1000 * seed + 24), FRAMES)
    held = procedural_clips(range(1000 * seed + 500, 1000 * seed + 506), FRAMES)
    teacher = TinyVideoTeacher.train(person, clips, TinyTeacherConfig(width=48, steps=300), seed)
    net = fit_generator([log_mel(clip.wave) for clip in clips], [clip.swing for clip in clips], GENERATOR, seed)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in net.parameters():
            if weight.ndim > 1:
                weight.add_(0.5 * weight.std() * torch.randn(weight.shape, generator=random))
    before = track_error(person, net, held)
    nothing = torch.zeros(FRAMES, 64, 64, 3)  # neither fits nor pictures are looked at
    blind = [
        JointClip(
            person,
            log_mel(clip.wave), torch.zeros(FRAMES, 6), torch.zeros(FRAMES, len(person.particles), 2), nothing,
            nothing[0], teacher.condition(np.zeros((64, 64, 3), np.uint8), clip.wave, ""),
        )
        for clip in clips
    ]  # fmt: skip
    config = replace(ALONE, distil=DistilConfig(method))  # type: ignore[arg-type]
    train_joint(net, blind, teacher, config, seed)
    after = track_error(person, net, held)
    print(f"{method}, seed {seed}: 2D error {before:.3f} -> {after:.3f} of rest")
    assert after < 0.85 * before, f"{method}, seed {seed}: {before:.3f} -> {after:.3f}"
