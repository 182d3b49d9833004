from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omniavatar.config import GenerateConfig, preset
from omniavatar.generate import chunk_starts, draw_portrait, generate_clips, generate_video, stream_video
from omniavatar.model.transformer import AvatarTransformer, build_condition
from omniavatar.models import AvatarModels
from omniavatar.video.chunks import ClipRequest, plan_chunks
from omniavatar.video.images import to_frames
from omniavatar.video.joins import correct_colours, fade
from omniavatar.video.sampler import Guidance, denoise
from omniavatar.video.scene import chunk_noise, prepare, sample_chunk

CONFIG = GenerateConfig(
    steps=2, shift=2.0, text_guidance=1.0, audio_guidance=2.0, overlap=5, blend=4, chunk_frames=13, height=32, width=32,
    seed=7,
)  # fmt: skip
PLAIN = {"blend": 0, "colour_match": "none"}


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3)).astype(np.uint8)


def wave(frames: float, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(int(frames * 640)) * 0.1).astype(np.float32)


def make(models: AvatarModels, frames: float = 30.5, cache: Path | None = None, **changes: object) -> np.ndarray:
    return generate_video(models, image(1), wave(frames), "a man speaks", replace(CONFIG, **changes), cache)


@pytest.mark.parametrize(("frames", "length"), [(30.5, 31), (12, 12), (12.1, 13), (3, 3)])
def test_one_frame_per_640_samples(tiny_models: AvatarModels, frames: float, length: int) -> None:
    video = make(tiny_models, frames)
    assert video.shape == (length, 32, 32, 3) and video.dtype == np.uint8
    assert video.std() > 1


def test_the_same_inputs_give_the_same_frames(tiny_models: AvatarModels) -> None:
    first = make(tiny_models)
    assert np.array_equal(make(tiny_models), first)
    assert not np.array_equal(make(tiny_models, seed=8), first)


def by_hand(models: AvatarModels, overlap_kind: str, again: int = 0, cut: int = 0) -> list[np.ndarray]:
    """The chunks of `make` put together from its parts: frames of each with those it was given in front. The last
    `again` frames of each are made by the next as well, the last `cut` latent frames of the last not at all."""
    request = ClipRequest(image(1), wave(30.5), "a man speaks")
    starts = range(12 - again, 31 - again, 8 - again)
    states = models.audio_encoder.encode(request.wave, frames=starts[-1] + 8)
    scene = prepare(models, [request], CONFIG, len(states))
    windows = [torch.cat([torch.zeros(1, 64), states[:12]])]
    windows += [states[start - 5 : start + 8] for start in starts]
    prefix, before, made = scene.reference, scene.reference[:, :, :0], []
    for number, window in enumerate(windows):
        condition = build_condition(scene.reference, 4, 2 if number else 1)
        noise = chunk_noise(7, number, (16, 4, 4, 4))[None]
        if number and again:
            noise[:, :, 2 : 2 + again // 4] = chunk_noise(7, number - 1, (16, 4, 4, 4))[:, -again // 4 :]
        if number == len(windows) - 1:
            noise, condition, window = noise[:, :, : 4 - cut], condition[:, :, : 4 - cut], window[: 13 - 4 * cut]
        given = (scene.text, scene.negative_text, condition, window[None], prefix)
        with torch.no_grad():
            latents = denoise(models.transformer, noise, *given, 2, 2.0, Guidance(1.0, 2.0))
            if overlap_kind == "pixel":
                pixels = models.vae.decode(latents)
                prefix = models.vae.encode(pixels[:, :, 8 - again : 13 - again])
            else:
                stream = torch.cat([before, latents[:, :, 2 if number else 0 :]], dim=2)
                pixels, known = models.vae.decode(stream), stream[:, :, : stream.shape[2] - again // 4]
                prefix, before = known[:, :, -2:], known[:, :, -6:]
        made.append(to_frames(pixels[0]))
    return made


@pytest.mark.parametrize("kind", ["pixel", "latent"])
def test_a_long_video_is_the_published_loop(tiny_models: AvatarModels, kind: str) -> None:
    """The released code's loop (pixels encoded again) and the paper's (latents carried), audio windows as published."""
    assert len(plan_chunks(31, 13, 5)) == 4
    first, *later = by_hand(tiny_models, kind)
    expected = np.concatenate([first[1:], *(frames[-8:] for frames in later)])[:31]
    assert np.array_equal(make(tiny_models, overlap_kind=kind, full_last_chunk=True, **PLAIN), expected)
    last = by_hand(tiny_models, kind, cut=1)[-1]
    expected = np.concatenate([expected[:28], last[-4:]])[:31]
    assert np.array_equal(make(tiny_models, overlap_kind=kind, **PLAIN), expected)


@pytest.mark.parametrize("kind", ["pixel", "latent"])
def test_blended_chunks_turn_into_each_other_where_both_were_made(tiny_models: AvatarModels, kind: str) -> None:
    first, *later = by_hand(tiny_models, kind, again=4)  # 31 frames need all of the last chunk but one frame
    assert len(later) == len(plan_chunks(31, 13, 5, 4)) - 1 == 5
    joined = first[1:]
    for frames in later:
        joined = np.concatenate([joined[:-4], fade(joined[-4:], frames[-8:-4]), frames[-4:]])
    assert np.array_equal(make(tiny_models, overlap_kind=kind, blend=4, colour_match="none"), joined[:31])


def test_colours_are_held_from_the_first_chunk_on(tiny_models: AvatarModels) -> None:
    request = ClipRequest(image(1), wave(12), "a man speaks")
    scene = prepare(tiny_models, [request], CONFIG, 12)
    (chunk,) = plan_chunks(12, 13, 5)
    video = tiny_models.vae.decode(sample_chunk(tiny_models, scene, chunk, scene.reference, [7], CONFIG))[0, :, 1:]
    expected = to_frames(correct_colours(video, scene.images[0]))
    assert np.array_equal(make(tiny_models, 12), expected)
    assert not np.array_equal(to_frames(video), expected)


def test_the_official_preset_keeps_the_reference_and_leads_in_with_silence(tiny_models: AvatarModels) -> None:
    official = dict(preset("official")) | {"steps": 2, "overlap": 5}
    video = make(tiny_models, 20, **official)
    assert len(video) == 1 + 28  # the reference, 0.3 s = 7.5 frames of silence and 20 of audio
    silent_first = generate_video(
        tiny_models,
        image(1),
        np.concatenate([np.zeros(4800, np.float32), wave(20)]),
        "a man speaks",
        replace(CONFIG, full_last_chunk=True, **PLAIN),
    )
    assert np.array_equal(video[1:], silent_first)
    assert chunk_starts(29, 32, 32, replace(CONFIG, **official)) == [0, 13, 21]
    assert chunk_starts(28, 32, 32, replace(CONFIG, blend=0)) == [0, 12, 20]
    assert chunk_starts(28, 32, 32, CONFIG) == [0, 12, 16, 20, 24]  # the first frames without the chunk before


@pytest.mark.parametrize("frames", [13, 15, 17, 25])
def test_a_short_last_chunk_leaves_the_chunks_before_it_as_they_are(tiny_models: AvatarModels, frames: int) -> None:
    short, full = make(tiny_models, frames), make(tiny_models, frames, full_last_chunk=True)
    start = chunk_starts(frames, 32, 32, CONFIG)[-1] - CONFIG.blend
    assert start == chunk_starts(frames, 32, 32, replace(CONFIG, full_last_chunk=True))[-1] - CONFIG.blend
    assert short.shape == full.shape and np.array_equal(short[:start], full[:start])


def test_a_video_shorter_than_a_chunk_computes_what_it_shows(tiny_models: AvatarModels, tmp_path: Path) -> None:
    lengths: list[int] = []
    tiny_models.transformer.dit.register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[2]))
    whole = make(tiny_models, 3, tmp_path, blend=12, chunk_frames=41)
    assert set(lengths) == {2} and len(whole) == 3  # the reference and one latent of 4 frames
    lengths.clear()
    assert np.array_equal(make(tiny_models, 3, tmp_path, blend=12, chunk_frames=41), whole) and not lengths


@pytest.mark.parametrize("changes", [PLAIN, {"overlap": 5}])
def test_frames_come_in_pieces_one_chunk_at_a_time(tiny_models: AvatarModels, changes: dict[str, object]) -> None:
    config = replace(CONFIG, **changes)
    pieces = list(stream_video(tiny_models, image(1), wave(30), "a man speaks", config))
    assert len(pieces) >= 3 and max(map(len, pieces)) <= 13
    assert np.array_equal(np.concatenate(pieces), make(tiny_models, 30, **changes))


def test_silence_is_dropped_audio(tiny_models: AvatarModels) -> None:
    """Zeros in place of wav2vec2 states, so that audio guidance has no say."""
    silent = np.zeros(8 * 640, np.float32)
    scene = prepare(tiny_models, [ClipRequest(image(1), silent, "")], CONFIG, 8)
    assert scene.audio is not None and scene.audio.shape == (1, 9, 64) and not scene.audio.any()
    first, second = (
        generate_video(tiny_models, image(1), silent, "a man", replace(CONFIG, audio_guidance=scale))
        for scale in (1.0, 4.0)
    )
    assert np.array_equal(first, second)


def test_the_base_draws_a_portrait(tiny_models: AvatarModels, base: AvatarTransformer) -> None:
    plain = replace(tiny_models, transformer=base)
    one, other = (draw_portrait(plain, prompt, CONFIG) for prompt in ("a man", "a woman smiles"))
    assert one.shape == (32, 32, 3) and one.std() > 1 and not np.array_equal(one, other)
    longer = replace(CONFIG, portrait_frames=9)
    (clip,) = generate_clips(plain, [(image(1), wave(8), "a man")], longer)
    assert np.array_equal(draw_portrait(plain, "a man", longer), clip[3])  # frame 4 of 0..8; a clip begins at frame 1
    with pytest.raises(ValueError, match="avatar model"):
        draw_portrait(tiny_models, "a man", CONFIG)


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
    assert np.array_equal(clip, make(tiny_models, 12, **PLAIN))


def test_audio_and_text_matter(tiny_models: AvatarModels) -> None:
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
