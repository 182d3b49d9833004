"""Gaussian particles as one structure of arrays, their labels, and rotations of them.

Legend: N particles, T frames. Axes as of a camera: x to the right of the picture, y down, z away from the viewer. The
unit of length is a pixel of the picture that the avatar was built from; the subject's silhouette lies at z = 0.
"""

from dataclasses import dataclass, fields, replace
from enum import IntEnum

import torch
from torch import Tensor


class Part(IntEnum):
    """What a particle belongs to; left and right as seen in the picture."""

    BODY = 0
    NECK = 1
    FACE_UPPER = 2  # skin above the lip line
    FACE_LOWER = 3  # skin below it: chin and jaw
    HAIR = 4
    UPPER_LIP = 5
    LOWER_LIP = 6
    TEETH = 7
    CAVITY = 8  # what is dark behind the lips
    LEFT_EYE = 9
    RIGHT_EYE = 10
    LEFT_UPPER_LID = 11
    LEFT_LOWER_LID = 12
    RIGHT_UPPER_LID = 13
    RIGHT_LOWER_LID = 14
    LEFT_ARM = 15
    RIGHT_ARM = 16
    LEFT_HAND = 17
    RIGHT_HAND = 18
    LEFT_FINGER_1 = 20
    LEFT_FINGER_5 = 24
    RIGHT_FINGER_1 = 25
    RIGHT_FINGER_5 = 29


BODY, FACE, HAND = 0, 1, 2
"""Regions: what moves slowly, what speaks, what gestures."""

_HANDS = (*range(Part.LEFT_HAND, Part.RIGHT_HAND + 1), *range(Part.LEFT_FINGER_1, Part.RIGHT_FINGER_5 + 1))
_FACES = range(Part.FACE_UPPER, Part.RIGHT_LOWER_LID + 1)
SHEETS = (Part.TEETH, Part.CAVITY)
"""Parts inside the mouth, which nothing outside them may pull along."""


@dataclass(frozen=True)
class Particles:
    """N Gaussians: `mean` (N, 3), unit `quaternion` (N, 4) w first, `log_scale` (N, 3), `opacity` (N,) as logit,
    `colour` (N, 3) in 0..1 (spherical harmonics of degree 0 only: one near-frontal camera shows no more), and `part`
    (N,) int64, a `Part` each. Of moved particles the first three have a leading axis of T frames."""

    mean: Tensor
    quaternion: Tensor
    log_scale: Tensor
    opacity: Tensor
    colour: Tensor
    part: Tensor

    def __len__(self) -> int:
        return self.part.shape[0]

    def to(self, target: torch.device | str | torch.dtype) -> "Particles":
        """The same particles on a device or of another floating type."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        keep = isinstance(target, torch.dtype)
        return Particles(**{k: v if keep and k == "part" else v.to(target) for k, v in arrays.items()})

    def chosen(self, index: Tensor) -> "Particles":
        """The particles of a boolean mask or of indices (M,)."""
        return Particles(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def moved(self, shift: Tensor, rotation: Tensor | None = None, growth: Tensor | None = None) -> "Particles":
        """Apply offsets (..., N, 3): `shift` of the means, `rotation` vectors in radians, `growth` of log scales.

        Zero offsets give the same particles; colour and opacity stay.
        """
        quaternion, scale = self.quaternion.expand(*shift.shape[:-1], 4), self.log_scale.expand(shift.shape)
        if rotation is not None:
            quaternion = quaternion_product(quaternion_of(rotation), quaternion)
        return replace(
            self,
            mean=self.mean + shift,
            quaternion=quaternion,
            log_scale=scale if growth is None else scale + growth,
        )


def join(*groups: Particles) -> Particles:
    """Several sets of particles as one, in that order."""
    arrays = {field.name: torch.cat([getattr(group, field.name) for group in groups]) for field in fields(Particles)}
    return Particles(**arrays)


def round_particles(mean: Tensor, deviation: Tensor | float, colour: Tensor, part: Tensor, opacity: float) -> Particles:
    """Unrotated particles of equal extent along x and y: `deviation` (N, 3) or one number, `opacity` in 0..1."""
    count = len(mean)
    deviation = torch.as_tensor(deviation, dtype=mean.dtype).expand(count, 3)
    return Particles(
        mean=mean,
        quaternion=torch.tensor([1.0, 0, 0, 0], dtype=mean.dtype).repeat(count, 1),
        log_scale=deviation.log(),
        opacity=torch.full((count,), opacity, dtype=mean.dtype).logit(),
        colour=colour.to(mean.dtype),
        part=part.to(torch.int64),
    )


def regions(part: Tensor) -> Tensor:
    """Parts (N,) -> BODY, FACE or HAND (N,)."""
    face = torch.isin(part, torch.tensor(list(_FACES), device=part.device))
    hand = torch.isin(part, torch.tensor(_HANDS, device=part.device))
    return torch.where(hand, HAND, torch.where(face, FACE, BODY))


def rotation_matrix(quaternion: Tensor) -> Tensor:
    """Quaternions (..., 4), w first, of any length -> (..., 3, 3)."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def quaternion_of(rotation: Tensor) -> Tensor:
    """Rotation vectors (..., 3), axis times angle in radians -> unit quaternions (..., 4)."""
    half = rotation.norm(dim=-1, keepdim=True) / 2
    # sinc has a finite derivative at zero, where every avatar begins.
    return torch.cat([half.cos(), rotation / 2 * torch.sinc(half / torch.pi)], dim=-1)


def quaternion_product(second: Tensor, first: Tensor) -> Tensor:
    """Hamilton product (..., 4): the rotation `first`, then `second`."""
    w, v = second[..., :1], second[..., 1:]
    u, r = first[..., :1], first[..., 1:]
    return torch.cat([w * u - (v * r).sum(-1, keepdim=True), w * r + u * v + torch.linalg.cross(v, r)], dim=-1)
