from dataclasses import replace

import numpy as np
import pytest
import torch

from omniavatar.config import GenerateConfig
from omniavatar.encoders.vae import WanVAE
from omniavatar.video.chunks import plan_chunks
from omniavatar.video.joins import (
    COMPARED_FRAMES,
    LARGEST_GAIN,
    LATENT_CONTEXT,
    colour_change,
    correct_colours,
    fade,
    finish_chunk,
    next_prefix,
)

CONFIG = GenerateConfig(overlap=5, chunk_frames=13, blend=0, colour_match="none")
LATENT = replace(CONFIG, overlap_kind="latent")


def latents(seed: int, frames: int = 4) -> torch.Tensor:
    return torch.randn((1, 16, frames, 4, 4), generator=torch.Generator().manual_seed(seed))


def test_pixels_are_encoded_again_and_latents_go_on_as_they_are(patch_vae: WanVAE) -> None:
    first, second = plan_chunks(20, 13, 5)
    image = torch.zeros(3, 32, 32)
    made = finish_chunk(patch_vae, latents(1), first, None, image, CONFIG)
    video = patch_vae.decode(latents(1))[0]
    assert made.frames.shape == (12, 32, 32, 3) and made.shared.shape == (0, 32, 32, 3)
    assert torch.equal(made.tail, video[:, -5:])
    assert torch.equal(next_prefix(patch_vae, made.tail, CONFIG), patch_vae.encode(video[None, :, -5:]))
    carried = finish_chunk(patch_vae, latents(1), first, None, image, LATENT)
    assert torch.equal(next_prefix(patch_vae, carried.tail, LATENT), latents(1)[:, :, -2:])


def test_carried_latents_are_decoded_behind_those_before_them(patch_vae: WanVAE) -> None:
    """A short video comes out as if all its latents had been decoded in one go."""
    first, second = plan_chunks(20, 13, 5)
    image = torch.zeros(3, 32, 32)
    one = finish_chunk(patch_vae, latents(1), first, None, image, LATENT)
    behind = torch.cat([latents(1)[:, :, -2:], latents(2, 2)], dim=2)
    two = finish_chunk(patch_vae, behind, second, one.tail, image, LATENT)
    whole = patch_vae.decode(torch.cat([latents(1), latents(2, 2)], dim=2))[0]
    frames = ((whole.permute(1, 2, 3, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
    assert np.array_equal(np.concatenate([one.frames, two.frames]), frames[1:])
    assert len(two.shared) == 0 and two.tail.shape[1] == 2 + LATENT_CONTEXT


@pytest.mark.parametrize("config", [CONFIG, LATENT])
def test_frames_that_the_next_chunk_makes_again_are_not_handed_on(patch_vae: WanVAE, config: GenerateConfig) -> None:
    blended = replace(config, blend=4)
    first, second = plan_chunks(16, 13, 5, 4)
    image = torch.zeros(3, 32, 32)
    one = finish_chunk(patch_vae, latents(1), first, None, image, blended)
    assert len(one.frames) == 12 and len(one.shared) == 0
    if config is LATENT:
        assert torch.equal(one.tail, latents(1)[0, :, :3])
        assert torch.equal(next_prefix(patch_vae, one.tail, blended), latents(1)[:, :, 1:3])
    else:
        assert torch.equal(one.tail, patch_vae.decode(latents(1))[0, :, 4:9])
    behind = torch.cat([next_prefix(patch_vae, one.tail, blended), latents(2, 2)], dim=2)
    two = finish_chunk(patch_vae, behind, second, one.tail, image, blended)
    plain = finish_chunk(patch_vae, behind, replace(second, remade=0), one.tail, image, config)
    assert second.remade == 4 and (second.audio_start, second.new_frames) == (8, 8)
    assert np.array_equal(np.concatenate([two.shared, two.frames]), plain.frames) and len(two.shared) == 4


def test_the_reference_frame_stays_when_asked(patch_vae: WanVAE) -> None:
    (first,) = plan_chunks(12, 13, 5)
    kept = finish_chunk(
        patch_vae, latents(1), first, None, torch.zeros(3, 32, 32), replace(CONFIG, keep_reference=True)
    )
    dropped = finish_chunk(patch_vae, latents(1), first, None, torch.zeros(3, 32, 32), CONFIG)
    assert len(kept.frames) == 13 and np.array_equal(kept.frames[1:], dropped.frames)


def test_a_fade_is_even_and_ends_inside() -> None:
    before, after = np.zeros((4, 2, 2, 3), np.uint8), np.full((4, 2, 2, 3), 250, np.uint8)
    assert fade(before, after)[:, 0, 0, 0].tolist() == [50, 100, 150, 200]
    assert fade(before, after).dtype == np.uint8 and np.array_equal(fade(after, after), after)


def scene(frames: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """An image, and a video of it in which a large dark block, the mouth, opens and wanders."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator), (32, 32), mode="bilinear")[0]
    video = (image * 1.2 - 0.6)[:, None].repeat(1, frames, 1, 1)
    for number in range(frames):
        video[:, number, 14:22, 8 + number % 6 : 18 + number % 6] = -0.9
    return image * 1.2 - 0.6, video


def test_a_planted_tint_is_found_and_what_moves_is_not_taken_for_one() -> None:
    image, video = scene()
    gain, bias = torch.tensor([1.05, 0.95, 1.1]), torch.tensor([0.04, -0.03, 0.0])
    tinted = video * gain[:, None, None, None] + bias[:, None, None, None]
    found, offset = colour_change(tinted[:, -COMPARED_FRAMES:], image)
    assert (found * gain - 1).abs().max() < 0.03
    assert (found * bias + offset).abs().max() < 0.01
    still, nothing = colour_change(video[:, -COMPARED_FRAMES:], image)
    assert (still - 1).abs().max() < 0.01 and nothing.abs().max() < 0.01


def test_the_correction_grows_from_nothing_to_all_of_it() -> None:
    image, video = scene()
    tinted = video + 0.08
    held = correct_colours(tinted, image)
    wrong = (held - video)[:, :, 0, 0].mean(0)  # a corner that stands still
    assert wrong[0] > 0.07 and wrong[-1].abs() < 0.01
    assert (wrong.diff() <= 1e-6).all() and wrong.diff().abs().max() < 0.08 / 15


def test_another_scene_is_not_forced_into_the_image() -> None:
    image, video = scene()
    gain, _ = colour_change((video * 3)[:, -COMPARED_FRAMES:], image)
    assert (gain >= 1 / LARGEST_GAIN - 1e-6).all()


def test_an_even_image_has_no_gain() -> None:
    flat = torch.full((3, 20, 16, 16), 0.5)
    gain, bias = colour_change(flat + 0.1, flat[:, 0])
    assert torch.allclose(gain, torch.ones(3)) and torch.allclose(bias, torch.full((3,), -0.1))
