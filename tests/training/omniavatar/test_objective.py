import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from omniavatar.model.flow import loss_weight
from training.config import ObjectiveConfig
from training.data.windows import MicroBatch, Sample
from training.omniavatar.objective import Batch, Draw, draw, make_batch, sample_losses

DRAWS = 12_000


def make_sample(frames: int = 6, seed: int = 0) -> Sample:
    generator = torch.Generator().manual_seed(seed)
    return Sample(
        clip_id=f"clip{seed}",
        latents=torch.randn(16, frames, 2, 2, generator=generator),
        references=torch.randn(4, 16, 2, 2, generator=generator),
        text=torch.randn(3, 5, generator=generator),
        audio=torch.randn(4 * frames - 3, 8, generator=generator),
    )


def draws_of(config: ObjectiveConfig, count: int = DRAWS, frames: int = 6) -> list[Draw]:
    sample = make_sample(frames)
    return [draw(config, 7, position, sample) for position in range(count)]


@pytest.fixture(scope="module")
def drawn_often() -> list[Draw]:
    """Many draws of the default configuration: the paper's."""
    return draws_of(ObjectiveConfig())


def of_rate(rate: float, count: int = DRAWS) -> Any:
    """A share out of `count` draws at `rate`, within four standard deviations of the binomial."""
    return pytest.approx(rate, abs=4 * math.sqrt(rate * (1 - rate) / count))


def share(flags: Iterable[bool]) -> float:
    flags = list(flags)
    return sum(flags) / len(flags)


def test_dropouts_come_at_their_rates_and_independently(drawn_often: list[Draw]) -> None:
    assert share(d.drop_audio for d in drawn_often) == of_rate(0.1)
    assert share(d.drop_text for d in drawn_often) == of_rate(0.1)
    assert share(d.drop_audio and d.drop_text for d in drawn_often) == of_rate(0.01)
    silent = [d for d in drawn_often if d.drop_audio]
    assert share(d.drop_text for d in silent) == of_rate(0.1, len(silent))
    assert share(d.prefix == 1 for d in silent) == of_rate(0.25, len(silent))
    changed = draws_of(ObjectiveConfig(audio_dropout=0.3, text_dropout=0.0), 2000)
    assert share(d.drop_audio for d in changed) == of_rate(0.3, 2000)
    assert not any(d.drop_text for d in changed)


def test_prefixes_are_uniform_and_leave_something_to_learn(drawn_often: list[Draw]) -> None:
    counts = Counter(d.prefix for d in drawn_often)
    assert sorted(counts) == [1, 2, 3, 4]
    assert all(count / DRAWS == of_rate(0.25) for count in counts.values())
    assert {d.prefix for d in draws_of(ObjectiveConfig(), 100, frames=3)} == {1, 2}


def test_references_are_any_frame_or_the_first_one(drawn_often: list[Draw]) -> None:
    counts = Counter(d.reference for d in drawn_often)
    assert all(counts[k] / DRAWS == of_rate(0.25) for k in range(4))
    mixed = Counter(d.reference for d in draws_of(ObjectiveConfig(first_reference=0.5), 2000))
    assert mixed[0] / 2000 == of_rate(0.5 + 0.5 / 4, 2000)
    assert {d.reference for d in draws_of(ObjectiveConfig(first_reference=1.0), 100)} == {0}


def test_the_zero_first_audio_frame_belongs_to_a_prefix_of_one(drawn_often: list[Draw]) -> None:
    assert not any(d.zero_first_audio for d in drawn_often if d.prefix > 1)
    short = [d.zero_first_audio for d in drawn_often if d.prefix == 1]
    assert share(short) == of_rate(0.5, len(short))


def test_times_follow_the_published_schedule(drawn_often: list[Draw]) -> None:
    # Spec omniavatar 4.3: median t 833, mean 748, 35.8 % at 900 or more, 16.6 % below 500.
    sigmas = np.array([d.sigma for d in drawn_often])
    assert np.median(sigmas) == pytest.approx(0.833, abs=0.006)
    assert sigmas.mean() == pytest.approx(0.748, abs=4 * sigmas.std() / math.sqrt(DRAWS))
    assert (sigmas >= 0.9).mean() == of_rate(0.358)
    assert (sigmas < 0.5).mean() == of_rate(0.166)
    before = sigmas / (5 - 4 * sigmas)  # without the shift
    assert np.abs(1000 * before - np.round(1000 * before)).max() < 0.05  # one of a thousand steps
    normal = np.array([d.sigma for d in draws_of(ObjectiveConfig(shift=1.0, sigma="logit_normal"), 4000)])
    assert np.median(normal) == pytest.approx(0.5, abs=0.02)
    assert np.log(normal / (1 - normal)).std() == pytest.approx(1.0, abs=0.04)


def test_the_weight_of_a_time_is_the_published_bell() -> None:
    # Spec omniavatar 4.3: of mean 1 over the thousand steps, zero at pure noise.
    weights = loss_weight(torch.tensor([0.5, 0.833, 0.95, 1.0, 0.005], dtype=torch.float64), 5.0)
    assert weights.tolist() == pytest.approx([2.08, 1.03, 0.32, 0.0, 0.03], abs=0.005)


def test_draws_depend_on_the_position_and_one_rate_does_not_change_the_others() -> None:
    sample = make_sample()
    first, again = (draw(ObjectiveConfig(), 7, 11, sample) for _ in range(2))
    assert np.array_equal(first.noise, again.noise)
    changed = draw(ObjectiveConfig(audio_dropout=1.0, first_reference=1.0), 7, 11, sample)
    assert (changed.sigma, changed.prefix, changed.drop_text) == (first.sigma, first.prefix, first.drop_text)
    assert np.array_equal(changed.noise, first.noise)
    for other in (draw(ObjectiveConfig(), 7, 12, sample), draw(ObjectiveConfig(), 8, 11, sample)):
        assert not np.array_equal(first.noise, other.noise)
    assert first.noise.std() == pytest.approx(1, abs=0.1)


def batch_of(draws: list[Draw], plain: bool = False) -> tuple[Batch, list[Sample]]:
    samples = [make_sample(seed=number) for number in range(len(draws))]
    empty = torch.full((1, 5), 9.0)
    return make_batch(MicroBatch(samples, list(range(len(draws)))), draws, empty, 4, plain), samples


def test_a_sample_draws_the_same_whatever_is_beside_it_in_the_batch() -> None:
    samples, config, empty = [make_sample(seed=number) for number in range(3)], ObjectiveConfig(), torch.zeros(1, 5)
    draws = [draw(config, 7, 20 + number, sample) for number, sample in enumerate(samples)]
    together = make_batch(MicroBatch(samples, [20, 21, 22]), draws, empty, 4)
    for number, sample in enumerate(samples):
        alone = make_batch(MicroBatch([sample], [20 + number]), [draw(config, 7, 20 + number, sample)], empty, 4)
        for name, tensor in vars(alone).items():
            assert torch.equal(tensor[0], getattr(together, name)[number]), name


@pytest.fixture
def drawn() -> list[Draw]:
    """Two samples: prefix 1 and 4, both heard and read."""
    noise = np.random.default_rng(0).standard_normal((2, 16, 6, 2, 2)).astype(np.float32)
    one = Draw(0.5, 1, 2, drop_audio=False, drop_text=False, zero_first_audio=False, noise=noise[0])
    return [one, replace(one, sigma=0.9, prefix=4, reference=0, noise=noise[1])]


def test_the_condition_is_the_reference_in_every_frame_and_zero_where_given(drawn: list[Draw]) -> None:
    batch, samples = batch_of(drawn)
    assert batch.condition is not None and batch.condition.shape == (2, 17, 6, 2, 2)
    for t in range(6):
        assert torch.equal(batch.condition[0, :16, t], samples[0].references[2])
        assert torch.equal(batch.condition[1, :16, t], samples[1].references[0])
    assert batch.condition[0, 16, :, 0, 0].tolist() == [0, 1, 1, 1, 1, 1]
    assert batch.condition[1, 16, :, 1, 1].tolist() == [0, 0, 0, 0, 1, 1]


def test_dropped_inputs_are_silence_and_the_empty_caption(drawn: list[Draw]) -> None:
    silent, unread = replace(drawn[0], drop_audio=True), replace(drawn[1], drop_text=True, zero_first_audio=True)
    batch, samples = batch_of([silent, unread])
    assert batch.audio is not None
    assert not batch.audio[0].any()
    assert not batch.audio[1, 0].any()
    assert torch.equal(batch.audio[1, 1:], samples[1].audio[1:])
    assert torch.equal(batch.text[0, :3], samples[0].text)
    assert not batch.text[0, 3:].any()
    assert batch.text[1].tolist() == [[9.0] * 5] + [[0.0] * 5] * 3


def test_plain_text_to_video_has_no_image_audio_or_prefix(drawn: list[Draw]) -> None:
    batch, _ = batch_of(drawn, plain=True)
    assert batch.condition is None and batch.audio is None
    assert batch.prefix.tolist() == [0, 0]


class Seeing:
    """A model that answers with `velocity` and remembers what it was shown."""

    def __init__(self, velocity: Tensor) -> None:
        self.velocity = velocity

    def __call__(self, latents: Tensor, timestep: Tensor, *rest: Tensor | None) -> Tensor:
        self.latents, self.timestep = latents, timestep
        return self.velocity


def test_the_model_sees_a_clean_prefix_with_the_time_of_the_whole_sample(drawn: list[Draw]) -> None:
    batch, samples = batch_of(drawn)
    model = Seeing(torch.zeros_like(batch.clean))
    sample_losses(model, batch, ObjectiveConfig())
    assert torch.equal(model.latents[1, :, :4], samples[1].latents[:, :4])
    noisy = 0.1 * samples[1].latents[:, 4:] + 0.9 * torch.from_numpy(drawn[1].noise)[:, 4:]
    assert torch.allclose(model.latents[1, :, 4:], noisy, atol=1e-6)
    assert torch.allclose(model.timestep, torch.tensor([500.0, 900.0]))


def test_the_loss_is_the_squared_velocity_error_after_the_prefix(drawn: list[Draw]) -> None:
    batch, samples = batch_of(drawn)
    uniform = ObjectiveConfig(weighting="uniform")
    target = batch.noise - batch.clean
    expected = torch.stack([target[0, :, 1:].square().mean(), target[1, :, 4:].square().mean()])
    assert torch.allclose(sample_losses(Seeing(torch.zeros_like(target)), batch, uniform), expected)
    right_after_prefix = target.clone()
    right_after_prefix[0, :, :1] += 100
    right_after_prefix[1, :, :4] += 100
    assert sample_losses(Seeing(right_after_prefix), batch, uniform).abs().max() < 1e-10


def test_the_bell_weighs_the_middle_more_than_the_end(drawn: list[Draw]) -> None:
    batch, _ = batch_of(drawn)
    model = Seeing(torch.zeros_like(batch.clean))
    plain = sample_losses(model, batch, ObjectiveConfig(weighting="uniform"))
    weighted = sample_losses(model, batch, ObjectiveConfig(weighting="bell"))
    assert torch.allclose(weighted / plain, loss_weight(torch.tensor([0.5, 0.9]), 5.0))
    assert (weighted / plain)[0] > 2
