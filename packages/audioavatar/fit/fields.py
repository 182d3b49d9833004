"""Fields of motion around a mouth: four numbers per frame that move lips, jaw, corners and teeth of any avatar."""

from dataclasses import replace

import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.particles import Part

FIELDS = ("upper lip up", "lower lip and jaw down", "corners out", "teeth down")
_REACH = 0.8  # half widths of the mouth over which the skin follows its lip
CAVITY_REACH = 0.45
"""Half widths of the mouth that its dark reaches above and below the lip line."""
_LARGEST = 1.4  # twice the growth of a particle: by no more than a factor of two
_JAW = 0.45  # share of the lower lip's way that the chin goes


def mouth_fields(avatar: Avatar) -> Tensor:
    """The four fields of `FIELDS` as offsets (4, N, 2), 1 px each where it is largest."""
    part, xy, mouth = avatar.particles.part, avatar.particles.mean[:, :2], avatar.mouth
    across = mouth.local(xy)[:, 0]
    below = mouth.below_line(xy) / mouth.half_width
    upper = (part == Part.UPPER_LIP) | ((part == Part.FACE_UPPER) & (below < 0))
    lower = (part == Part.LOWER_LIP) | ((part == Part.FACE_LOWER) & (below > 0))
    lips = (part == Part.UPPER_LIP) | (part == Part.LOWER_LIP)
    # Half a cosine from corner to corner; skin follows the less, the farther it is from the lip.
    arch = torch.where(across.abs() < 1, (torch.pi / 2 * across).cos(), 0.0)
    near = torch.where(lips, 1.0, (-(below / _REACH).square()).exp())
    jaw = _JAW * (-(across / 1.6).pow(4)).exp()
    chin = torch.where(part == Part.NECK, (1.6 - below).clamp(0, 1), 1.0) * ((part == Part.NECK) | lower)
    # The dark of the mouth stretches from one lip to the other.
    sheet = (part == Part.CAVITY).to(arch) * arch
    depth = (0.5 + below / (2 * CAVITY_REACH)).clamp(0, 1)
    up = -1.0 * (upper * arch * near + sheet * (1 - depth))
    down = sheet * depth + chin * torch.maximum(arch * near, jaw * (below / 0.3).clamp(0, 1))
    beyond = (across.abs() - 1).clamp_min(0)
    out = across.clamp(-1, 1) * (-(beyond / 0.4).square()).exp() * near * (upper | lower | (part == Part.CAVITY))
    teeth = (part == Part.TEETH).to(up)
    zero = torch.zeros_like(up)
    local = torch.stack([torch.stack(pair, dim=-1) for pair in ((zero, up), (zero, down), (out, zero), (zero, teeth))])
    return mouth.to_world(local)


def field_slopes(avatar: Avatar) -> Tensor:
    """How the fields change with the place (4, N, 2, 2): of each offset in x and y, along x and y."""
    step, mean = 0.5, avatar.particles.mean
    slopes = []
    for axis in (0, 1):
        offset = torch.zeros(3)
        offset[axis] = step
        ahead, behind = (
            mouth_fields(replace(avatar, particles=replace(avatar.particles, mean=mean + sign * offset)))
            for sign in (1, -1)
        )
        slopes.append((ahead - behind) / (2 * step))
    return torch.stack(slopes, dim=-1)


def stretch(slopes: Tensor, fields: Tensor) -> Tensor:
    """How much amounts (T, 4) of the fields pull particles apart, as growth (T, N, 2) of log scales that closes the
    gaps: a stretch is followed, a squeeze is not."""
    # Rows of the gradient of the deformation: its lengths are what a round particle becomes.
    gradient = torch.einsum("tf,fnda->tnda", fields, slopes) + torch.eye(2)
    return gradient.square().sum(-1).log().clamp(0, _LARGEST) / 2
