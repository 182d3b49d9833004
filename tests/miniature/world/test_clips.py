import subprocess
import sys

import numpy as np
import pytest

from common.runs import fingerprint
from miniature.world.clips import draw_clip

DIGEST = (
    "import hashlib; from miniature.world.clips import draw_clip; c = draw_clip(7, 1.0, 'half');"
    "print(hashlib.sha256(c.frames.tobytes() + c.audio.tobytes() + c.mouth.tobytes()).hexdigest(), c.caption)"
)


def test_another_process_draws_the_same_bytes():
    runs = {subprocess.run([sys.executable, "-c", DIGEST], capture_output=True, check=True).stdout for _ in range(2)}
    assert len(runs) == 1


@pytest.mark.parametrize(("framing", "size"), [("face", 64), ("half", 96)])
def test_shapes_agree(framing, size):
    clip = draw_clip(1, 2.0, framing)
    assert clip.frames.shape == (50, size, size, 3) and clip.audio.shape == (50 * 640,)
    assert len(clip.mouth) == len(clip.boxes) == len(clip.keypoints) == len(clip.phones) == 50


def test_the_mouth_follows_the_sound():
    """The area of dark mouth pixels moves with the planted opening, frame by frame."""
    clip = draw_clip(21, 4.0)
    dark = []
    for frame, points in zip(clip.frames, clip.keypoints, strict=True):
        x, y = points[3:].mean(0).round().astype(int)
        dark.append((frame[y - 7 : y + 8, x - 8 : x + 9].sum(2) < 150).sum())
    assert np.corrcoef(dark, clip.mouth[:, 0])[0, 1] > 0.8


def test_seeds_give_different_people():
    assert len({fingerprint(draw_clip(seed, 0.04).identity) for seed in range(50)}) == 50
