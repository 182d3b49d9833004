import torch

from omniavatar.video.colour import LARGEST_GAIN, LOOK, colour_change, hold_colours


def scene(frames: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture, and a video of it in which a large dark block, the mouth, opens and wanders."""
    generator = torch.Generator().manual_seed(0)
    picture = torch.nn.functional.interpolate(torch.rand(1, 3, 6, 6, generator=generator), (32, 32), mode="bilinear")[0]
    video = (picture * 1.2 - 0.6)[:, None].repeat(1, frames, 1, 1)
    for number in range(frames):
        video[:, number, 14:22, 8 + number % 6 : 18 + number % 6] = -0.9
    return picture * 1.2 - 0.6, video


def test_a_planted_tint_is_found_and_what_moves_is_not_taken_for_one() -> None:
    picture, video = scene()
    gain, bias = torch.tensor([1.05, 0.95, 1.1]), torch.tensor([0.04, -0.03, 0.0])
    tinted = video * gain[:, None, None, None] + bias[:, None, None, None]
    found, offset = colour_change(tinted[:, -LOOK:], picture)
    assert (found * gain - 1).abs().max() < 0.03
    assert (found * bias + offset).abs().max() < 0.01
    still, nothing = colour_change(video[:, -LOOK:], picture)
    assert (still - 1).abs().max() < 0.01 and nothing.abs().max() < 0.01


def test_the_correction_grows_from_nothing_to_all_of_it() -> None:
    picture, video = scene()
    tinted = video + 0.08
    held = hold_colours(tinted, picture)
    wrong = (held - video)[:, :, 0, 0].mean(0)  # a corner that stands still
    assert wrong[0] > 0.07 and wrong[-1].abs() < 0.01
    assert (wrong.diff() <= 1e-6).all() and wrong.diff().abs().max() < 0.08 / 15


def test_another_scene_is_not_forced_into_the_picture() -> None:
    picture, video = scene()
    gain, _ = colour_change((video * 3)[:, -LOOK:], picture)
    assert (gain >= 1 / LARGEST_GAIN - 1e-6).all()


def test_an_even_picture_has_no_gain() -> None:
    flat = torch.full((3, 20, 16, 16), 0.5)
    gain, bias = colour_change(flat + 0.1, flat[:, 0])
    assert torch.allclose(gain, torch.ones(3)) and torch.allclose(bias, torch.full((3,), -0.1))
