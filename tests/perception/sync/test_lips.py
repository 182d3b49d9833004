"""Speaking lips move beyond the head's own movement and with their voice; closed lips do not."""

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from miniature.weights import model_paths
from miniature.world.clips import draw_clip
from miniature.world.planted import FAULTS, Truth
from perception.faces.crop import crop_track
from perception.faces.detect import load_face_detector
from perception.sync.lips import LipMotion, level_mouths, lip_motion


def _measured(seed: int, closed: bool) -> LipMotion:
    clip = draw_clip(seed, 3.0)
    frames = FAULTS["off_screen"](Truth("off_screen", seed, seconds=3.0)).frames if closed else clip.frames
    return lip_motion(crop_track(frames, clip.boxes, 96), clip.audio)


def test_speaking_lips_move_and_closed_ones_do_not() -> None:
    speaking = [_measured(seed, closed=False).motion for seed in range(40, 52)]
    closed = [_measured(seed, closed=True).motion for seed in range(40, 52)]
    assert min(speaking) > 0.55 > 0.4 > max(closed)


def test_a_mouth_that_changes_with_the_loudness_agrees_with_it() -> None:
    rng = np.random.default_rng(3)
    loudness = np.clip(gaussian_filter1d(rng.standard_normal(120), 4) * 2 + 0.5, 0, 1)
    crops = np.full((120, 96, 96, 3), 128, np.uint8)
    pattern = rng.integers(-60, 60, (120, 25, 38, 1))
    crops[:, 42:67, 29:67] = (128 + pattern * loudness[:, None, None, None]).astype(np.uint8)
    level = np.repeat(10 ** (2 * loudness - 3), 640)
    sound = (level * rng.standard_normal(len(level))).astype(np.float32)
    assert lip_motion(crops, sound).agreement > 0.8
    later = np.roll(sound, 3 * 640)
    assert lip_motion(crops, later, lead=3).agreement > max(0.8, lip_motion(crops, later).agreement + 0.05)
    assert lip_motion(crops, np.repeat(10 ** (-2 * loudness - 1), 640).astype(np.float32)).agreement < -0.8


def test_drawn_lips_agree_better_with_their_own_voice_on_average() -> None:
    clips = [draw_clip(seed, 3.0) for seed in range(60, 76)]
    crops = [crop_track(clip.frames, clip.boxes, 96) for clip in clips]
    own = [lip_motion(seen, clip.audio).agreement for seen, clip in zip(crops, clips, strict=True)]
    other = [lip_motion(crops[number - 1], clip.audio).agreement for number, clip in enumerate(clips)]
    assert np.mean(own) > np.mean(other) + 0.1


def test_a_head_that_only_moves_has_still_lips() -> None:
    picture = draw_clip(5, 0.1).frames[0]
    moved = np.stack([np.roll(picture, (step % 3, step % 4), axis=(0, 1)) for step in range(30)])
    crops = crop_track(moved, np.tile(np.array([14.0, 8, 50, 52]), (30, 1)), 96)
    assert lip_motion(crops, np.zeros(30 * 640, np.float32)).motion < 0.25


@pytest.mark.parametrize("frames", [0, 1, 2, 3, 5])
def test_almost_nothing_and_silence_have_no_agreement(frames: int) -> None:
    crops = np.zeros((frames, 96, 96, 3), np.uint8)
    assert lip_motion(crops, np.zeros(frames * 640, np.float32)) == LipMotion(0.0, 0.0)


def test_levelled_patches_follow_a_face_that_turns_and_grows() -> None:
    clip, pack = draw_clip(40, 1.0), load_face_detector(model_paths()["face_detector"])
    (face,) = pack.detect(clip.frames[0])
    assert face.keypoints is not None
    middle, shift = (32.0, 32.0), np.array([[0, 0, 2.0], [0, 0, -3.0]])
    turns = [cv2.getRotationMatrix2D(middle, 3.0 * step, 1 + 0.02 * step) + shift for step in range(8)]
    turned = [cv2.warpAffine(clip.frames[0], turn, (64, 64), flags=cv2.INTER_CUBIC) for turn in turns]
    points = [face.keypoints @ turn[:, :2].T + turn[:, 2] for turn in turns]
    patches = level_mouths(turned, np.stack(points))
    assert patches.shape == (8, 42, 50) and patches[0].std() > 10
    assert lip_motion(patches, np.zeros(8 * 640, np.float32)).motion < 0.2
    unlevelled = level_mouths(turned, np.stack([points[0]] * 8))
    assert lip_motion(unlevelled, np.zeros(8 * 640, np.float32)).motion > 0.3
