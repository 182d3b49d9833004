"""Gestures of a portrait: lids that close, brows that rise and, where hands are seen, arms that swing; with the
particles that they need and that a picture does not show: folded lids, and the body behind hands.

Legend: H, W of the picture; coordinates are its pixels until `gesture_offsets`, which is in those of the world.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import GESTURES
from audioavatar.canonical.face import FaceParts
from audioavatar.particles import Part, Particles, join, round_particles

UNLIKE_SKIN = 18.0  # distance in Lab from which a pixel is not skin
_LIKE_SKIN = 14.0
BROW = 1.22  # radii of an eye that brows lie above it
_BROW_REACH = (0.10, 0.16)  # distances of the eyes: reach of their motion, up and down
_SHOULDER, _ELBOW = (0.62, 0.42), (0.80, -0.10)  # widths and heights of the face: from its middle, below chin and hand
_ELBOW_SHARE = 0.3  # of the hand's way that the elbow goes
LID_DEPTH, EYE_DEPTH, LIMB_DEPTH = 0.3, 1.2, -3.0
"""px behind the skin: folded lids, the eyes behind them; and hands and arms before the body."""
EYE_MARGIN = 1.0  # px around what is seen of an eye that lie behind its lids
_FOLD = 1.3  # spacings beyond that where they are folded
_LID_MARGIN = 1.1  # spacings that lids reach beyond what is seen of the eye
_ARM = 0.11  # widths of the face: half the thickness of an arm


@dataclass(frozen=True)
class Limb:
    """A hand that is seen: `mask` (H, W), `arm` (H, W) without it, `path` (3, 2): shoulder, elbow, hand."""

    mask: np.ndarray
    arm: np.ndarray
    path: np.ndarray


def eye_openings(image: np.ndarray, unlike_skin: np.ndarray, parts: FaceParts) -> np.ndarray:
    """What is seen of both eyes between their lids, (2, 4): centre x and y, half width and half height."""
    y, x = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32) + 0.5
    found = []
    for ex, ey in parts.eyes:
        near = ((x - ex) / (1.35 * parts.eye_radius)) ** 2 + ((y - ey) / parts.eye_radius) ** 2 < 1
        _, pieces = cv2.connectedComponents((near & (unlike_skin > UNLIKE_SKIN)).astype(np.uint8))
        row, column = int(ey.clip(0, len(image) - 1)), int(ex.clip(0, image.shape[1] - 1))
        seen = (pieces == pieces[row, column]) & near if pieces[row, column] else near
        rows, columns = np.nonzero(seen)
        x0, x1, y0, y1 = columns.min(), columns.max() + 1, rows.min(), rows.max() + 1
        found.append([(x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2, (y1 - y0) / 2])
    return np.array(found, np.float32)


def find_limbs(unlike_skin: np.ndarray, mask: np.ndarray, box: np.ndarray) -> tuple[Limb | None, Limb | None]:
    """The hand left and right of the face's middle: the largest patch of skin below the neck, of a hand's size."""
    x0, y0, x1, y1 = (float(v) for v in box)
    width, height, middle = x1 - x0, y1 - y0, (x0 + x1) / 2
    y, x = np.mgrid[: mask.shape[0], : mask.shape[1]].astype(np.float32) + 0.5
    skin = mask & (unlike_skin < _LIKE_SKIN) & (y > y1 + 0.45 * height)
    _, pieces, statistics, centres = cv2.connectedComponentsWithStats(skin.astype(np.uint8), connectivity=4)
    limbs: list[Limb | None] = []
    for side in (-1, 1):
        best, size = 0, (0.12 * width) ** 2
        for piece in range(1, len(statistics)):
            _, _, piece_w, piece_h, area = statistics[piece]
            compact = area > 0.5 * piece_w * piece_h and max(piece_w, piece_h) < 0.6 * width
            if compact and (centres[piece][0] - middle) * side > 0 and area > size:
                best, size = piece, float(area)
        if not best:
            limbs.append(None)
            continue
        hand = cv2.dilate((pieces == best).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool) & mask
        at = centres[best] + 0.5
        shoulder = (middle + side * _SHOULDER[0] * width, y1 + _SHOULDER[1] * height)
        elbow = (middle + side * _ELBOW[0] * width, at[1] + _ELBOW[1] * height)
        path = np.array([shoulder, elbow, at], np.float32)
        near = _along(np.stack([x, y], axis=-1), path)[0] < _ARM * width
        limbs.append(Limb(hand, near & mask & ~hand, path))
    return limbs[0], limbs[1]


def _along(points: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distance (...) of points (..., 2) from a path (3, 2), and where along it in 0..2 the nearest point lies."""
    distances, places = [], []
    for number, (start, end) in enumerate(zip(path[:-1], path[1:], strict=True)):
        edge = end - start
        share = (((points - start) @ edge) / max(float(edge @ edge), 1e-6)).clip(0, 1)
        distances.append(np.linalg.norm(points - start - share[..., None] * edge, axis=-1))
        places.append(number + share)
    nearest = np.argmin(distances, axis=0)[None]
    return tuple(np.take_along_axis(np.stack(each), nearest, axis=0)[0] for each in (distances, places))  # type: ignore[return-value]


def lids(
    opening: np.ndarray, colour: np.ndarray, lash: np.ndarray, spacing: float, side: int
) -> tuple[Particles, Tensor]:
    """Folded lids of an eye with opening (4,), on the `side` 0, the left as seen, or 1: particles at rest in x and y (z
    is 0), and their way (N, 2) to where they meet, at half the eye's height."""
    cx, cy, half_w, half_h = (float(v) for v in opening)
    reach_w, reach_h = half_w + _LID_MARGIN * spacing, half_h + _LID_MARGIN * spacing
    y, x = torch.meshgrid(
        torch.arange(-reach_h, reach_h + spacing / 2, spacing), torch.arange(-reach_w, reach_w + spacing / 2, spacing),
        indexing="ij",
    )  # fmt: skip
    inside = (x / (reach_w + spacing / 2)).square() + (y / (reach_h + spacing / 2)).square() < 1
    x, y = x[inside], y[inside]
    fold = reach_h * (1 - (x / (reach_w + spacing)).square()).sqrt() + _FOLD * spacing
    upper = y <= 0
    rest = torch.where(upper, -fold, fold)
    meeting = y.abs() <= 0.5 * spacing
    tint = torch.where(meeting[:, None], torch.from_numpy(lash), torch.from_numpy(colour))
    parts = (Part.LEFT_UPPER_LID, Part.LEFT_LOWER_LID) if side == 0 else (Part.RIGHT_UPPER_LID, Part.RIGHT_LOWER_LID)
    label = torch.where(upper, int(parts[0]), int(parts[1]))
    # What lies nearer to the edge of the lid lies deeper in its fold.
    depth = 0.02 * (1 - (y.abs() / reach_h)).clamp(0, 1)
    mean = torch.stack([x + cx, rest + cy, depth], dim=1)
    deviation = torch.tensor([0.75, 0.75, 0.4]) * spacing
    return round_particles(mean, deviation, tint, label, 0.98), torch.stack([torch.zeros_like(y), y - rest], dim=1)


def gesture_offsets(
    particles: Particles, closing: Tensor, parts: FaceParts, limbs: tuple[Limb | None, Limb | None], half: Tensor
) -> Tensor:
    """The offsets (G, N, 2) of `GESTURES`: `closing` (N, 2) of the lids; per px the others. `half` (2,) is the middle
    of the picture in its pixels."""
    xy, part = particles.mean[:, :2] + half, particles.part
    offsets = torch.zeros(len(GESTURES), len(particles), 2)
    offsets[0] = closing
    apart = float(np.linalg.norm(parts.eyes[1] - parts.eyes[0]))
    face = torch.isin(part, torch.tensor([int(Part.FACE_UPPER), int(Part.HAIR)]))
    lift = torch.zeros(len(particles))
    for ex, ey in parts.eyes:
        above = float(ey) - BROW * parts.eye_radius - xy[:, 1]
        reach = torch.where(above > 0, *_BROW_REACH) * apart
        lift = torch.maximum(lift, (-(above / reach).square() - ((xy[:, 0] - float(ex)) / (0.36 * apart)).pow(4)).exp())
    offsets[1, :, 1] = -lift * face
    hands = (Part.LEFT_HAND, Part.LEFT_ARM), (Part.RIGHT_HAND, Part.RIGHT_ARM)
    for number, (limb, (hand, arm)) in enumerate(zip(limbs, hands, strict=True)):
        if limb is None:
            continue
        place = torch.from_numpy(_along(xy.numpy(), limb.path)[1]).float()
        share = torch.where(place < 1, _ELBOW_SHARE * place, _ELBOW_SHARE + (1 - _ELBOW_SHARE) * (place - 1))
        share = torch.where(part == hand, 1.0, share * (part == arm))
        offsets[2 + 2 * number, :, 0], offsets[3 + 2 * number, :, 1] = share, share
    return offsets


def covered_body(
    image: np.ndarray, mask: np.ndarray, limbs: tuple[Limb | None, Limb | None], box: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where hands and arms hide the trunk (H, W), and the image (H, W, 3) with the trunk drawn in there."""
    hidden = np.zeros_like(mask)
    for limb in limbs:
        if limb is not None:
            hidden |= limb.mask | limb.arm
    if not hidden.any():
        return hidden, image
    width, middle = float(box[2] - box[0]), float(box[0] + box[2]) / 2
    # The backdrop beside the person must not run in.
    grown = cv2.dilate(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    filled = cv2.inpaint(image, (grown | ~mask).astype(np.uint8), 3, cv2.INPAINT_TELEA)
    x = np.arange(mask.shape[1]) + 0.5
    return hidden & (np.abs(x - middle) < _SHOULDER[0] * width), filled


def eyelids(
    image: np.ndarray, openings: np.ndarray, spacing: float, half: Tensor, depth: np.ndarray
) -> tuple[Particles, Tensor]:
    """Both eyes' folded lids in the world, behind the skin of relief `depth` (H, W), and their way (N, 2)."""
    groups, ways = [], []
    for side, opening in enumerate(openings):
        cx, cy, half_w, half_h = (float(v) for v in opening)
        window = image[max(0, int(cy - half_h)) : int(cy + half_h) + 1, max(0, int(cx - half_w)) : int(cx + half_w) + 1]
        # Skin from below the eye, where no brow is.
        below = int(np.clip(cy + half_h + 2 * spacing, 0, len(image) - 1))
        skin = np.median(image[below, max(0, int(cx - half_w / 2)) : int(cx + half_w / 2) + 1], axis=0) / 255
        pixels = window.reshape(-1, 3)
        dark = pixels[pixels.sum(1).argsort()[: max(1, len(pixels) // 8)]].mean(0) / 255
        lash = 0.5 * dark + 0.5 * skin
        group, way = lids(opening, skin.astype(np.float32), lash.astype(np.float32), spacing, side)
        places = torch.stack([group.mean[:, :2], group.mean[:, :2] + way]).numpy().astype(int)
        columns, rows = (places[..., axis].clip(0, depth.shape[1 - axis] - 1) for axis in (0, 1))
        # Behind the skin both where the lids are folded and where they meet.
        z = group.mean[:, 2] + torch.from_numpy(depth[rows, columns].max(0)) + LID_DEPTH
        mean = torch.cat([group.mean[:, :2] - half, z[:, None]], dim=1)
        groups.append(Particles(**{**vars(group), "mean": mean}))
        ways.append(way)
    return join(*groups), torch.cat(ways)
