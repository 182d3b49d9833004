"""Every teacher keeps the interface that distillation asks for; the first system does so at the size of 1.3B too."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from audioavatar.config import DistilConfig, TeacherConfig
from audioavatar.distil.procedural_clips import ProceduralPerson, procedural_clips, to_teacher
from audioavatar.distil.score import Distillation
from audioavatar.distil.teacher import GaussianTeacher, VideoTeacher
from audioavatar.distil.tiny import TinyTeacherConfig, TinyVideoTeacher
from common.errors import InputError
from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from omniavatar.config import GenerateConfig
from omniavatar.encoders.vae import WanVAE
from omniavatar.model.transformer import new_base, to_avatar
from omniavatar.models import AvatarModels, ModelPaths
from omniavatar.pipeline import OmniAvatarPipeline
from training.audioavatar.omniavatar_teacher import OmniAvatarCondition, OmniAvatarTeacher


def tiny() -> VideoTeacher:
    config = TinyTeacherConfig(latents=4, width=16, steps=3, sampling_steps=2)
    return TinyVideoTeacher.train(ProceduralPerson(100), procedural_clips(range(2), 9), config)


def omniavatar() -> VideoTeacher:
    return OmniAvatarTeacher.from_pretrained(model_paths(), TeacherConfig(steps=1, chunk_frames=17))


@pytest.mark.parametrize("build", [GaussianTeacher, tiny, omniavatar])
def test_a_teacher_keeps_the_interface(build: Callable[[], Any]) -> None:
    teacher: Any = build()
    clip = draw_clip(1_000_000, 0.36)
    image, audio = clip.frames[0], clip.audio[: 8 * 640]
    frames = teacher.generate(image, audio, clip.caption, seed=1)
    assert frames.shape == (8, 64, 64, 3) and frames.dtype == np.uint8
    video = to_teacher(torch.cat([torch.from_numpy(image)[None], torch.from_numpy(frames)]).float() / 255)
    condition = teacher.condition(image, audio, clip.caption)
    lead, part = teacher.part(condition, 4, 8, video)
    rendered = video[:, :, 5 - lead :].clone().requires_grad_()
    latents = teacher.encode(rendered)
    assert teacher.decode(latents).shape == rendered.shape
    taus = (0.2, 0.8)
    for tau in taus:
        alpha, sigma = teacher.schedule(tau)
        assert 0 < alpha < 1 and sigma == pytest.approx(tau)
        output = teacher.predict(latents, tau, part)
        assert output.shape == latents.shape and not output.requires_grad
    before = teacher.predict(latents, 0.5, part)
    loss = Distillation(teacher, DistilConfig("vsd", rank=2)).loss(rendered, part)
    loss.backward()
    # The critic has taken a step; the teacher says what it said, and the clip got a gradient.
    assert torch.equal(teacher.predict(latents, 0.5, part), before)
    assert rendered.grad is not None and float(rendered.grad[:, :, -4:].abs().sum()) > 0
    assert teacher.settings()["teacher"] in ("gaussian", "tiny", "omniavatar")


def test_what_is_given_gets_no_gradient_and_parts_are_whole_latents() -> None:
    teacher: Any = omniavatar()
    clip = draw_clip(1_000_000, 0.36)
    video = to_teacher(torch.from_numpy(clip.frames[:9]).float() / 255)
    condition = teacher.condition(clip.frames[0], clip.audio[: 8 * 640], clip.caption)
    lead, part = teacher.part(condition, 4, 8, video)
    assert lead == 5 and part.prefix.shape[2] == 2
    z = teacher.encode(video[:, :, 5 - lead :])
    assert torch.allclose(z[:, :, :2], part.prefix, atol=1e-5)  # its VAE is causal
    eps = torch.randn_like(z)
    noisy = 0.4 * z + 0.6 * eps
    estimate = noisy + 0.4 * teacher.predict(noisy, 0.6, part)
    assert torch.allclose(estimate[:, :, :2], eps[:, :, :2], atol=1e-4)
    with pytest.raises(InputError, match="expected multiples of 4"):
        teacher.part(condition, 3, 8, video)


@pytest.mark.parametrize("blocks", [4, pytest.param(30, marks=pytest.mark.soak)])
def test_at_the_size_of_1_3b_it_computes_the_same_shapes(blocks: int) -> None:
    sizes = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": blocks}
    with torch.device("meta"):
        transformer = to_avatar(new_base({**sizes, "in_channels": 16, "out_channels": 16}), 10752)
        vae = WanVAE(AutoencoderKLWan())
    vae.requires_grad_(False)
    models = AvatarModels(transformer.requires_grad_(False), vae, None, None)  # type: ignore[arg-type]
    teacher = OmniAvatarTeacher(OmniAvatarPipeline(models, ModelPaths(*[Path()] * 5), GenerateConfig()))

    def empty(*shape: int) -> Tensor:
        return torch.zeros(shape, device="meta")

    text, reference = empty(1, 512, 4096), empty(1, 16, 1, 32, 32)
    condition = OmniAvatarCondition(text, text, reference, empty(1, 9, 10752), reference)
    video = empty(1, 3, 9, 256, 256).requires_grad_()
    latents = teacher.encode(video)
    assert latents.shape == (1, 16, 3, 32, 32) and teacher.decode(latents).shape == video.shape
    assert teacher.predict(latents, 0.5, condition).shape == latents.shape
    lead, part = teacher.part(condition, 4, 8, video)
    assert lead == 5 and teacher.encode(video[:, :, :9]).shape[2] == part.prefix.shape[2] + 1
    critic = teacher.lora(8)
    assert sum(p.numel() for p in critic.parameters()) == blocks * 8 * (8 * 2 * 1536 + 2 * (1536 + 8960))
    critic.predict(latents.detach(), 0.5, replace(condition)).sum().backward()
    assert all(p.grad is not None for p in critic.parameters())
    assert all(p.grad is None for n, p in transformer.named_parameters() if ".lora_" not in n)
