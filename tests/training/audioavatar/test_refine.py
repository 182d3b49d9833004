"""Refinement: with folds no sample is of a generator that has seen the clip; the analytic person takes no harm."""

from pathlib import Path

import pytest
from torch import Tensor

from audioavatar.config import GeneratorConfig, RefinementConfig
from audioavatar.distil.procedural_clips import procedural_clips
from audioavatar.driven.features import log_mel
from audioavatar.driven.generator import fit_generator, sample_motion
from training.audioavatar import refine
from training.audioavatar.refine import error, read_refiner, train_refiner

FRAMES, MOVING = 24, 4
ORDER = [0, 1, 2, 5, 3, 4]  # jaw, rounding, blink and fingers before head and arms
GENERATOR = GeneratorConfig(
    width=48, layers=2, heads=4, window=FRAMES, steps=200, rate=5e-3, noise=0.0, guidance=1.0, sampling_steps=6
)


def spoken(seeds: range) -> tuple[list[Tensor], list[Tensor]]:
    """Audio features and motion of the analytic person, face and hands in front."""
    clips = procedural_clips(seeds, FRAMES)
    return [log_mel(clip.wave) for clip in clips], [clip.swing[:, ORDER] for clip in clips]


def test_no_sample_is_of_a_generator_that_has_seen_the_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features, channels = spoken(range(4))
    tiny = GeneratorConfig(width=8, layers=1, heads=1, window=FRAMES, steps=1, sampling_steps=1)
    small = RefinementConfig(width=8, layers=1, heads=1, window=FRAMES, steps=1, folds=2)
    learnt: list[list[Tensor]] = []
    sampled: list[tuple[int, Tensor]] = []

    def fit(known: list[Tensor], *rest: object) -> object:
        learnt.append(known)
        return fit_generator(known, *rest)  # type: ignore[arg-type]

    def sample(net: object, audio: Tensor, *rest: object) -> Tensor:
        sampled.append((len(learnt) - 1, audio))
        return sample_motion(net, audio, *rest)  # type: ignore[arg-type]

    net = fit_generator(features, channels, tiny)
    monkeypatch.setattr(refine, "fit_generator", fit)
    monkeypatch.setattr(refine, "sample_motion", sample)
    train_refiner(net, features, channels, MOVING, tmp_path / "refiner.safetensors", "clips", tiny, small)
    assert len(learnt) == 2 and len(sampled) == len(features) * refine.SAMPLES
    assert not any(audio is known for fold, audio in sampled for known in learnt[fold])
    assert [file.name for file in tmp_path.iterdir()] == ["refiner.safetensors"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("folds", [1, 2])
def test_on_held_out_audio_it_does_no_harm(tmp_path: Path, folds: int, seed: int) -> None:
    """The aim, 10 % less error of face and hands, is not reached: seed 1 gave 8.0 % from samples of the generator
    itself and 0.3 % from two folds, whose refiner knows its samples by heart (error 0.28 -> 0.007)."""
    features, channels = spoken(range(1000 * seed, 1000 * seed + 24))
    net = fit_generator(features, channels, GENERATOR, seed)
    config = RefinementConfig(width=48, layers=2, window=FRAMES, noise=0.0, folds=folds)
    file = train_refiner(
        net, features, channels, MOVING, tmp_path / "refiner.safetensors", "clips", GENERATOR, config, seed
    )
    audio, truth = spoken(range(1000 * seed + 500, 1000 * seed + 506))
    samples = [sample_motion(net, each, GENERATOR, seed) for each in audio]
    before, after = (error(refiner, samples, audio, truth, MOVING) for refiner in (None, read_refiner(file)))
    swapped = error(read_refiner(file), samples, audio[1:] + audio[:1], truth, MOVING)
    print(f"folds {folds}, seed {seed}: {before:.4f} -> {after:.4f}; refined by other audio {swapped:.4f}")
    assert after < 1.05 * before and after < swapped
