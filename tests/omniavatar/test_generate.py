from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from common.media import read_audio, read_video
from omniavatar import generate
from omniavatar.chunks import plan_chunks
from omniavatar.generate import (
    AvatarModels,
    ClipRequest,
    GenerateConfig,
    LoadConfig,
    ModelPaths,
    chunk_noise,
    generate_clips,
    generate_video,
    load_models,
    write_avatar_video,
)
from omniavatar.transformer import AvatarTransformer

CONFIG = GenerateConfig(
    steps=2, shift=2.0, text_guidance=1.0, audio_guidance=2.0, overlap=5, chunk_frames=13, height=32, width=32, seed=7
)


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def wave(frames: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(frames * 640)) * 0.1).astype(np.float32)


def make(models: AvatarModels, frames: float = 30.5, cache: Path | None = None, **changes: object) -> np.ndarray:
    return generate_video(models, image(1), wave(frames), "a man speaks", replace(CONFIG, **changes), cache)


@pytest.mark.parametrize(("frames", "length"), [(30.5, 31), (12, 12), (12.1, 13), (3, 3)])
def test_one_picture_per_640_samples(tiny_models: AvatarModels, frames: float, length: int) -> None:
    video = make(tiny_models, frames)
    assert video.shape == (length, 32, 32, 3) and video.dtype == np.uint8
    assert video.std() > 1


def test_the_same_inputs_give_the_same_frames(tiny_models: AvatarModels) -> None:
    first = make(tiny_models)
    assert np.array_equal(make(tiny_models), first)
    assert not np.array_equal(make(tiny_models, seed=8), first)


def test_a_long_video_is_the_released_codes_loop(tiny_models: AvatarModels) -> None:
    """The chunks put together by hand: pixels decoded, their last five encoded again, audio windows as published."""
    request = ClipRequest(image(1), wave(30.5), "a man speaks")
    chunks = plan_chunks(31, 13, 5)
    assert len(chunks) == 4
    states = tiny_models.audio_encoder.encode(request.wave, frames=12 + 3 * 8)
    scene = generate._prepare(tiny_models, [request], CONFIG, 36)
    windows = [torch.cat([torch.zeros(1, 64), states[:12]])]
    windows += [states[start - 5 : start + 8] for start in (12, 20, 28)]
    prefix, made = scene.reference, []
    for number, window in enumerate(windows):
        frames_given = 5 if number else 1
        condition = generate.build_condition(scene.reference, 4, 2 if number else 1)
        with torch.no_grad():
            latents = generate.denoise(
                tiny_models.transformer,
                chunk_noise(7, number, (16, 4, 4, 4))[None],
                scene.text,
                scene.negative_text,
                condition,
                window[None],
                prefix,
                2,
                2.0,
                generate.Guidance(1.0, 2.0),
            )
            pixels = tiny_models.vae.decode(latents)
            prefix = tiny_models.vae.encode(pixels[:, :, -5:])
        made.append(generate.to_frames(pixels[0, :, frames_given:]))
    assert np.array_equal(np.concatenate(made)[:31], make(tiny_models))


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def test_a_killed_video_goes_on_where_it_was(
    tiny_models: AvatarModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make(tiny_models)
    whole, calls = generate._make_chunk, []

    def counted(*args: object) -> torch.Tensor:
        calls.append(args[2].index)
        if len(calls) == 3:
            raise Killed
        return whole(*args)

    monkeypatch.setattr(generate, "_make_chunk", counted)
    with pytest.raises(Killed):
        make(tiny_models, cache=tmp_path)
    assert np.array_equal(make(tiny_models, cache=tmp_path), expected)
    assert calls == [0, 1, 2, 2, 3]
    make(tiny_models, cache=tmp_path, seed=9)  # other settings do not meet these chunks
    assert calls[5:] == [0, 1, 2, 3]


def test_noise_belongs_to_its_chunk_and_seed() -> None:
    shape = (16, 2, 4, 4)
    assert torch.equal(chunk_noise(42, 3, shape), chunk_noise(42, 3, shape))
    assert not torch.equal(chunk_noise(42, 3, shape), chunk_noise(42, 4, shape))
    assert not torch.equal(chunk_noise(42, 3, shape), chunk_noise(43, 3, shape))


def test_clips_do_not_depend_on_their_batch(tiny_models: AvatarModels) -> None:
    prompts = ("a man speaks", "a woman with red hair", "")
    requests = [ClipRequest(image(n), wave(10, n), prompt, seed=n) for n, prompt in enumerate(prompts)]
    together = generate_clips(tiny_models, requests, CONFIG)
    for request, video in zip(requests, together, strict=True):
        (alone,) = generate_clips(tiny_models, [request], CONFIG)
        assert video.shape == (10, 32, 32, 3)
        # Equal to 1e-5 before rounding to whole values (test_sampler): a value on the edge may fall either way.
        difference = np.abs(video.astype(int) - alone)
        assert difference.max() <= 1 and (difference > 0).mean() < 1e-3


def test_a_clip_is_the_first_chunk_of_a_video(tiny_models: AvatarModels) -> None:
    (clip,) = generate_clips(tiny_models, [(image(1), wave(12), "a man speaks")], CONFIG)
    assert np.array_equal(clip, make(tiny_models, 12))


def test_sound_and_text_matter(tiny_models: AvatarModels) -> None:
    one = ClipRequest(image(1), wave(8), "a man speaks")
    others = [one._replace(wave=wave(8, 5)), one._replace(prompt="a woman smiles"), one._replace(image=image(2))]
    first, *rest = generate_clips(tiny_models, [one, *others], CONFIG)
    assert all(np.abs(first.astype(int) - other).mean() > 0.1 for other in rest)


def test_the_plain_base_makes_clips_from_text(tiny_models: AvatarModels, base: AvatarTransformer) -> None:
    plain = replace(tiny_models, transformer=base)
    first, second = (generate_clips(plain, [(image(n), wave(8, n), "a man")], CONFIG)[0] for n in (1, 2))
    assert first.shape == (8, 32, 32, 3) and np.array_equal(first, second)
    with pytest.raises(ValueError, match="plain base"):
        make(plain)


def test_bad_requests_are_refused(tiny_models: AvatarModels) -> None:
    with pytest.raises(ValueError, match="multiples of 16"):
        make(tiny_models, height=40)
    with pytest.raises(ValueError, match="not empty"):
        generate_video(tiny_models, image(1), np.zeros(0, np.float32), "", CONFIG)
    with pytest.raises(ValueError, match="lengths"):
        generate_clips(tiny_models, [(image(1), wave(8), ""), (image(1), wave(9), "")], CONFIG)


def test_the_file_starts_picture_and_sound_together(tmp_path: Path) -> None:
    frames = np.zeros((25, 32, 32, 3), np.uint8)
    frames[10:12] = 255
    tone = np.zeros(25 * 640 - 300, np.float32)
    tone[10 * 640 : 12 * 640] = np.sin(np.arange(1280) * 0.3) * 0.8
    write_avatar_video(tmp_path / "out.mp4", frames, tone)
    video, audio = read_video(tmp_path / "out.mp4"), read_audio(tmp_path / "out.mp4")
    assert len(video) == 25
    lit = np.flatnonzero(video.mean((1, 2, 3)) > 128)
    loud = [number for number in range(25) if np.abs(audio[number * 640 : (number + 1) * 640]).mean() > 0.2]
    assert lit.tolist() == loud == [10, 11]


def test_models_load_from_their_folders(
    tiny_models: AvatarModels, other_base: AvatarTransformer, tokenizer_folder: Path, tmp_path: Path
) -> None:
    from omniavatar.checkpoints import AdapterConfig, save_adapter, save_base

    save_base(other_base, tmp_path / "transformer")
    save_adapter(tiny_models.transformer, tmp_path / "adapter", AdapterConfig("full"))
    tiny_models.vae.model.save_pretrained(tmp_path / "vae")
    tiny_models.text_encoder.model.save_pretrained(tmp_path / "text")
    tiny_models.audio_encoder.model.save_pretrained(tmp_path / "audio")
    folders = [tmp_path / name for name in ("transformer", "vae", "text")]
    paths = ModelPaths(*folders, tokenizer_folder, tmp_path / "audio", tmp_path / "adapter")
    loaded = load_models(paths)
    exact = make(loaded, 8)
    assert np.array_equal(exact, make(tiny_models, 8))
    half = load_models(paths, LoadConfig(dtype="bf16"))
    assert np.abs(make(half, 8).astype(int) - exact).mean() < 5
    assert len({loaded.identity, half.identity, load_models(replace(paths, adapter=None)).identity}) == 3


def test_where_the_networks_run() -> None:
    device, dtype = LoadConfig().resolved()
    assert (device.type, dtype) == (("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32))
    assert LoadConfig("cpu", "bf16").resolved() == (torch.device("cpu"), torch.bfloat16)
    with pytest.raises(ValueError, match="cuda:99"):
        LoadConfig("cuda:99").resolved()
