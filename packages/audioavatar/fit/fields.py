"""Fields of motion around a mouth: four numbers per frame that move lips, jaw, corners and teeth of any avatar."""

import torch
from torch import Tensor

from audioavatar.avatar import Avatar
from audioavatar.particles import Part

FIELDS = ("upper lip up", "lower lip and jaw down", "corners out", "teeth down")
_REACH = 0.8  # half widths of the mouth over which the skin follows its lip
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
    up, down = -1.0 * upper * arch * near, chin * torch.maximum(arch * near, jaw * (below / 0.3).clamp(0, 1))
    beyond = (across.abs() - 1).clamp_min(0)
    out = across.clamp(-1, 1) * (-(beyond / 0.4).square()).exp() * near * (upper | lower | (part == Part.CAVITY))
    teeth = (part == Part.TEETH).to(up)
    zero = torch.zeros_like(up)
    local = torch.stack([torch.stack(pair, dim=-1) for pair in ((zero, up), (zero, down), (out, zero), (zero, teeth))])
    return mouth.to_world(local)
