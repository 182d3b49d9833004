"""Material that the judges are held against: sounds and mixtures, captions, turned faces, transitions.

Real clips lie beside the repository (`../shared/real`) where there are any; none is part of it. Faces, textures and
letters that are: skimage's astronaut (public domain), matplotlib's DejaVu.
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont
from skimage import data

from common.media.audio import read_audio
from common.media.video import read_frames
from perception.packaged import packaged_weights

ROOT = Path(__file__).parents[2]
RATE = 16_000
LINES = {
    "Latin": "Nobody told us about the weather",
    "Cyrillic": "Никто не сказал нам о погоде",
    "Greek": "Κανείς δεν μας είπε για τον καιρό",
}
STYLES = ("outlined", "plain", "yellow", "boxed")


def judge(role: str) -> Path:
    """The file of a judge that an installed package carries."""
    carried = packaged_weights()
    assert role in carried, f"no installed package carries a {role}: the Makefile installs them, see docs/judges.md"
    return carried[role]


def real_files() -> list[Path]:
    """Real clips and speech beside the repository, or none."""
    folders = [ROOT.parent / "shared" / "real", ROOT.parents[1] / "shared" / "real"]
    return [file for folder in folders if folder.is_dir() for file in sorted(folder.glob("*.mp[34]"))]


@cache
def real_audio(file: Path) -> np.ndarray:
    return read_audio(file, RATE)


@cache
def real_frames(file: Path, step: int = 25, count: int = 5) -> np.ndarray:
    """Frames (n, H, W, 3) of the first seconds, one in `step`."""
    return read_frames(file, list(range(0, step * count, step)))


def white(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def music(seconds: float, seed: int = 0) -> np.ndarray:
    """Chords of three notes with overtones, and a drum on every beat of half a second."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    sound, beat = np.zeros(len(time)), time % 0.5
    for bar in range(int(seconds) + 1):
        inside = (time >= bar) & (time < bar + 1)
        root = 110 * 2 ** (rng.choice([0, 3, 5, 7, 8, 10]) / 12)
        for interval in (0, rng.choice([3, 4]), 7):
            for overtone in range(1, 7):
                tone = np.sin(2 * np.pi * root * 2 ** (interval / 12) * overtone * time)
                sound += inside * tone / overtone**1.5
    drum = rng.standard_normal(len(time)) * np.exp(-beat / 0.04) + 2 * np.sin(2 * np.pi * 60 * beat) * np.exp(
        -beat / 0.1
    )
    return (sound / np.std(sound) + 0.7 * drum).astype(np.float32)


def without_voice(seconds: float) -> dict[str, np.ndarray]:
    """Sounds in which nobody speaks."""
    time = np.arange(round(seconds * RATE)) / RATE
    spectrum = np.fft.rfft(white(seconds, 3)) / np.sqrt(np.maximum(1, np.arange(len(time) // 2 + 1)))
    sounds = {
        "silence": np.zeros(len(time)),
        "white noise": white(seconds),
        "pink noise": np.fft.irfft(spectrum, len(time)),
        "tone of 220 Hz": np.sin(2 * np.pi * 220 * time),
        "sweep": np.sin(2 * np.pi * (100 * time + 150 * time**2)),
        "hum": sum(np.sin(2 * np.pi * 50 * n * time) / n for n in range(1, 8)),
        "vibrato": np.sin(2 * np.pi * 300 * time + 8 * np.sin(2 * np.pi * 5.5 * time)),
        "music": music(seconds),
    }
    return {name: (0.2 * wave / max(np.std(wave), 1e-9)).astype(np.float32) for name, wave in sounds.items()}


def mixed(wave: np.ndarray, added: np.ndarray, decibel: float) -> np.ndarray:
    """A wave with a sound added to it, so much below its mean power."""
    level = float(np.mean(np.square(wave)))
    added = added[: len(wave)] * np.sqrt(level / 10 ** (decibel / 10) / np.mean(np.square(added[: len(wave)])))
    both = wave + added
    return (both * min(1.0, 0.99 / np.abs(both).max())).astype(np.float32)


def captioned(
    frame: np.ndarray, text: str, height: int, style: str, font: Path | None = None
) -> tuple[np.ndarray, tuple]:
    """A frame with a line of letters so many px high drawn over it, and the box x0, y0, x1, y1 of the line."""
    file = font or Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    letters = ImageFont.truetype(str(file), round(height * 1.25))
    image = Image.fromarray(frame.copy())
    draw = ImageDraw.Draw(image)
    while draw.textlength(text, letters) > 0.92 * image.width:
        text = text.rsplit(" ", 1)[0] if " " in text else text[:-1]
    place = (image.width - draw.textlength(text, letters)) / 2, image.height * 0.86 - height
    box = draw.textbbox(place, text, letters)
    if style == "boxed":
        draw.rectangle((box[0] - 4, box[1] - 3, box[2] + 4, box[3] + 3), fill=(0, 0, 0))
    edge = {"stroke_width": max(1, height // 12), "stroke_fill": (0, 0, 0)} if style in ("outlined", "yellow") else {}
    draw.text(place, text, (255, 230, 40) if style == "yellow" else (255, 255, 255), letters, **edge)
    return np.asarray(image), tuple(round(side) for side in box)


def covered(mask: np.ndarray, box: Sequence[int]) -> float:
    """Share of a box that a mask (H, W) marks."""
    x0, y0, x1, y1 = box
    return float(mask[y0:y1, x0:x1].mean())


def rolled(frame: np.ndarray, degrees: float) -> np.ndarray:
    """A frame turned around its middle."""
    height, width = frame.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1.0)
    return cv2.warpAffine(frame, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)


def with_face_of(face: np.ndarray, box: np.ndarray, pixels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture of 640 x 360 with a frame in it, so small that the face in `box` is `pixels` high, and that face's
    box."""
    scale = pixels / (box[3] - box[1])
    small = cv2.resize(face, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)[:360, :640]
    rng = np.random.default_rng(seed)
    room = 360 - small.shape[0], 640 - small.shape[1]
    y, x = (int(rng.integers(0, each + 1)) for each in room)
    picture = cv2.copyMakeBorder(small, y, room[0] - y, x, room[1] - x, cv2.BORDER_REPLICATE)
    return picture, box * scale + np.array([x, y, x, y])


def astronaut() -> np.ndarray:
    """A portrait (512, 512, 3) uint8 RGB."""
    return np.asarray(data.astronaut())


def transition(first: np.ndarray, second: np.ndarray, kind: str, frames: int) -> np.ndarray:
    """The frames (n, H, W, 3) of two scenes joined by a "cut", a "dissolve" or a "fade" via black over `frames`."""
    if kind == "cut":
        return np.concatenate([first, second])
    share = np.linspace(0, 1, frames + 2)[1:-1, None, None, None]
    out, into = first[-frames:].astype(float), second[:frames].astype(float)
    if kind == "dissolve":
        middle = out * (1 - share) + into * share
    else:
        middle = out * np.clip(1 - 2 * share, 0, 1) + into * np.clip(2 * share - 1, 0, 1)
    return np.concatenate([first[:-frames], np.rint(middle).astype(np.uint8), second[frames:]])
