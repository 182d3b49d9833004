"""Drawing of a talking person: identity and motion tracks in, frames and their truth out.

The head has the same size in pixels in every framing, so that one VAE and one SyncNet crop serve all of them.
Coordinates are pixels of the final frame; drawing happens on a canvas twice as large, averaged down.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Framing = Literal["face", "half"]
Point = tuple[float, float]
Colour = tuple[int, ...]
FRAME_SIZE: dict[str, int] = {"face": 64, "half": 96}
_HEAD_CENTRE: dict[str, tuple[float, float]] = {"face": (32.0, 29.0), "half": (48.0, 33.0)}
_SCALE, _SHIFT = 2, 4  # supersampling; fractional bits of OpenCV's fixed-point coordinates

SKINS = {
    "pale": (248, 218, 196), "fair": (232, 188, 156), "tan": (208, 154, 112),
    "olive": (184, 140, 92), "brown": (142, 94, 62), "dark": (96, 62, 44),
}  # fmt: skip
HAIR_COLOURS = {
    "black": (28, 24, 26), "brown": (98, 62, 34), "blond": (228, 190, 96), "red": (186, 72, 28),
    "grey": (168, 168, 172),
}  # fmt: skip
HAIR_STYLES = ("short", "long", "bun", "bald")
COLOURS = {
    "red": (204, 48, 52), "green": (52, 148, 76), "blue": (48, 88, 196), "yellow": (232, 204, 64),
    "purple": (136, 72, 168), "white": (236, 236, 232), "orange": (238, 138, 44), "teal": (40, 150, 156),
}  # fmt: skip
PATTERNS = ("plain", "striped", "split")
_LIP_COLOURS = ((206, 60, 72), (178, 42, 60), (220, 92, 96))
_MOUTH_DARK, _TEETH, _EYE_WHITE = (44, 10, 14), (250, 250, 244), (252, 252, 252)


@dataclass(frozen=True)
class Identity:
    """What stays the same about a person and the place during a clip."""

    skin: str
    hair_colour: str
    hair_style: str
    clothes: str
    background: tuple[str, str]
    pattern: str
    glasses: bool
    lips: tuple[int, int, int]
    half_width: float
    half_height: float
    eye_distance: float
    brow: float
    mouth_width: float


@dataclass(frozen=True)
class Motion:
    """Tracks of T frames: head offset x, y in px, tilt in degrees, blink 0..1, brow lift px, hand lift 0..1 (T, 2)."""

    x: np.ndarray
    y: np.ndarray
    tilt: np.ndarray
    blink: np.ndarray
    brow: np.ndarray
    hands: np.ndarray


@dataclass(frozen=True)
class Drawing:
    """Frames (T, H, W, 3) uint8 RGB with face boxes (T, 4) xyxy and five keypoints (T, 5, 2), both float32 in px."""

    frames: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray


def draw_identity(rng: np.random.Generator) -> Identity:
    """Draw who is seen and where; two backgrounds colours always differ from the clothes."""

    def pick(names: tuple[str, ...] | dict) -> str:
        options = tuple(names)
        return options[int(rng.integers(len(options)))]

    colours = rng.permutation(tuple(COLOURS))
    return Identity(
        skin=pick(SKINS),
        hair_colour=pick(HAIR_COLOURS),
        hair_style=pick(HAIR_STYLES),
        clothes=str(colours[0]),
        background=(str(colours[1]), str(colours[2])),
        pattern=pick(PATTERNS),
        glasses=bool(rng.random() < 0.25),
        lips=_LIP_COLOURS[int(rng.integers(len(_LIP_COLOURS)))],
        half_width=float(rng.uniform(15.5, 18)),
        half_height=float(rng.uniform(20, 22.5)),
        eye_distance=float(rng.uniform(6.2, 7.6)),
        brow=float(rng.uniform(0.8, 1.6)),
        mouth_width=float(rng.uniform(8.5, 10)),
    )


def draw_motion(stress: np.ndarray, rng: np.random.Generator) -> Motion:
    """Slow head drift, a nod, brow and hand lift on stressed syllables, and blinks; `stress` is (T,) in 0..1."""
    frames = len(stress)
    seconds = np.arange(frames) / 25

    def drift(amplitude: float) -> np.ndarray:
        rates, phases = rng.uniform(0.1, 0.5, 3), rng.uniform(0, 2 * np.pi, 3)
        return amplitude / 3 * np.sin(2 * np.pi * rates * seconds[:, None] + phases).sum(1)

    lifted = np.convolve(np.pad(stress, 6, mode="edge"), np.hanning(13) / np.hanning(13).sum(), mode="valid")
    blink = np.zeros(frames)
    for start in np.cumsum(rng.uniform(35, 90, frames // 35 + 1)).astype(int):
        blink[start : start + 4] = (0.6, 1.0, 1.0, 0.5)[: max(0, frames - start)]
    sides = rng.uniform(0.4, 1.0, 2)
    return Motion(
        x=drift(2.2),
        y=drift(1.2) + 1.4 * lifted,
        tilt=drift(5.0),
        blink=blink,
        brow=1.3 * lifted,
        hands=np.clip(lifted[:, None] * sides * 1.4 + drift(0.1)[:, None], 0, 1),
    )


def render(identity: Identity, motion: Motion, lips: np.ndarray, framing: Framing) -> Drawing:
    """Draw every frame of a clip; `lips` is (T, 3): opening, spread and teeth in 0..1."""
    size = FRAME_SIZE[framing]
    backdrop = _backdrop(identity, size)
    frames, boxes, points = [], [], []
    for t in range(len(lips)):
        canvas = backdrop.copy()
        pen = _Pen(canvas, identity, framing, _pose(motion, t), lips[t])
        pen.draw(motion.hands[t])
        frames.append(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA))
        boxes.append(pen.box)
        points.append(pen.keypoints)
    return Drawing(np.stack(frames), np.array(boxes, np.float32), np.array(points, np.float32))


def describe(identity: Identity, framing: Framing) -> str:
    """A caption that is true of the image: first frame, behaviour, background with dashes (OmniAvatar README)."""
    hair = "a bald head" if identity.hair_style == "bald" else f"{identity.hair_style} {identity.hair_colour} hair"
    glasses = ", glasses" if identity.glasses else ""
    seen = "the face" if framing == "face" else "the upper body"
    act = "talks to the camera" if framing == "face" else "talks and moves both hands"
    article = "an" if identity.clothes[0] in "aeiou" else "a"
    first, second = identity.background
    place = f"plain {first}" if identity.pattern == "plain" else f"{identity.pattern} {first} and {second}"
    return (
        f"{seen} of a person with {identity.skin} skin, {hair}{glasses} and {article} {identity.clothes} shirt"
        f" - the person {act} - a {place} background"
    )


def _backdrop(identity: Identity, size: int) -> np.ndarray:
    first, second = (np.array(COLOURS[name], np.float64) * 0.8 + 30 for name in identity.background)
    canvas = np.empty((size * _SCALE, size * _SCALE, 3), np.uint8)
    canvas[:] = first
    if identity.pattern == "striped":
        stripe = 16 * _SCALE
        for stripe_x in range(0, canvas.shape[1], 2 * stripe):
            canvas[:, stripe_x : stripe_x + stripe] = second
    elif identity.pattern == "split":
        canvas[size * _SCALE // 2 :] = second
    return canvas


@dataclass(frozen=True)
class _Pose:
    x: float
    y: float
    tilt: float
    blink: float
    brow: float


def _pose(motion: Motion, t: int) -> _Pose:
    return _Pose(*(float(track[t]) for track in (motion.x, motion.y, motion.tilt, motion.blink, motion.brow)))


class _Pen:
    """Draws one frame; points are given relative to the head's centre, before tilting."""

    def __init__(self, canvas: np.ndarray, who: Identity, framing: Framing, pose: _Pose, lips: np.ndarray) -> None:
        self.canvas, self.who, self.framing, self.pose = canvas, who, framing, pose
        self.opening, self.spread, self.teeth = (float(v) for v in lips)
        centre = _HEAD_CENTRE[framing]
        self.centre = (centre[0] + pose.x, centre[1] + pose.y)
        angle = np.deg2rad(pose.tilt)
        self._cos, self._sin = float(np.cos(angle)), float(np.sin(angle))
        self.mouth_half = who.mouth_width * (0.62 + 0.55 * self.spread)
        self.mouth_y = 11.0 + 0.5 * self.opening

    def draw(self, hands: np.ndarray) -> None:
        self._body()
        self._hair_behind()
        self._face()
        self._eyes()
        self._mouth()
        if self.framing == "half":
            self._arms(hands)

    @property
    def box(self) -> list[float]:
        (x, y), width, height = self.centre, self.who.half_width, self.who.half_height
        return [x - width, y - height, x + width, y + height + 3 * self.opening]

    @property
    def keypoints(self) -> list[tuple[float, float]]:
        eye, mouth = self.who.eye_distance, self.mouth_half
        relative = ((-eye, -4), (eye, -4), (0, 3), (-mouth, self.mouth_y), (mouth, self.mouth_y))
        return [self._at(x, y) for x, y in relative]

    def _at(self, x: float, y: float) -> tuple[float, float]:
        return self.centre[0] + x * self._cos - y * self._sin, self.centre[1] + x * self._sin + y * self._cos

    def _fixed(self, point: Point) -> list[int]:
        # OpenCV puts pixel centres on whole numbers; half a pixel less keeps the area average centred.
        return [round((v * _SCALE - 0.5) * (1 << _SHIFT)) for v in point]

    def _ellipse(
        self,
        at: Point,
        axes: Point,
        colour: Colour,
        arc: tuple[int, int] = (0, 360),
        tilt: float | None = None,
        width: int = -1,
    ) -> None:
        fixed = [max(0, round(axis * _SCALE * (1 << _SHIFT))) for axis in axes]
        angle = self.pose.tilt if tilt is None else tilt
        cv2.ellipse(self.canvas, self._fixed(at), fixed, angle, arc[0], arc[1], colour, width, cv2.LINE_AA, _SHIFT)

    def _line(self, start: Point, end: Point, colour: Colour, width: float) -> None:
        thickness = max(1, round(width * _SCALE))
        cv2.line(self.canvas, self._fixed(start), self._fixed(end), colour, thickness, cv2.LINE_AA, _SHIFT)

    def _body(self) -> None:
        x, y = self.centre[0] - 0.6 * self.pose.x, _HEAD_CENTRE[self.framing][1]
        clothes, skin = COLOURS[self.who.clothes], SKINS[self.who.skin]
        reach = 28 if self.framing == "face" else 25
        self._ellipse((x, y + 44), (reach, 18), clothes, tilt=0)
        if self.framing == "half":
            cv2.rectangle(self.canvas, self._fixed((x - 21, y + 38)), self._fixed((x + 21, 97)), clothes, -1, 0, _SHIFT)
        shade = tuple(int(0.85 * c) for c in skin)
        self._ellipse((x, y + 24), (6.5, 8), shade, tilt=0)

    def _hair_behind(self) -> None:
        colour, who = HAIR_COLOURS[self.who.hair_colour], self.who
        if who.hair_style == "long":
            self._ellipse(self._at(0, 4), (who.half_width + 4.5, who.half_height + 3), colour)
        if who.hair_style == "bun":
            self._ellipse(self._at(0, -who.half_height - 2), (6, 5), colour)

    def _face(self) -> None:
        who, skin = self.who, SKINS[self.who.skin]
        self._ellipse(self._at(0, 1.5 * self.opening), (who.half_width, who.half_height + 1.5 * self.opening), skin)
        if who.hair_style != "bald":
            axes = (who.half_width + 1, who.half_height - 8)
            self._ellipse(self._at(0, -10), axes, HAIR_COLOURS[who.hair_colour], arc=(180, 360))
        self._line(self._at(0, -1), self._at(0.8, 3.5), tuple(int(0.78 * c) for c in skin), 1.4)

    def _eyes(self) -> None:
        dark = tuple(int(0.7 * c) for c in HAIR_COLOURS[self.who.hair_colour])
        for side in (-1, 1):
            eye = self._at(side * self.who.eye_distance, -4)
            inner, outer = side * (self.who.eye_distance - 3), side * (self.who.eye_distance + 3)
            height = 2.6 * (1 - self.pose.blink)
            if height > 0.4:
                self._ellipse(eye, (3.4, height), _EYE_WHITE)
                self._ellipse(eye, (1.5, min(1.5, height)), (30, 26, 40))
            else:
                self._line(self._at(inner, -4), self._at(outer, -4), dark, 1)
            lift = -8.6 - self.pose.brow
            self._line(self._at(inner, lift), self._at(outer, lift + 0.6), dark, self.who.brow)
            if self.who.glasses:
                self._ellipse(eye, (5.2, 4.6), (40, 40, 48), width=2)

    def _mouth(self) -> None:
        at, half, drop = self._at(0, self.mouth_y), self.mouth_half, 6.5 * self.opening
        self._ellipse(at, (half, 2.4 + drop), self.who.lips)
        inner = (half * 0.8, drop)
        if drop < 0.35:
            self._line(self._at(-half * 0.7, self.mouth_y), self._at(half * 0.7, self.mouth_y), _MOUTH_DARK, 0.8)
            return
        self._ellipse(at, inner, _MOUTH_DARK)
        if self.teeth > 0.15:
            top = self._at(0, self.mouth_y - 0.25 * drop)
            self._ellipse(top, (inner[0] * 0.85, 0.75 * drop * self.teeth), _TEETH, arc=(180, 360))

    def _arms(self, hands: np.ndarray) -> None:
        shoulder_y, x = 72.0, self.centre[0] - 0.6 * self.pose.x
        sleeve = tuple(int(0.8 * c) for c in COLOURS[self.who.clothes])
        for side, lift in zip((-1, 1), hands, strict=True):
            elbow = (x + side * 27, 86.0 - 6 * lift)
            hand = (x + side * (14 + 12 * lift), 90.0 - 20 * lift)
            self._line((x + side * 21, shoulder_y), elbow, sleeve, 6.5)
            self._line(elbow, hand, sleeve, 5.5)
            self._ellipse(hand, (4.6, 4.6), SKINS[self.who.skin], tilt=0)
