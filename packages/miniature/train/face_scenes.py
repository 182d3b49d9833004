"""Training images of the face detector and recogniser: no, one or several faces with their truth."""

from dataclasses import dataclass

import cv2
import numpy as np

from miniature.world.clips import draw_clip
from miniature.world.damage import Damage

SMALLEST, LARGEST = 18.0, 300.0  # face sides taught, px
_TILE = 64
_LAYOUTS = ((1, 1), (1, 1), (1, 2), (1, 2), (2, 1), (2, 2), (1, 3))
_VISIBLE, _HIDDEN = 0.8, 0.1  # share of a face inside the image: above is taught, below is absent, between ignored

# Where ArcFace wants eyes, nose and mouth corners in a 112x112 crop (insightface, `face_align.arcface_dst`).
ARCFACE_POINTS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]], np.float32
)


@dataclass(frozen=True)
class Person:
    """Some frames of one identity (n, H, W, 3) uint8 with boxes (n, 4) and keypoints (n, 5, 2)."""

    frames: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray


@dataclass(frozen=True)
class Scene:
    """An image (S, S, 3) uint8 RGB with faces to find: boxes (k, 4), keypoints (k, 5, 2); and boxes to overlook."""

    image: np.ndarray
    boxes: np.ndarray
    keypoints: np.ndarray
    ignored: np.ndarray


def draw_person(seed: int, frames: int = 5) -> Person:
    """Identity `seed`, in half of the cases with half the body, at moments spread over two seconds."""
    clip = draw_clip(seed, 2.0, "half" if seed % 2 else "face")
    chosen = np.linspace(2, len(clip.frames) - 1, frames).astype(int)
    return Person(clip.frames[chosen], clip.boxes[chosen], clip.keypoints[chosen])


def draw_scene(people: list[Person], side: int, rng: np.random.Generator) -> Scene:
    """Tiles side by side, some with a face, seen from nearer or farther, slightly turned, sometimes damaged."""
    rows, columns = _LAYOUTS[rng.integers(len(_LAYOUTS))]
    tiles = [_face_tile(people, rng) if rng.random() < 0.8 else _empty_tile(people, rng) for _ in range(rows * columns)]
    board = np.concatenate(
        [np.concatenate([t[0] for t in tiles[r * columns : (r + 1) * columns]], axis=1) for r in range(rows)]
    )
    corners = [np.array([i % columns, i // columns]) * _TILE for i in range(len(tiles))]
    faces = [points + corner for (_, points), corner in zip(tiles, corners, strict=True) if points is not None]
    matrix = _view(corners[rng.integers(len(corners))] + _TILE / 2, side, rng)
    # Never mirrored: the faces that come with it would be taught to be nothing.
    border = int(rng.choice([cv2.BORDER_CONSTANT, cv2.BORDER_REPLICATE]))
    image = cv2.warpAffine(board, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)
    moved = np.stack([points @ matrix[:, :2].T + matrix[:, 2] for points in faces]) if faces else np.zeros((0, 9, 2))
    boxes = np.concatenate([moved[:, :4].min(1), moved[:, :4].max(1)], axis=1)
    seen = _shares_inside(boxes, side)
    taught = seen > _VISIBLE
    return Scene(_damaged(image, rng), boxes[taught], moved[taught, 4:], boxes[~taught & (seen > _HIDDEN)])


def _face_tile(people: list[Person], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A frame brought to the tile's size; its points are four corners' midpoints of the box, then the keypoints."""
    person = people[rng.integers(len(people))]
    index = int(rng.integers(len(person.frames)))
    frame, (x0, y0, x1, y1) = person.frames[index], person.boxes[index]
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    # The middles of the four sides, not the corners: under a turn the box of an oval face hardly grows.
    sides = [(x0, middle_y), (x1, middle_y), (middle_x, y0), (middle_x, y1)]
    points = np.concatenate([np.array(sides), person.keypoints[index]]) * (_TILE / len(frame))
    return cv2.resize(frame, (_TILE, _TILE), interpolation=cv2.INTER_AREA), points


def _empty_tile(people: list[Person], rng: np.random.Generator) -> tuple[np.ndarray, None]:
    """No face: what lies under one, a plain or noisy surface, or ovals in the colours of skin."""
    kind, colour = rng.integers(4), rng.integers(0, 256, 3)
    if kind == 0:
        person = people[rng.integers(len(people))]
        frame, chin = person.frames[0], int(person.boxes[:, 3].max()) + 1
        # Shirts and hands, from near enough for a hand to have the size of a face.
        side = int(rng.integers(5, max(6, len(frame) - chin)))
        y0, x0 = int(rng.integers(chin, len(frame) - side + 1)), int(rng.integers(len(frame) - side + 1))
        return cv2.resize(frame[y0 : y0 + side, x0 : x0 + side], (_TILE, _TILE)), None
    tile = np.full((_TILE, _TILE, 3), colour, np.uint8)
    if kind == 1:
        cells = int(rng.integers(2, 33))
        noise = rng.integers(0, 256, (cells, cells, 3)).astype(np.uint8)
        tile[:] = cv2.addWeighted(tile, 0.5, cv2.resize(noise, (_TILE, _TILE)), 0.5, 0)
    elif kind == 2:
        for _ in range(rng.integers(1, 6)):
            centre, axes = rng.integers(0, _TILE, 2).tolist(), rng.integers(4, 28, 2).tolist()
            shade = rng.integers(0, 256, 3).tolist()
            cv2.ellipse(tile, centre, axes, float(rng.uniform(0, 180)), 0, 360, shade, -1, cv2.LINE_AA)
    return tile, None


def _view(centre: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Affine matrix (2, 3) that shows the board around `centre`, a usual face getting a side drawn log-uniformly."""
    face = np.exp(rng.uniform(np.log(max(SMALLEST, side / 12)), np.log(min(LARGEST, 0.95 * side))))
    scale, turn = face / 38, np.deg2rad(rng.normal(0, 6))
    stretch = np.diag(scale * np.exp(rng.normal(0, 0.04, 2)))
    linear = stretch @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    room = max(0.0, (side - 1.1 * face) / 2)
    target = side / 2 + rng.uniform(-room, room, 2)
    return np.concatenate([linear, (target - linear @ centre)[:, None]], axis=1)


def _damaged(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    if rng.random() < 0.5:
        return image
    blur, noise = rng.uniform(0, 0.02) * len(image), rng.uniform(0, 60)
    damage = Damage(blur, noise * (rng.random() < 0.5), exposure=float(np.exp(rng.normal(0, 0.25))), crf=0)
    return damage.apply(image[None], rng)[0]


def _shares_inside(boxes: np.ndarray, side: int) -> np.ndarray:
    inside, whole = np.clip(boxes, 0, side), np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-6)
    return ((inside[:, 2:] - inside[:, :2]) / whole).prod(axis=1)


def align(frame: np.ndarray, keypoints: np.ndarray, side: int = 112) -> np.ndarray:
    """The face of `frame` turned and scaled so that its five points lie where ArcFace wants them, (side, side, 3).

    The least-squares similarity transform, which is linear in its four unknowns (Umeyama 1991 without reflection).
    """
    x, y = keypoints.T
    zeros, ones = np.zeros(5), np.ones(5)
    equations = np.concatenate([np.stack([x, -y, ones, zeros], 1), np.stack([y, x, zeros, ones], 1)])
    a, b, shift_x, shift_y = np.linalg.lstsq(equations, (ARCFACE_POINTS * (side / 112)).T.ravel(), rcond=None)[0]
    return cv2.warpAffine(frame, np.array([[a, -b, shift_x], [b, a, shift_y]]), (side, side))
