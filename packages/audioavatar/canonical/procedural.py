"""An analytic person of ellipsoids and capsules, with known labels, colours and motions; needs no file.

The subject of tests and a stand-in where there is no picture. Sizes are in pixels of a 64 px high picture.
"""

import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar, Mouth
from audioavatar.particles import Part, Particles, regions, round_particles

# Part: centre, half axes, colour, particles per area relative to the body's (8 for hands, 16 for faces, twice that at
# mouth and lids: the densities of every builder).
Solid = tuple[int, tuple[float, ...], tuple[float, ...], tuple[float, ...], float]
_SOLIDS: tuple[Solid, ...] = (
    (Part.BODY, (0, 22, 0), (13, 11, 6), (0.20, 0.35, 0.75), 1),
    (Part.NECK, (0, 10, 0), (3.5, 5, 3.5), (0.75, 0.55, 0.45), 1),
    (Part.HAIR, (0, -13, 2), (9.5, 7, 8), (0.30, 0.18, 0.10), 4),
    (Part.LEFT_EYE, (-3.5, -6, -7.5), (1.6, 1.1, 1), (0.95, 0.95, 0.95), 32),
    (Part.RIGHT_EYE, (3.5, -6, -7.5), (1.6, 1.1, 1), (0.95, 0.95, 0.95), 32),
    (Part.LEFT_UPPER_LID, (-3.5, -7.3, -8), (1.8, 0.5, 0.6), (0.65, 0.45, 0.38), 32),
    (Part.RIGHT_UPPER_LID, (3.5, -7.3, -8), (1.8, 0.5, 0.6), (0.65, 0.45, 0.38), 32),
    (Part.LEFT_LOWER_LID, (-3.5, -4.8, -8), (1.8, 0.4, 0.6), (0.7, 0.5, 0.42), 32),
    (Part.RIGHT_LOWER_LID, (3.5, -4.8, -8), (1.8, 0.4, 0.6), (0.7, 0.5, 0.42), 32),
    (Part.UPPER_LIP, (0, 1.4, -6.6), (3.6, 0.6, 0.9), (0.80, 0.30, 0.32), 32),
    (Part.LOWER_LIP, (0, 2.6, -6.4), (3.6, 0.6, 0.9), (0.72, 0.25, 0.28), 32),
    (Part.LEFT_ARM, (-16, 19, -1), (2.5, 7, 2.5), (0.18, 0.30, 0.65), 1),
    (Part.RIGHT_ARM, (16, 19, -1), (2.5, 7, 2.5), (0.18, 0.30, 0.65), 1),
    (Part.LEFT_HAND, (-16, 27, -2), (2.2, 2.2, 1), (0.80, 0.60, 0.50), 8),
    (Part.RIGHT_HAND, (16, 27, -2), (2.2, 2.2, 1), (0.80, 0.60, 0.50), 8),
)
_HEAD = (0.0, -4.0, 0.0), (8.0, 10.0, 8.0), (0.85, 0.65, 0.55)
_LIP_LINE = 2.0  # y between the lips
_FINGER = (0.55, 1.8, 0.5)  # half axes
_FACE_DENSITY, _HAND_DENSITY = 16.0, 8.0


def procedural_avatar(count: int = 400, seed: int = 0) -> Particles:
    """About `count` particles on the surfaces of the analytic person; the same arguments give the same ones."""
    generator = torch.Generator().manual_seed(seed)
    solids = [*_SOLIDS, *_fingers()]
    head = (Part.FACE_UPPER, *_HEAD, _FACE_DENSITY)
    shares = torch.tensor([solid[4] * _area(solid[2]) for solid in (*solids, head)])
    counts = (shares / shares.sum() * count).round().clamp_min(3).int().tolist()
    means, colours, parts = [], [], []
    for (part, centre, axes, colour, _), number in zip((*solids, head), counts, strict=True):
        points = torch.tensor(centre, dtype=torch.float32) + _surface(torch.tensor(axes), number, generator)
        kind = torch.full((number,), int(part))
        if part == Part.FACE_UPPER:
            kind[points[:, 1] > _LIP_LINE] = Part.FACE_LOWER
        shade = 1 + 0.12 * torch.randn(number, 1, generator=generator)
        means.append(points)
        colours.append((torch.tensor(colour) * shade).clamp(0, 1))
        parts.append(kind)
    mean, labels = torch.cat(means), torch.cat(parts)
    spacing = {0: 1.6, 1: 0.8, 2: 0.8}  # by region: coarse where few particles are
    factor = (400 / max(count, 1)) ** 0.5
    deviation = torch.tensor([spacing[r] for r in regions(labels).tolist()])[:, None] * factor
    return round_particles(mean, deviation.expand(-1, 3), torch.cat(colours), labels, 0.9)


def procedural_person(count: int = 400, seed: int = 0) -> Avatar:
    """The analytic person as an avatar of 64x64 px, before a grey backdrop. Of the gestures it has the blink and the
    swing of both arms, per px of the hands."""
    particles = procedural_avatar(count, seed)
    basis, (corner, _) = motion_basis(particles), lip_line()
    gestures = torch.zeros(len(GESTURES), len(particles), 2)
    gestures[0] = basis["blink"][:, :2]
    for number, side in ((3, -1), (5, 1)):
        gestures[number] = basis["swing"][:, :2] / -4 * (particles.mean[:, 0] * side > 0)[:, None]
    line = torch.stack([torch.linspace(float(corner[0]), -float(corner[0]), 9), torch.full((9,), _LIP_LINE)], dim=1)
    mouth = Mouth(torch.tensor([0.0, _LIP_LINE]), -float(corner[0]), 0.0, line)
    (x, y, _), (half_w, half_h, _), _ = _HEAD
    face = torch.tensor([x - half_w, y - half_h, x + half_w, y + half_h]) + 32
    return Avatar(particles, torch.full((64, 64, 3), 0.5), mouth, face, gestures, "procedural")


def motion_basis(particles: Particles) -> dict[str, Tensor]:
    """Known motions, by name, as offsets (N, 3) in px at full swing: jaw, rounding, blink, turn, swing, flex."""
    x, y, z = particles.mean.unbind(1)
    part = particles.part

    def of(*parts: int) -> Tensor:
        return torch.isin(part, torch.tensor([int(p) for p in parts])).float()

    zero = torch.zeros_like(x)
    fades = ((y - _LIP_LINE) / 4).clamp(0, 1)
    lower = of(Part.LOWER_LIP) + of(Part.FACE_LOWER) * (1 - 0.4 * fades) * _front(z)
    lips, corner = of(Part.UPPER_LIP, Part.LOWER_LIP), x / 3.6
    lids = of(Part.LEFT_UPPER_LID, Part.RIGHT_UPPER_LID)
    head = ((part >= Part.FACE_UPPER) & (part <= Part.RIGHT_LOWER_LID)).float()
    fingers = (part >= Part.LEFT_FINGER_1).float()
    arms = of(Part.LEFT_ARM, Part.RIGHT_ARM)
    hands = of(Part.LEFT_HAND, Part.RIGHT_HAND) + fingers
    return {
        "jaw": torch.stack([zero, 3 * lower, zero], 1),
        "rounding": torch.stack([-1.2 * corner * lips, zero, -0.6 * lips], 1),
        "blink": torch.stack([zero, 1.8 * lids, zero], 1),
        "turn": torch.stack([2.0 * head, 0.3 * head * x / 8, zero], 1),
        "swing": torch.stack([zero, -4 * hands - 2 * arms * ((y - 12) / 14).clamp(0, 1), zero], 1),
        "flex": torch.stack([zero, -1.2 * fingers * ((y - 28) / 4).clamp(0, 1), -1.0 * fingers], 1),
    }


def lip_line() -> Tensor:
    """The cut between the lips, (2, 2) in x and y."""
    return torch.tensor([[-3.6, _LIP_LINE], [3.6, _LIP_LINE]])


def _front(z: Tensor) -> Tensor:
    return (-z / 8).clamp(0, 1)


def _fingers() -> list[Solid]:
    fingers: list[Solid] = []
    for side, first in ((-1, Part.LEFT_FINGER_1), (1, Part.RIGHT_FINGER_1)):
        for number in range(5):
            centre = (side * (16 + 1.25 * (number - 2)), 30 - 0.3 * abs(number - 2), -2)
            fingers.append((first + number, centre, _FINGER, (0.78, 0.58, 0.48), _HAND_DENSITY))
    return fingers


def _area(axes: tuple[float, ...]) -> float:
    """Surface of an ellipsoid, within 1.1 % (Thomsen's formula)."""
    a, b, c = axes
    p = 1.6075
    return 4 * torch.pi * (((a * b) ** p + (a * c) ** p + (b * c) ** p) / 3) ** (1 / p)


def _surface(axes: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Points (count, 3), evenly by area: directions are kept in proportion to how they are stretched."""
    spare = torch.nn.functional.normalize(torch.randn(8 * count, 3, generator=generator), dim=1)
    stretch = (spare / axes).norm(dim=1)
    keep = torch.multinomial(stretch, count, generator=generator)
    return spare[keep] * axes
