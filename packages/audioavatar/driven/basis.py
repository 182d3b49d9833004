"""Linear basis of mouth motion, in the mouth's own coordinates, so that it moves avatars that were never fitted.

Legend: T frames, M particles around the mouth of the person the basis was made of, K components.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.motion import Motion
from audioavatar.particles import Part

_REACH = (2.3, -1.5, 2.2)  # half widths of the mouth: to both sides, up, down
_NEAREST = 4
_SKIN = 100  # kinds of skin begin here
_CHEEK = 0.2  # half widths of the face over which motion fades to its sides


@dataclass(frozen=True)
class MouthBasis:
    """`place` (M, 2) in mouth coordinates and `part` (M,) of the particles it is known at; `mean` (M, 4) and
    `components` (K, M, 4): shift along and across the mouth in
    quarters of the face's width, growth in x and y. `scale` (K,) is the
    standard deviation of each coefficient, `kept` the share of the variance that K components hold."""

    place: Tensor
    part: Tensor
    mean: Tensor
    components: Tensor
    scale: Tensor
    kept: float

    def __len__(self) -> int:
        return len(self.components)

    def encode(self, avatar: Avatar, motion: Motion) -> Tensor:
        """Motion of any avatar -> coefficients (T, K), in standard deviations."""
        rows = _rows(self.place, self.part, avatar, motion) - self.mean.reshape(1, -1)
        return rows @ self.components.reshape(len(self), -1).T / self.scale

    def bind(self, avatar: Avatar) -> "BoundBasis":
        """Carry the basis over to an avatar: each particle moves as the nearest ones of its kind do, by mouth
        coordinates. Its kind is its label and its side of the lip line; what the basis does not reach keeps still."""
        place, part = avatar.mouth.local(avatar.particles.mean[:, :2]), avatar.particles.part
        below = avatar.mouth.below_line(avatar.particles.mean[:, :2]) > 0
        kind, source = _kinds(part, below), _kinds(self.part, self.place[:, 1] > 0)
        distance = torch.cdist(place, self.place)
        distance[kind[:, None] != source] = torch.inf
        near, index = distance.topk(min(_NEAREST, len(self.part)), largest=False)
        spacing = 0.5  # half widths: farther away the motion fades
        weight = torch.where(near.isfinite(), 1 / (near + 0.005), 0.0)
        total = weight.sum(1, keepdim=True)
        fade = (-(near[:, :1] / spacing).square()).exp()
        weight = torch.where(total > 0, weight / total.clamp_min(1e-12), 0.0) * torch.where(total > 0, fade, 0.0)
        side, top, bottom = _REACH
        outside = (place[:, 0].abs() > side) | (place[:, 1] < top) | (place[:, 1] > bottom)
        weight[outside & (near[:, 0] > spacing / 2)] = 0
        # The cheeks of a narrower face are its outline, which stays where it is when somebody speaks.
        x0, _, x1, _ = (avatar.face - avatar.size[0] / 2).tolist()
        beside = (2 * avatar.particles.mean[:, 0] - x0 - x1).abs() / (x1 - x0)
        weight *= torch.where(kind >= _SKIN, ((1 - beside) / _CHEEK).clamp(0, 1), 1.0)[:, None]

        def carried(values: Tensor) -> Tensor:
            mixed = (values[..., index, :] * weight[..., None]).sum(-2)
            return torch.cat([avatar.mouth.to_world(mixed[..., :2]) * avatar.unit, mixed[..., 2:]], dim=-1)

        return BoundBasis(carried(self.mean), carried(self.components), self.scale)


def principal_components(clips: Sequence[tuple[Avatar, Motion]], components: int) -> MouthBasis:
    """The principal components of fitted motions of any avatars, at the particles around the first one's mouth."""
    avatar = clips[0][0]
    place = avatar.mouth.local(avatar.particles.mean[:, :2])
    side, top, bottom = _REACH
    chosen = ((place[:, 0].abs() < side) & (place[:, 1] > top) & (place[:, 1] < bottom)).nonzero()[:, 0]
    place, part = place[chosen], avatar.particles.part[chosen]
    rows = torch.cat([_rows(place, part, *clip) for clip in clips])
    mean = rows.mean(0)
    count = min(components, *rows.shape)
    _, values, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    scale = values[:count] / max(len(rows) - 1, 1) ** 0.5
    kept = float(values[:count].square().sum() / values.square().sum().clamp_min(1e-12))
    return MouthBasis(place, part, mean.reshape(-1, 4), axes[:count].reshape(count, -1, 4), scale, kept)


def _rows(place: Tensor, part: Tensor, avatar: Avatar, motion: Motion) -> Tensor:
    """The avatar's motion at places (M, 2) of a basis, by label, side of the lip line and mouth coordinates: (T, 4 M).
    So the motion of several people becomes that of one face."""
    xy = avatar.particles.mean[:, :2]
    kind, source = _kinds(part, place[:, 1] > 0), _kinds(avatar.particles.part, avatar.mouth.below_line(xy) > 0)
    distance = torch.cdist(place, avatar.mouth.local(xy))
    distance[kind[:, None] != source] = torch.inf
    near, index = distance.topk(min(_NEAREST, len(xy)), largest=False)
    # By squares, so that a particle in the same place decides alone.
    weight = torch.where(near.isfinite(), 1 / (near.square() + 1e-6), 0.0)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    moved = torch.cat([avatar.mouth.from_world(motion.shift) / avatar.unit, motion.growth], dim=-1)
    return torch.einsum("mk,tmkd->tmd", weight, moved[:, index]).flatten(1)


@dataclass(frozen=True)
class BoundBasis:
    """A basis carried over to one avatar: `mean` (N, 4) and `components` (K, N, 4) as px of the world and growth."""

    mean: Tensor
    components: Tensor
    scale: Tensor

    def motion(self, coefficient: Tensor, head: Tensor | None = None, gesture: Tensor | None = None) -> Motion:
        """Coefficients (T, K) in standard deviations, the head's motion (T, 3) and gestures (T, G) or none -> the
        avatar's."""
        values = self.mean + torch.einsum("tk,knd->tnd", coefficient * self.scale, self.components)
        head = values.new_zeros(len(values), 3) if head is None else head
        gesture = values.new_zeros(len(values), len(GESTURES)) if gesture is None else gesture
        return Motion(head, values[..., :2], values[..., 2:], gesture)


def _kinds(part: Tensor, below: Tensor) -> Tensor:
    """Lips, teeth and the dark of the mouth by label, all skin alike, by side of the line."""
    inner = torch.isin(part, torch.tensor([Part.UPPER_LIP, Part.LOWER_LIP, Part.TEETH, Part.CAVITY]))
    return torch.where(inner, part, _SKIN + below.long())
