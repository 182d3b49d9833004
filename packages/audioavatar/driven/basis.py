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


def principal_components(avatar: Avatar, motions: Sequence[Motion], components: int) -> MouthBasis:
    """The principal components of the fitted motions of one avatar around its mouth."""
    place = avatar.mouth.local(avatar.particles.mean[:, :2])
    side, top, bottom = _REACH
    chosen = ((place[:, 0].abs() < side) & (place[:, 1] > top) & (place[:, 1] < bottom)).nonzero()[:, 0]
    rows = torch.cat([_rows(avatar, motion, chosen) for motion in motions])
    mean = rows.mean(0)
    count = min(components, *rows.shape)
    _, values, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    scale = values[:count] / max(len(rows) - 1, 1) ** 0.5
    return MouthBasis(
        place[chosen],
        avatar.particles.part[chosen],
        mean.reshape(-1, 4),
        axes[:count].reshape(count, -1, 4),
        scale,
        float(values[:count].square().sum() / values.square().sum().clamp_min(1e-12)),
    )


def coefficients(basis: MouthBasis, avatar: Avatar, motion: Motion) -> Tensor:
    """Motion of the avatar the basis was made of -> (T, K), in standard deviations."""
    place = avatar.mouth.local(avatar.particles.mean[:, :2])
    chosen = torch.cdist(basis.place, place).argmin(dim=1)
    rows = _rows(avatar, motion, chosen) - basis.mean.reshape(1, -1)
    return rows @ basis.components.reshape(len(basis), -1).T / basis.scale


def _rows(avatar: Avatar, motion: Motion, chosen: Tensor) -> Tensor:
    shift = avatar.mouth.from_world(motion.shift[:, chosen]) / avatar.unit
    return torch.cat([shift, motion.growth[:, chosen]], dim=-1).flatten(1)


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


def bind(basis: MouthBasis, avatar: Avatar) -> BoundBasis:
    """Carry a basis over to an avatar: each particle moves as the nearest ones of its kind do, by mouth coordinates.

    Its kind is its label and its side of the lip line; what the basis does not reach keeps still.
    """
    place, part = avatar.mouth.local(avatar.particles.mean[:, :2]), avatar.particles.part
    below = avatar.mouth.below_line(avatar.particles.mean[:, :2]) > 0
    kind, source = _kinds(part, below), _kinds(basis.part, basis.place[:, 1] > 0)
    distance = torch.cdist(place, basis.place)
    distance[kind[:, None] != source] = torch.inf
    near, index = distance.topk(min(_NEAREST, len(basis.part)), largest=False)
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

    return BoundBasis(carried(basis.mean), carried(basis.components), basis.scale)


def carry(motion: Motion, source: Avatar, target: Avatar) -> Motion:
    """What a fit found for one avatar as a motion of another: by label, side of the lip line and mouth coordinates.

    The motion of several people becomes that of one, of which a basis can be made.
    """
    xy = [avatar.particles.mean[:, :2] for avatar in (target, source)]
    place, source_place = (avatar.mouth.local(each) for avatar, each in zip((target, source), xy, strict=True))
    kind, source_kind = (
        _kinds(avatar.particles.part, avatar.mouth.below_line(each) > 0)
        for avatar, each in zip((target, source), xy, strict=True)
    )
    distance = torch.cdist(place, source_place)
    distance[kind[:, None] != source_kind] = torch.inf
    near, index = distance.topk(min(_NEAREST, len(source_place)), largest=False)
    # By squares, so that a particle in the same place decides alone.
    weight = torch.where(near.isfinite(), 1 / (near.square() + 1e-6), 0.0)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    scale = target.unit / source.unit
    shift = torch.einsum("nk,tnkd->tnd", weight, source.mouth.from_world(motion.shift)[:, index])
    growth = torch.einsum("nk,tnkd->tnd", weight, motion.growth[:, index])
    head = motion.head * torch.tensor([scale, scale, 1.0])
    gesture = motion.gesture * target.gesture_units / source.gesture_units
    return Motion(head, target.mouth.to_world(shift) * scale, growth, gesture)


def _kinds(part: Tensor, below: Tensor) -> Tensor:
    """Lips, teeth and the dark of the mouth by label, all skin alike, by side of the line."""
    inner = torch.isin(part, torch.tensor([Part.UPPER_LIP, Part.LOWER_LIP, Part.TEETH, Part.CAVITY]))
    return torch.where(inner, part, _SKIN + below.long())
