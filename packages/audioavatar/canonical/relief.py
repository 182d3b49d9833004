"""The canonical avatar from one picture: a relief of its foreground, valid for views within about 20 degrees.

What a picture does not show is made of nothing: the inside of the mouth is a dark sheet and a sheet of teeth behind the
lips, and there is no back.
"""

from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import Avatar, Mouth
from audioavatar.camera import Camera, frontal_camera
from audioavatar.canonical.face import FaceParts, face_parts
from audioavatar.canonical.gestures import (
    BROW,
    EYE_DEPTH,
    EYE_MARGIN,
    LIMB_DEPTH,
    UNLIKE_SKIN,
    Limb,
    covered_body,
    eye_openings,
    eyelids,
    find_limbs,
    gesture_offsets,
)
from audioavatar.canonical.matte import Depth, Matte, filled_backdrop, grabcut_matte, inflated_depth
from audioavatar.canonical.refine import refined
from audioavatar.config import ReliefConfig
from audioavatar.fit.fields import CAVITY_REACH
from audioavatar.particles import Part, Particles, join, round_particles
from perception.faces.detect import Face

TEETH_COLOUR, CAVITY_COLOUR = (0.95, 0.95, 0.92), (0.17, 0.045, 0.055)
_THICKNESS = 0.4  # of a particle along the surface's normal, relative to its width
_STEEPEST = 2.5  # slope of the surface beyond which particles get no longer


def relief_avatar(
    image: np.ndarray,
    face: Face,
    config: ReliefConfig = ReliefConfig(),
    matte: Matte = grabcut_matte,
    depth: Depth = inflated_depth,
) -> Avatar:
    """Build an avatar from an RGB image (H, W, 3) uint8 and the face in it (perception.faces.detect), in its pixels."""
    factor = config.size / max(image.shape[:2])
    image, face = _resized(image, factor), _scaled(face, factor)
    mask = matte(image, face.box)
    parts = face_parts(image, face, config)
    height, width = mask.shape
    z = depth(image, mask, face.box)
    camera = frontal_camera(width, height)
    backdrop = torch.from_numpy(filled_backdrop(image, mask).astype(np.float32) / 255)
    unlike = _lab_distance(image, parts.skin)
    openings, limbs = eye_openings(image, unlike, parts), find_limbs(unlike, mask, parts.box)
    skin = _surface(image, mask, z, parts, limbs, openings, camera, config)
    half = torch.tensor([width / 2, height / 2])
    corners = parts.line[-1] - parts.line[0]
    mouth = Mouth(
        torch.from_numpy(parts.mouth_centre) - half,
        parts.mouth_half_width,
        float(np.arctan2(corners[1], corners[0])),
        torch.from_numpy(parts.line) - half,
    )
    lids, closing = eyelids(image, openings, config.fine_spacing, half, z)
    hidden = join(_sheets(mouth, z, config), _behind_limbs(image, mask, z, limbs, parts.box, camera, config), lids)
    particles = refined(skin, hidden, torch.from_numpy(image), backdrop, torch.from_numpy(mask), camera, config)
    closing = torch.cat([torch.zeros(len(particles) - len(lids), 2), closing])
    gestures = gesture_offsets(particles, closing, parts, limbs, half)
    return Avatar(particles, backdrop, mouth, torch.from_numpy(parts.box), gestures, "relief")


def _resized(image: np.ndarray, factor: float) -> np.ndarray:
    """The image at another size, with even sides as video needs them."""
    height, width = (2 * max(1, round(side * factor / 2)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)


def _scaled(face: Face, factor: float) -> Face:
    points = None if face.keypoints is None else face.keypoints * np.float32(factor)
    return replace(face, box=face.box * np.float32(factor), keypoints=points)


def _surface(
    image: np.ndarray,
    mask: np.ndarray,
    z: np.ndarray,
    parts: FaceParts,
    limbs: tuple[Limb | None, Limb | None],
    openings: np.ndarray,
    camera: Camera,
    config: ReliefConfig,
) -> Particles:
    """What the picture shows: a particle every few pixels, turned along the surface, in the colour of its pixels."""
    pixel = np.ones((3, 3), np.uint8)
    # The silhouette is fine too: wide particles would spill over it.
    rim = mask & ~cv2.erode(np.pad(mask, ((0, 2), (2, 2)), mode="edge").astype(np.uint8), pixel)[:-2, 2:-2].astype(bool)
    fine = (_fine_area(mask.shape, parts) & mask) | rim
    for limb in limbs:
        fine |= limb.mask if limb is not None else False
    dropped = np.zeros_like(mask) if config.keep_lip_line else parts.dark
    # Coarse ones reach under the border of the fine ones, so that no gap is left between their grids.
    coarse = mask & ~cv2.erode(fine.astype(np.uint8), pixel).astype(bool) & ~rim
    grids = []
    for area, spacing in ((fine & ~dropped, config.fine_spacing), (coarse, config.spacing)):
        y, x = np.mgrid[spacing / 2 : mask.shape[0] : spacing, spacing / 2 : mask.shape[1] : spacing]
        inside = area[y.astype(int), x.astype(int)]
        grids.append(np.stack([x[inside], y[inside], np.full(int(inside.sum()), spacing)], axis=1))
    x, y, spacing = np.concatenate(grids).astype(np.float32).T
    slope_y, slope_x = (np.clip(each, -_STEEPEST, _STEEPEST) for each in np.gradient(z))

    def sample(plane: np.ndarray) -> np.ndarray:
        # Bilinear, at pixel centres: remap counts from the middle of the first pixel.
        return cv2.remap(plane, (x - 0.5)[None], (y - 0.5)[None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)[0]

    colour = torch.from_numpy(sample(image.astype(np.float32) / 255))
    unlike = sample(_lab_distance(image, parts.skin))
    part = torch.from_numpy(_labels(x, y, unlike, parts, limbs))
    seen = np.zeros(len(x), bool)
    for cx, cy, half_w, half_h in openings:
        seen |= ((x - cx) / (half_w + EYE_MARGIN)) ** 2 + ((y - cy) / (half_h + EYE_MARGIN)) ** 2 < 1
    before = (part >= Part.LEFT_ARM) & (part <= Part.RIGHT_HAND)
    layer = torch.from_numpy(np.where(seen, EYE_DEPTH, 0.0).astype(np.float32)) + LIMB_DEPTH * before
    mean = camera.back_project(torch.from_numpy(np.stack([x, y], axis=1)), torch.from_numpy(sample(z)) + layer)
    round_ones = round_particles(mean, 1.0, colour, part, config.opacity)
    deviation = torch.from_numpy(spacing) * config.deviation
    flat = torch.isin(part, torch.tensor([Part.UPPER_LIP, Part.LOWER_LIP]))
    slopes = torch.from_numpy(np.stack([sample(slope_x), sample(slope_y)], axis=1).astype(np.float32))
    return _along_surface(round_ones, deviation, torch.where(flat[:, None], 0.0, slopes))


def _fine_area(shape: tuple[int, ...], parts: FaceParts) -> np.ndarray:
    """Mask (H, W) of what moves most: mouth with a margin, eyes and brows."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32) + 0.5
    half, (cx, cy) = parts.mouth_half_width, parts.mouth_centre
    area = ((x - cx) / (1.35 * half)) ** 2 + ((y - cy) / (0.95 * half)) ** 2 < 1
    for ex, ey in parts.eyes:
        area |= ((x - ex) / (1.35 * parts.eye_radius)) ** 2 + ((y - ey) / parts.eye_radius) ** 2 < 1
        brow = ey - BROW * parts.eye_radius
        area |= ((x - ex) / (1.1 * parts.eye_radius)) ** 2 + ((y - brow) / (0.6 * parts.eye_radius)) ** 2 < 1
    return area


def _lab_distance(image: np.ndarray, skin: np.ndarray) -> np.ndarray:
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    return np.linalg.norm((lab - skin) * np.array([0.5, 1, 1], np.float32), axis=-1).astype(np.float32)


def _labels(
    x: np.ndarray,
    y: np.ndarray,
    unlike_skin: np.ndarray,
    parts: FaceParts,
    limbs: tuple[Limb | None, Limb | None],
) -> np.ndarray:
    """A Part for each point (N,) of the picture."""
    x0, y0, x1, y1 = parts.box
    middle = np.interp(x, parts.line[:, 0], parts.line[:, 1])
    labels = np.where(y > middle, Part.FACE_LOWER, Part.FACE_UPPER)
    labels[unlike_skin > UNLIKE_SKIN] = Part.HAIR
    chin = (x0 + x1) / 2, y1
    # Below the curve of the chin.
    neck = (y > chin[1] - 0.35 * (np.abs(x - chin[0]) / (0.5 * (x1 - x0))) ** 2 * (y1 - y0)) & (y > middle)
    labels[neck] = np.where(y[neck] > y1 + 0.25 * (y1 - y0), Part.BODY, Part.NECK)
    for (ex, ey), part in zip(parts.eyes, (Part.LEFT_EYE, Part.RIGHT_EYE), strict=True):
        labels[((x - ex) / (1.35 * parts.eye_radius)) ** 2 + ((y - ey) / parts.eye_radius) ** 2 < 1] = part
    lips = (parts.lips | parts.dark)[y.astype(int), x.astype(int)]
    labels[lips] = np.where(y[lips] > middle[lips], Part.LOWER_LIP, Part.UPPER_LIP)
    hands = (Part.LEFT_HAND, Part.LEFT_ARM), (Part.RIGHT_HAND, Part.RIGHT_ARM)
    for limb, (hand, arm) in zip(limbs, hands, strict=True):
        if limb is not None:
            labels[limb.arm[y.astype(int), x.astype(int)]] = arm
            labels[limb.mask[y.astype(int), x.astype(int)]] = hand
    return labels.astype(np.int64)


def _along_surface(particles: Particles, deviation: Tensor, slope: Tensor) -> Particles:
    """Turn and stretch particles along a surface z(x, y) of `slope` (N, 2), so that from the front they stay round."""
    zero, one = torch.zeros_like(deviation), torch.ones_like(deviation)
    across = torch.stack([one, zero, slope[:, 0]], dim=1)
    down = torch.stack([zero, one, slope[:, 1]], dim=1)
    first = torch.nn.functional.normalize(across, dim=1)
    second = down - (down * first).sum(1, keepdim=True) * first
    lengths = torch.stack([across.norm(dim=1), second.norm(dim=1), torch.full_like(deviation, _THICKNESS)], dim=1)
    second = torch.nn.functional.normalize(second, dim=1)
    axes = torch.stack([first, second, torch.linalg.cross(first, second)], dim=2)
    return replace(particles, quaternion=_quaternion(axes), log_scale=(deviation[:, None] * lengths).log())


def _quaternion(matrix: Tensor) -> Tensor:
    """Rotations (N, 3, 3) by less than half a turn -> quaternions (N, 4)."""
    w = (1 + matrix.diagonal(dim1=1, dim2=2).sum(1)).clamp_min(1e-6).sqrt() / 2
    pairs = ((2, 1), (0, 2), (1, 0))
    return torch.stack([w, *((matrix[:, a, b] - matrix[:, b, a]) / (4 * w) for a, b in pairs)], dim=1)


def _sheets(mouth: Mouth, z: np.ndarray, config: ReliefConfig) -> Particles:
    """Teeth and, behind them, the dark of the mouth, as sheets that follow the skin z (H, W) behind it."""
    step = config.fine_spacing / mouth.half_width
    sheets = []
    # In half widths of the mouth: half width, top, bottom; px behind the skin.
    line = -config.teeth_above_line
    for part, (half, top, bottom), behind, colour in (
        (Part.TEETH, (0.68, line - 0.5, line), 0.12, TEETH_COLOUR),
        (Part.CAVITY, (0.84, -CAVITY_REACH, CAVITY_REACH), 0.25, CAVITY_COLOUR),
    ):
        y, x = torch.meshgrid(
            torch.arange(top, bottom, step), torch.arange(-half, half + step / 2, step), indexing="ij"
        )
        keep = (x / (half + step / 2)) ** 2 + (y / 0.62) ** 2 * (part == Part.CAVITY) < 1
        place = mouth.centre + mouth.half_width * mouth.to_world(torch.stack([x[keep], y[keep]], dim=1))
        column, row = (place + torch.tensor([z.shape[1] / 2, z.shape[0] / 2])).numpy().astype(int).T
        depth = torch.from_numpy(z[row.clip(0, z.shape[0] - 1), column.clip(0, z.shape[1] - 1)])
        mean = torch.cat([place, (depth + behind * mouth.half_width)[:, None]], dim=1)
        deviation = torch.tensor([1.0, 1.0, _THICKNESS]) * config.deviation * config.fine_spacing
        labels = torch.full((len(place),), int(part))
        sheets.append(
            round_particles(mean, deviation, torch.tensor(colour).expand(len(place), 3), labels, config.opacity)
        )
    return join(*sheets)


def _behind_limbs(
    image: np.ndarray,
    mask: np.ndarray,
    z: np.ndarray,
    limbs: tuple[Limb | None, Limb | None],
    box: np.ndarray,
    camera: Camera,
    config: ReliefConfig,
) -> Particles:
    """The trunk where hands and arms hide it, as a sheet in the colours around them."""
    hidden, filled = covered_body(image, mask, limbs, box)
    spacing = config.spacing
    y, x = np.mgrid[spacing / 2 : mask.shape[0] : spacing, spacing / 2 : mask.shape[1] : spacing].astype(np.float32)
    inside = hidden[y.astype(int), x.astype(int)]
    row, column = y[inside].astype(int), x[inside].astype(int)
    place = torch.from_numpy(np.stack([x[inside], y[inside]], axis=1))
    mean = camera.back_project(place, torch.from_numpy(z[row, column]))
    colour = torch.from_numpy(filled[row, column].astype(np.float32) / 255)
    deviation = torch.tensor([1.0, 1.0, _THICKNESS]) * config.deviation * spacing
    return round_particles(mean, deviation, colour, torch.full((len(mean),), int(Part.BODY)), config.opacity)
