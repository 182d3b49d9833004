"""Motion of an avatar over T frames: the head as a whole, and what each particle does relative to it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from audioavatar.avatar import GESTURES, Avatar
from audioavatar.particles import Part, Particles

BODY_SHARE = 0.4  # of the head's motion, by which the body follows it
_BLINK, _BLINK_EVERY = (0.6, 1.0, 1.0, 0.5), (35, 90)  # lids of one blink, and frames between two
_NECK = 0.35  # heights of the face over which the one becomes the other


@dataclass(frozen=True)
class Motion:
    """`head` (T, 3): shift in x and y in px, and tilt in radians, clockwise as seen; `shift` (T, N, 2) px and `growth`
    (T, N, 2) of the log scales in x and y, both as if the head were still; `gesture` (T, G) the amounts of
    `audioavatar.avatar.GESTURES`."""

    head: Tensor
    shift: Tensor
    growth: Tensor
    gesture: Tensor

    def __len__(self) -> int:
        return len(self.head)


def concatenate(motions: Sequence[Motion]) -> Motion:
    """One motion after the other."""
    return Motion(*(torch.cat(parts) for parts in zip(*(vars(motion).values() for motion in motions), strict=True)))


def still(avatar: Avatar, frames: int) -> Motion:
    """No motion at all."""
    count = len(avatar.particles)
    shift = torch.zeros(frames, count, 2)
    return Motion(torch.zeros(frames, 3), shift, torch.zeros_like(shift), torch.zeros(frames, len(GESTURES)))


def head_shares(avatar: Avatar) -> Tensor:
    """How far each particle belongs to the head (N,): 1 above the chin, 0 on the body, between them on the neck."""
    y = avatar.particles.mean[:, 1] + avatar.size[1] / 2
    top, bottom = float(avatar.face[1]), float(avatar.face[3])
    return 1 - ((y - bottom + 0.05 * (bottom - top)) / (_NECK * (bottom - top))).clamp(0, 1)


def pose(avatar: Avatar, motion: Motion, shares: Tensor | None = None) -> Particles:
    """The particles of every frame. `shares` as of `head_shares`, for who poses one avatar many times."""
    shares = head_shares(avatar) if shares is None else shares
    mean = avatar.particles.mean
    x0, _, x1, y1 = avatar.face.tolist()
    # The head tilts about the neck.
    pivot = mean.new_tensor([(x0 + x1) / 2 - avatar.size[0] / 2, y1 - avatar.size[1] / 2])
    moved = motion.shift + torch.einsum("tg,gnd->tnd", motion.gesture, avatar.gestures)
    x, y = (mean[:, :2] + moved - pivot).unbind(-1)
    angle = motion.head[:, 2, None] * shares
    sin, less = angle.sin(), angle.cos() - 1
    turn = torch.stack([less * x - sin * y, sin * x + less * y], dim=-1)
    follow = BODY_SHARE + (1 - BODY_SHARE) * shares
    # As an offset, not as a place: no motion is to leave every bit as it is.
    shift = moved + turn + follow[:, None] * motion.head[:, None, :2]
    flat = torch.zeros_like(shift[..., :1])
    return avatar.particles.moved(torch.cat([shift, flat], dim=-1), growth=torch.cat([motion.growth, flat], dim=-1))


def blinks(seed: int, first: int, frames: int) -> Tensor:
    """How far lids are closed (frames,) from frame number `first` on: four frames, at random every 1.4 to 3.6 seconds.

    Nothing that is said tells when somebody blinks, so this is a rule. A frame follows from the seed and its number.
    """
    closed, start, number = torch.zeros(frames), 0, 0
    while start < first + frames:
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        start += int(torch.randint(_BLINK_EVERY[0], _BLINK_EVERY[1] + 1, (1,), generator=generator))
        for offset, amount in enumerate(_BLINK):
            if 0 <= start + offset - first < frames:
                closed[start + offset - first] = amount
        number += 1
    return closed


def lip_gap(avatar: Avatar, motion: Motion) -> Tensor:
    """How far the lips are apart (T,), in px beyond the picture's: lower less upper lip, over the middle half of the
    mouth."""
    part, across = avatar.particles.part, avatar.mouth.local(avatar.particles.mean[:, :2])[:, 0]
    down = avatar.mouth.from_world(motion.shift)[..., 1]
    lower, upper = ((part == lip) & (across.abs() < 0.5) for lip in (Part.LOWER_LIP, Part.UPPER_LIP))
    return down[:, lower].mean(1) - down[:, upper].mean(1)
