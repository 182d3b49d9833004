import numpy as np
import pytest

from miniature.world.figure import FRAME_SIZE, SKINS, describe, draw_identity, draw_motion, render


def _identity(seed: int):
    return draw_identity(np.random.default_rng(seed))


def _drawing(opening: list[float], framing="face", seed: int = 0, spread: float = 0.5):
    lips = np.array([[o, spread, 0.0] for o in opening], np.float32)
    motion = draw_motion(np.zeros(len(opening)), np.random.default_rng(1))
    return render(_identity(seed), motion, lips, framing)


@pytest.mark.parametrize("framing", ["face", "half"])
def test_frames_have_the_size_of_their_framing(framing):
    drawing = _drawing([0.0, 1.0], framing)
    assert drawing.frames.shape == (2, FRAME_SIZE[framing], FRAME_SIZE[framing], 3)
    assert drawing.frames.dtype == np.uint8


def test_head_is_equally_large_in_both_framings():
    face, half = _drawing([0.5]), _drawing([0.5], "half")
    size = face.boxes[0, 2:] - face.boxes[0, :2]
    assert np.allclose(size, half.boxes[0, 2:] - half.boxes[0, :2])


def test_an_open_mouth_is_dark_where_a_closed_one_is_not():
    drawing = _drawing([1.0, 0.0])
    x, y = drawing.keypoints[0, 3:].mean(0).round().astype(int)
    assert drawing.frames[0, y, x].sum() < 150 < drawing.frames[1, y, x].sum()


def test_keypoints_mark_what_is_drawn():
    drawing = _drawing([0.2])
    eyes, box = drawing.keypoints[0, :2], drawing.boxes[0]
    assert (eyes[0, 0] < eyes[1, 0]) and (eyes > box[:2]).all() and (eyes < box[2:]).all()
    for x, y in eyes:
        patch = drawing.frames[0, round(y) - 3 : round(y) + 4, round(x) - 4 : round(x) + 5]
        assert patch.max(axis=(0, 1)).min() > 220, "the white of an eye"


def test_spread_lips_are_wider_than_rounded_ones():
    wide, round_ = _drawing([0.5], spread=1.0), _drawing([0.5], spread=0.0)
    width = [d.keypoints[0, 4, 0] - d.keypoints[0, 3, 0] for d in (wide, round_)]
    assert width[0] > 1.6 * width[1]


def test_the_caption_is_true_of_the_picture():
    for seed in range(20):
        identity = _identity(seed)
        text = describe(identity, "face")
        assert f"{identity.skin} skin" in text and f"{identity.clothes} shirt" in text
        assert ("glasses" in text) == identity.glasses and identity.background[0] in text
        drawing = render(identity, draw_motion(np.zeros(1), np.random.default_rng(0)), np.zeros((1, 3)), "face")
        x, y = drawing.boxes[0].reshape(2, 2).mean(0).round().astype(int)
        cheek = drawing.frames[0, y + 2, x - 9].astype(int)
        assert np.abs(cheek - SKINS[identity.skin]).max() < 12


def test_stress_lifts_the_hands():
    stress = np.repeat([0.0, 1.0], 50)
    hands = draw_motion(stress, np.random.default_rng(4)).hands
    assert hands[60:].mean() > hands[:40].mean() + 0.2
