"""Each fault is in the pictures and the sound as its truth says, and nothing else is."""

import numpy as np
import pytest

from miniature.world.clips import draw_clip
from miniature.world.planted import FAULTS, Truth, write_text

SECONDS = 2.0


def test_offset_delays_the_sound_by_whole_frames():
    still, late = (FAULTS["offset"](Truth("offset", 5, shift=shift, seconds=SECONDS)) for shift in (0, 4))
    assert np.array_equal(still.frames, late.frames)
    assert np.array_equal(late.audio[4 * 640 :], still.audio[: -4 * 640])


@pytest.mark.parametrize("shift", [8, -6])
def test_drift_is_early_at_first_and_late_in_the_end(shift):
    """The sound of a moment is found again where the truth puts it, at the start, in the middle and at the end."""
    drifting = FAULTS["drift"](Truth("drift", 5, shift=shift, seconds=4.0))
    right = FAULTS["offset"](Truth("offset", 5, shift=0, seconds=4.0))
    assert np.array_equal(drifting.frames, right.frames) and len(drifting.audio) == len(right.audio)
    played, said = (np.sqrt(np.square(audio).reshape(-1, 64).mean(axis=1)) for audio in (drifting.audio, right.audio))
    for at in (0.2, 0.5, 0.8):
        piece = slice(round(at * len(said)) - 80, round(at * len(said)) + 80)  # 0.64 s
        moves = range(-60, 61)  # tenths of a frame
        likeness = [np.corrcoef(played[piece], said[piece.start - m : piece.stop - m])[0, 1] for m in moves]
        assert moves[int(np.argmax(likeness))] / 10 == pytest.approx(shift * (at - 0.5), abs=0.6)


def test_dubbed_has_another_s_voice_and_all_of_its_own_face():
    clip, dubbed = draw_clip(5, SECONDS), FAULTS["dubbed"](Truth("dubbed", 5, seconds=SECONDS))
    assert np.array_equal(dubbed.frames, clip.frames) and len(dubbed.audio) == len(clip.audio)
    assert abs(np.corrcoef(dubbed.audio, clip.audio)[0, 1]) < 0.2 and np.abs(dubbed.audio).max() > 0.3


def test_off_screen_is_the_same_person_with_lips_closed():
    clip, listener = draw_clip(5, SECONDS), FAULTS["off_screen"](Truth("off_screen", 5, seconds=SECONDS))
    assert np.array_equal(listener.audio, clip.audio)
    changed = np.abs(listener.frames.astype(int) - clip.frames).max(axis=3) > 30
    moment = int(clip.mouth[:, 0].argmax())
    places = clip.keypoints[moment].round().astype(int)
    mouth = places[3:].mean(axis=0).astype(int)
    around = changed[moment, mouth[1] - 5 : mouth[1] + 6, mouth[0] - 5 : mouth[0] + 6]
    assert around.mean() > 0.3 and not changed[moment, places[:2, 1], places[:2, 0]].any()
    assert np.abs(np.diff(listener.frames.astype(int), axis=0)).max() > 20, "the head moves"


def test_burned_in_text_stands_still_in_the_lower_part():
    clip, titled = draw_clip(5, SECONDS), FAULTS["burned_text"](Truth("burned_text", 5, seconds=SECONDS))
    different = np.abs(titled.frames.astype(int) - clip.frames).max(axis=3) > 0
    rows = np.nonzero(different.any(axis=(0, 2)))[0]
    assert rows.min() > 48 and rows.max() < 64 and np.array_equal(titled.audio, clip.audio)
    bright = (titled.frames.min(axis=3) > 200) & different
    assert np.array_equal(bright[0], bright[20]) and not np.array_equal(bright[0], bright[40]), "a text a second"


@pytest.mark.parametrize("seed", [6, 7])
def test_the_row_names_the_speaker_or_the_other_one(seed):
    """Of both halves the speaker's is the drawn clip; rows point at the middle of a face."""
    clip = draw_clip(seed, SECONDS)
    named = {}
    for kind in ("second_face", "wrong_person"):
        source = FAULTS[kind](Truth(kind, seed, seconds=SECONDS))
        left = np.array_equal(source.frames[:, :, :64], clip.frames)
        assert left != np.array_equal(source.frames[:, :, 64:], clip.frames)
        x, y = source.annotated
        named[kind] = (x < 0.5) == left
        assert abs(x % 0.5 - 0.25) < 0.05 and abs(y - 0.47) < 0.1
    assert named == {"second_face": True, "wrong_person": False}


def test_text_is_centred_on_its_baseline():
    frame = np.full((64, 96, 3), 128, np.uint8)
    write_text(frame, "HI", 40)
    rows, columns = np.nonzero(frame.min(axis=2) > 200)
    assert columns.mean() == pytest.approx(47.5, abs=2) and rows.min() > 30 and rows.max() <= 41
