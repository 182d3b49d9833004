"""Planted subtitles are found where they are; faces, patterns and moving words are not text."""

import cv2
import numpy as np
import pytest

from miniature.world.clips import draw_clip
from perception.text import load_text_detector, nearness, text_boxes, text_lines, text_mask
from tests.perception.judged_material import LINES, STYLES, astronaut, captioned, covered, judge


def _picture(text: str, at: tuple[int, int], scale: float = 1.0, lamp: int = 80) -> np.ndarray:
    """A grey room (360, 640) with words at a place and a lamp that may move."""
    picture = np.full((360, 640, 3), 90, np.uint8)
    cv2.circle(picture, (lamp, 80), 40, (200, 190, 120), -1)
    cv2.putText(picture, text, at, cv2.FONT_HERSHEY_DUPLEX, scale, (245, 245, 245), 2, cv2.LINE_AA)
    return picture


@pytest.mark.parametrize("scale", [0.8, 1.2, 2.0])
def test_a_line_of_letters_is_covered_whole(scale: float) -> None:
    text = "We go home"
    (width, height), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_DUPLEX, scale, 2)
    first, second = (_picture(text, (100, 300), scale, lamp) for lamp in (80, 90))
    rows, columns = np.nonzero(text_mask(first, second))
    assert columns.min() == pytest.approx(100, abs=6) and columns.max() == pytest.approx(100 + width, abs=8)
    assert rows.min() >= 300 - height - 8 and rows.max() <= 300 + height // 2


def test_dark_letters_count_too() -> None:
    first, second = (255 - _picture("We go home", (100, 300), lamp=lamp) for lamp in (80, 90))
    assert text_mask(first, second).mean() > 0.01


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (_picture("We go home", (100, 300)), _picture("We go home", (112, 318))),  # it moves
        (_picture("", (0, 0)), _picture("", (0, 0), lamp=90)),  # nothing is written
        (_picture("HI", (100, 300)), _picture("HI", (100, 300), lamp=90)),  # two letters are too few
        (_picture("We go home", (100, 300)), _picture("We go home", (100, 300))),  # everything stands still
    ],
)
def test_what_is_no_burned_in_text(first: np.ndarray, second: np.ndarray) -> None:
    assert not text_mask(first, second).any()


def test_drawn_people_are_no_text() -> None:
    """But for glasses now and then, which lie on a face, where the curation does not look."""
    clips = [draw_clip(seed, 0.5, framing) for seed in range(8) for framing in ("face", "half")]
    assert sum(text_mask(clip.frames[0], clip.frames[10]).mean() > 0.005 for clip in clips) <= 1


def test_lines_need_letters_alike_and_level() -> None:
    strokes = np.zeros((200, 300), bool)
    for number, (top, height) in enumerate(((50, 20), (52, 16), (50, 20), (51, 18))):
        strokes[top : top + height, 40 + 20 * number : 50 + 20 * number] = True
    assert text_lines(strokes) == [(40, 50, 110, 70)]
    strokes[50:70, 60:70] = False
    strokes[90:110, 60:70] = True  # the second letter has left the line, and the first stands alone
    assert text_lines(strokes) == []


def test_nearness_in_closed_form() -> None:
    weight = nearness((100, 100), np.array([40, 20, 60, 40]))
    assert weight[30, 50] == 1
    assert weight[59, 50] == pytest.approx(np.exp(-19.5 / 20))
    assert weight[59, 79] == pytest.approx(np.exp(-np.hypot(19.5, 19.5) / 20))


def test_a_line_is_sure_low_and_slender() -> None:
    heat = np.zeros((480, 640), np.float32)
    heat[400:420, 100:400] = 0.9  # a line
    heat[50:70, 100:400] = 0.5  # no sure one
    heat[100:200, 100:600] = 0.9  # too high
    heat[250:290, 100:190] = 0.9  # not slender
    (box,) = text_boxes(heat)
    x0, y0, x1, y1 = (*box.min(axis=0), *box.max(axis=0))
    # d = 1.6 * 300 * 20 / (2 * 320) = 15 px further out on every side.
    assert [x0, y0, x1, y1] == pytest.approx([85, 385, 414, 434], abs=2)


def test_captions_of_three_scripts_are_found_from_12_pixels_on_and_nothing_else() -> None:
    detector, plain = load_text_detector(judge("text_detector")), astronaut()[20:500, 20:500]
    assert not detector.mask(plain).any()
    drawn = zip(LINES.values(), (12, 20, 40), STYLES, strict=False)
    for text, height, style in drawn:
        frame, box = captioned(plain, text, height, style)
        mask = detector.mask(frame)
        assert covered(mask, box) > 0.8 and mask.sum() < 2.2 * (box[2] - box[0]) * (box[3] - box[1])
