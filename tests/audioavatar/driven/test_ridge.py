"""Ridge and convolutions on a linear world: the right audio explains motion, shuffled audio not; delays are found."""

import pytest
import torch
from torch import Tensor

from audioavatar.config import TcnConfig
from audioavatar.driven.features import log_mel, stacked
from audioavatar.driven.ridge import fit_ridge
from audioavatar.driven.tcn import fit_tcn
from miniature.world.clips import draw_clip

CONFIG = TcnConfig(width=16, steps=100, rate=1.5e-2)


def world(clips: int, seed: int, frames: int = 40) -> tuple[list[Tensor], list[Tensor]]:
    """Audio features (T, 5), and motion (T, 3) that is a smooth function of the present and the last frame."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(50))
    audio = torch.randn(clips, frames, 5, generator=generator)
    motion = audio @ mixing[0] + 0.5 * audio.roll(1, dims=1) @ mixing[1]
    return list(audio), list(motion)


def unexplained(predicted: Tensor, motion: Tensor) -> float:
    inner = slice(4, -4)
    return float((predicted[inner] - motion[inner]).square().mean() / motion[inner].var())


def test_ridge_explains_a_linear_world_and_says_so() -> None:
    ridge = fit_ridge(*world(10, 0))
    audio, motion = world(4, 9)
    assert ridge.r2 > 0.9
    assert max(unexplained(ridge(a), m) for a, m in zip(audio, motion, strict=True)) < 0.05
    assert min(unexplained(ridge(a), m) for a, m in zip(audio, motion[1:] + motion[:1], strict=True)) > 1


def test_ridge_on_unrelated_audio_explains_nothing_and_is_strong() -> None:
    audio, motion = world(8, 0)
    ridge = fit_ridge(audio, motion[1:] + motion[:1])
    assert ridge.r2 < 0.05 and ridge.strength >= 1000 and ridge.gain == pytest.approx(1.3)


def test_convolutions_explain_it_and_fail_with_other_audio() -> None:
    net = fit_tcn(*world(10, 0), CONFIG)
    audio, motion = world(4, 9)
    assert sum(unexplained(net(a), m) for a, m in zip(audio, motion, strict=True)) / 4 < 0.2
    assert min(unexplained(net(a), m) for a, m in zip(audio, motion[1:] + motion[:1], strict=True)) > 1


def test_a_delay_of_three_frames_is_found() -> None:
    ridge = fit_ridge(*world(10, 0))
    (audio,), (motion,) = world(1, 9, frames=80)
    late = ridge(audio.roll(3, dims=0))
    error = {shift: unexplained(late.roll(-shift, dims=0), motion) for shift in range(-5, 6)}
    assert min(error, key=error.__getitem__) == 3


def test_stacked_features_repeat_the_ends() -> None:
    features = torch.arange(4.0)[:, None]
    assert stacked(features, 1).tolist() == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_log_mel_is_loud_where_the_voice_is() -> None:
    clip = draw_clip(1_000_101, 1.0)
    features = log_mel(clip.audio)
    assert features.shape == (25, 52) and bool(features.isfinite().all())
    silent = log_mel(clip.audio * 0)
    assert float(features.mean()) > float(silent.mean()) + 1
    # A frame sees its own 40 ms and a quarter more: sound after it leaves it alone.
    cut = clip.audio.copy()
    cut[640 * 12 :] = 0
    assert torch.equal(log_mel(cut)[:11], features[:11])
