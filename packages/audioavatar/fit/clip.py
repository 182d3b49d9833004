"""Fit of one clip, all frames together: a few numbers per frame first, then every particle around the mouth.

What a rigid head and four fields cannot show is left to the particles, whose steps are diffused over the neighbour
graph: without that, and without the price on distortion, particles take any way that gives the right colours, and the
fit looks perfect and moves worthlessly (README). Depth and rotation stay: one camera does not show them.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from audioavatar.avatar import Avatar, part_of
from audioavatar.camera import Camera
from audioavatar.config import FitConfig, RasterConfig
from audioavatar.fit.fields import field_slopes, mouth_fields, stretch
from audioavatar.fit.tracks import Tracker, Tracks, flow_tracks
from audioavatar.graph import Graph, laplacian, neighbour_graph
from audioavatar.motion import Motion, head_shares, pose
from audioavatar.particles import Part, regions
from audioavatar.raster.render import layers, render
from audioavatar.regularisers import arap, isometry, locality, spectral, trajectory
from common.errors import InputError

_RASTER = RasterConfig(backend="torch")
_BETAS, _EPSILON = (0.9, 0.95), 1e-8
_LIDS = 0.2  # of their way that a step of one px closes lids


@dataclass(frozen=True)
class ClipFit:
    """What a fit found: the `motion`, the `fields` (T, 4) of its first stage, `psnr` of the whole picture in dB, and
    `arap`, the mean squared distortion of the neighbourhood in px^2."""

    motion: Motion
    fields: Tensor
    psnr: float
    arap: float


@dataclass(frozen=True)
class _Window:
    """Part of the picture that is compared: its camera, target (T, h, w, 3), backdrop, and weight of each pixel."""

    camera: Camera
    target: Tensor
    backdrop: Tensor
    weight: Tensor

    def loss(self, avatar: Avatar, motion: Motion, shares: Tensor, blur: float) -> Tensor:
        colour, coverage = layers(pose(avatar, motion, shares), self.camera, _RASTER)
        difference = colour + (1 - coverage)[..., None] * self.backdrop - self.target
        return (_blurred(difference, blur).abs() * self.weight[..., None]).mean()


def fit_clip(
    avatar: Avatar, frames: Tensor, config: FitConfig = FitConfig(), tracker: Tracker = flow_tracks
) -> ClipFit:
    """Fit frames (T, H, W, 3) uint8 RGB of the avatar's person, in the size of its picture and not turned away.

    The tracker is asked only if its tracks count (`trajectory`). Raises InputError for frames of another size.
    """
    width, height = avatar.size
    if tuple(frames.shape[1:]) != (height, width, 3):
        raise InputError(f"Frames of {tuple(frames.shape[1:])}; the avatar was built at {(height, width, 3)}: scale.")
    target, shares = frames.float() / 255, head_shares(avatar)
    whole = _Window(avatar.camera, target, avatar.backdrop, _weights(avatar))
    tracks = tracker(avatar, frames) if config.trajectory else _no_tracks(len(frames))
    motion, fields = _fit_fields(avatar, whole, shares, tracks, config)
    window = whole if config.whole else _mouth_window(avatar, whole)
    motion = _fit_particles(avatar, window, motion, shares, tracks, config)
    with torch.no_grad():
        image = render(pose(avatar, motion, shares), avatar.camera, _RASTER, avatar.backdrop)
        psnr = -10 * float((image - target).square().mean().log10())
        distortion = float(
            arap(avatar.particles.mean[:, :2] + motion.shift, avatar.particles.mean[:, :2], avatar.graph)
        )
    return ClipFit(motion, fields, psnr, distortion)


def _weights(avatar: Avatar) -> Tensor:
    """Weight of each pixel (H, W): 4 at the mouth, 1 on the person, 0.15 on the backdrop away from it."""
    with torch.no_grad():
        _, coverage = layers(avatar.particles, avatar.camera, _RASTER)
    near = F.max_pool2d(coverage[None], 7, 1, 3)[0, 0]
    weight = torch.where(near > 0.5, 1.0, 0.15)
    width, height = avatar.size
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    local = avatar.mouth.local(torch.stack([x - width / 2, y - height / 2], dim=-1))
    mouth = (local[..., 0] / 1.4).square() + ((local[..., 1] - 0.2) / 1.2).square() < 1
    return torch.where(mouth, 4.0, weight)


def _mouth_window(avatar: Avatar, whole: _Window) -> _Window:
    """The mouth with what moves along with it, from below the nose to the chin."""
    width, height = avatar.size
    half, (x, y) = avatar.mouth.half_width, (avatar.mouth.centre + torch.tensor([width / 2, height / 2])).tolist()
    x0, x1 = max(0, round(x - 2.1 * half)), min(width, round(x + 2.1 * half))
    y0, y1 = max(0, round(y - 1.4 * half)), min(height, round(y + 2.0 * half))
    rows, columns = slice(y0, y1), slice(x0, x1)
    return _Window(
        whole.camera.cropped(x0, y0, x1 - x0, y1 - y0),
        whole.target[:, rows, columns],
        whole.backdrop[rows, columns],
        whole.weight[rows, columns],
    )


def _fit_fields(
    avatar: Avatar, window: _Window, shares: Tensor, tracks: Tracks, config: FitConfig
) -> tuple[Motion, Tensor]:
    """Head, gestures and fields (T, 4) of the mouth by Adam on a blurred picture; the mouth begins a little open."""
    frames, basis, slopes = len(window.target), mouth_fields(avatar), field_slopes(avatar)
    # Everything in px: a tilt by what it moves the top of the head, lids by what closes them.
    head_units = torch.tensor([1.0, 1.0, 1 / float(avatar.face[3] - avatar.face[1])])
    gesture_units = torch.tensor([_LIDS] + [1.0] * (len(avatar.gestures) - 1))
    head, gesture = _begin(avatar, tracks, shares, frames)
    head, gesture = head / head_units, gesture / gesture_units
    fields = torch.zeros(frames, 4)
    fields[:, :2] = config.start_open / 2
    for values in (head, gesture, fields):
        values.requires_grad_()
    groups = [{"params": [head], "lr": config.head_rate}, {"params": [gesture, fields], "lr": config.field_rate}]
    optimiser = torch.optim.Adam(groups, betas=_BETAS)

    def motion() -> Motion:
        shift = torch.einsum("tf,fnd->tnd", fields, basis)
        return Motion(head * head_units, shift, stretch(slopes, fields), gesture * gesture_units)

    for _ in range(config.field_steps):
        current = motion()
        loss = window.loss(avatar, current, shares, config.field_blur)
        loss = loss + config.trajectory * _missed(avatar, current, shares, tracks)
        closed = (-(fields[:, 0] + fields[:, 1])).clamp_min(0).square().mean()
        lids = (current.gesture[:, 0] - current.gesture[:, 0].clamp(0, 1)).square().mean()
        smooth = _second_difference(torch.cat([head, fields], dim=1))
        optimiser.zero_grad()
        (loss + config.hinge * (closed + lids) + config.smooth * smooth).backward()
        optimiser.step()
    with torch.no_grad():
        return motion(), fields.detach()


def _begin(avatar: Avatar, tracks: Tracks, shares: Tensor, frames: int) -> tuple[Tensor, Tensor]:
    """Head (T, 3) and gestures (T, G) that explain the tracks best, by least squares with a little weight on rest:
    hands go farther from one place to another than pictures alone would lead them."""
    size = 3 + len(avatar.gestures)
    if len(tracks.index) == 0:
        return torch.zeros(frames, 3), torch.zeros(frames, size - 3)
    with torch.no_grad():
        unit = torch.eye(size) * torch.tensor([1.0, 1.0, 0.01] + [1.0] * (size - 3))[:, None]
        none = torch.zeros(size, len(avatar.particles), 2)
        moved = pose(avatar, Motion(unit[:, :3], none, none, unit[:, 3:]), shares).mean[:, tracks.index, :2]
        columns = moved - avatar.particles.mean[tracks.index, :2]
        rest, _ = avatar.camera.project(avatar.particles.mean[tracks.index])
        found = torch.zeros(frames, size)
        for t in range(frames):
            near = tracks.visible[t]
            design = columns[:, near].flatten(1).T
            ridge = 0.1 * torch.eye(size)
            offset = (tracks.position[t, near] - rest[near]).flatten()
            found[t] = torch.linalg.solve(design.T @ design + ridge, design.T @ offset)
        found[:, 2] *= 0.01
    return found[:, :3], found[:, 3:]


def _no_tracks(frames: int) -> Tracks:
    return Tracks(torch.zeros(0, dtype=torch.int64), torch.zeros(frames, 0, 2), torch.zeros(frames, 0))


def _missed(avatar: Avatar, motion: Motion, shares: Tensor, tracks: Tracks) -> Tensor:
    """How far the tracked particles are from their tracks, robustly, in squares of the picture's diagonal."""
    if len(tracks.index) == 0:
        return motion.shift.new_zeros(())
    chosen = Motion(motion.head, motion.shift[:, tracks.index], motion.growth[:, tracks.index], motion.gesture)
    posed = pose(part_of(avatar, tracks.index), chosen, shares[tracks.index])
    pixel, _ = avatar.camera.project(posed.mean)
    diagonal = (avatar.size[0] ** 2 + avatar.size[1] ** 2) ** 0.5
    return trajectory(tracks.position / diagonal, pixel / diagonal, tracks.visible, "mean")


def _fit_particles(
    avatar: Avatar, window: _Window, motion: Motion, shares: Tensor, tracks: Tracks, config: FitConfig
) -> Motion:
    """Shift and growth of the particles in the window, by Adam whose steps are diffused over the neighbour graph."""
    pixel, _ = window.camera.project(avatar.particles.mean)
    size = torch.tensor([window.camera.width, window.camera.height])
    chosen = ((pixel > -1) & (pixel < size + 1)).all(dim=1).nonzero()[:, 0]
    local, followed = part_of(avatar, chosen), _within(tracks, chosen)
    rest = local.particles.mean[:, :2]
    graph = neighbour_graph(local.particles.mean, local.particles.part, lip_line=avatar.mouth.line)
    pairs = _lip_pairs(local)
    shift, growth = motion.shift[:, chosen].clone(), motion.growth[:, chosen].clone()
    values = torch.cat([shift, growth], dim=-1)
    for steps, blur, diffusion, rate, growth_rate in config.particle_stages:
        mix = _diffusion(graph, local.particles.part, diffusion)
        rates = torch.tensor([rate, rate, growth_rate, growth_rate])
        first, second = torch.zeros_like(values), torch.zeros_like(values)
        for step in range(1, steps + 1):
            values.requires_grad_()
            current = Motion(motion.head, values[..., :2], values[..., 2:], motion.gesture)
            loss = window.loss(local, current, shares[chosen], blur)
            loss = loss + _prices(rest, graph, pairs, current, local, config)
            loss = loss + config.trajectory * _missed(local, current, shares[chosen], followed)
            (gradient,) = torch.autograd.grad(loss, values)
            first = _BETAS[0] * first + (1 - _BETAS[0]) * gradient
            second = _BETAS[1] * second + (1 - _BETAS[1]) * gradient.square()
            scale = (second / (1 - _BETAS[1] ** step)).sqrt() + _EPSILON
            direction = first / (1 - _BETAS[0] ** step) / scale
            values = values.detach() - torch.einsum("nm,tmd->tnd", mix, direction * rates)
    shift, growth = motion.shift.clone(), motion.growth.clone()
    shift[:, chosen], growth[:, chosen] = values[..., :2], values[..., 2:]
    return replace(motion, shift=shift, growth=growth)


def _within(tracks: Tracks, chosen: Tensor) -> Tracks:
    """The tracks of the `chosen` particles, by their number among those."""
    number = torch.full((int(torch.cat([chosen, tracks.index]).max()) + 1,), -1)
    number[chosen] = torch.arange(len(chosen))
    kept = number[tracks.index] >= 0
    return Tracks(number[tracks.index][kept], tracks.position[:, kept], tracks.visible[:, kept])


def _prices(
    rest: Tensor, graph: Graph, pairs: tuple[Tensor, Tensor], motion: Motion, avatar: Avatar, config: FitConfig
) -> Tensor:
    """What distortion costs: neighbourhoods, jerks, growth, and a lower lip above the upper one."""
    moved = rest + motion.shift
    down = avatar.mouth.from_world(moved)[..., 1]
    upper, lower = pairs
    crossed = (down[:, upper] - down[:, lower]).clamp_min(0).square().mean() if len(upper) else moved.new_zeros(())
    return (
        config.arap * arap(moved, rest, graph)
        + config.locality * locality(motion.shift, graph)
        + config.smooth * _second_difference(motion.shift)
        + config.growth * motion.growth.square().mean()
        + config.hinge * crossed
        + config.isometry * isometry(moved, graph)
        + config.spectral * spectral(motion.shift, regions(avatar.particles.part))
    )


def _lip_pairs(avatar: Avatar) -> tuple[Tensor, Tensor]:
    """Indices (L,) of lip particles above each other: every lower one and the upper one nearest along the line."""
    across = avatar.mouth.local(avatar.particles.mean[:, :2])[:, 0]
    upper, lower = ((avatar.particles.part == part).nonzero()[:, 0] for part in (Part.UPPER_LIP, Part.LOWER_LIP))
    if not len(upper) or not len(lower):
        return upper[:0], lower[:0]
    return upper[(across[lower, None] - across[upper]).abs().argmin(dim=1)], lower


def _diffusion(graph: Graph, part: Tensor, amount: float) -> Tensor:
    """(I + amount L)^-1 as (N, N): the dark of the mouth diffuses much further, and teeth move as one."""
    if amount == 0:
        return torch.eye(len(part))
    strength = torch.where(part == Part.CAVITY, 40.0, amount)
    mix = torch.linalg.inv(torch.eye(len(part)) + strength[:, None] * laplacian(graph))
    teeth = (part == Part.TEETH).nonzero()[:, 0]
    if len(teeth):
        mix[teeth[:, None], teeth] = 1 / len(teeth)
    return mix


def _second_difference(values: Tensor) -> Tensor:
    return values.diff(n=2, dim=0).square().mean() if len(values) > 2 else values.new_zeros(())


def _blurred(images: Tensor, deviation: float) -> Tensor:
    """Images (T, H, W, 3) through a Gaussian of `deviation` px; 0 leaves them."""
    if deviation == 0:
        return images
    reach = max(1, round(2.5 * deviation))
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation).square())
    kernel = (kernel / kernel.sum()).reshape(1, 1, -1)
    planes = images.permute(0, 3, 1, 2)
    for axis in (2, 3):
        moved = planes.transpose(axis, 3)
        shape = moved.shape
        padded = F.pad(moved.reshape(-1, 1, shape[3]), (reach, reach), mode="replicate")
        planes = F.conv1d(padded, kernel).reshape(shape).transpose(axis, 3)
    return planes.permute(0, 2, 3, 1)
