"""Compositing by a sparse list of (pixel, particle) pairs, with a backward pass by hand; any torch device.

Each particle is cut into scanlines, of which the pixels with alpha >= alpha_min are exactly known; the pairs are sorted
by pixel, nearest first, and one running sum of log(1 - alpha) gives every transmittance. That sum goes over all pixels
of a picture, reaches 10^5 and therefore is float64. Legend: F frames, N particles, S scanlines, P pairs.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from audioavatar.config import RasterConfig
from audioavatar.raster.projection import Splats


class Pairs(NamedTuple):
    """Scanlines: `row` (S,) the particle, `dy` (S,) from its centre, `length` (S,) in pixels. Pairs in the order of
    scanlines: `line` (P,), `dx` (P,), `alpha` (P,). `order` (P,) sorts them by pixel, `pixel` (P,) is sorted."""

    row: Tensor
    dy: Tensor
    length: Tensor
    line: Tensor
    dx: Tensor
    alpha: Tensor
    order: Tensor
    pixel: Tensor


def composite(splats: Splats, width: int, height: int, config: RasterConfig) -> tuple[Tensor, Tensor]:
    """Front to back compositing of splats -> premultiplied colour (F, H, W, C) and coverage (F, H, W).

    Over a background b the picture is colour + (1 - coverage) b. Differentiable in centre, covariance, opacity, colour.
    """
    conic = _conic(splats.covariance)
    # Frame by frame: the pairs of one frame stay in the processor's cache, those of many do not (3 times as slow).
    images = [
        _Composite.apply(*arrays, width, height, config)
        for arrays in zip(splats.centre, conic, splats.opacity, splats.colour, splats.depth, strict=True)
    ]
    colours, coverages = zip(*images, strict=True)
    return torch.stack(colours), torch.stack(coverages)


def count_pairs(splats: Splats, width: int, height: int, config: RasterConfig) -> int:
    """How many pairs of pixel and particle the first frame has: what a picture costs."""
    conic = _conic(splats.covariance)
    return len(_pairs(splats.centre[0], conic[0], splats.opacity[0], splats.depth[0], width, height, config).pixel)


def _conic(covariance: Tensor) -> Tensor:
    """The inverses (..., 3) of covariances (..., 3)."""
    xx, xy, yy = covariance.unbind(-1)
    return torch.stack([yy, -xy, xx], dim=-1) / (xx * yy - xy * xy)[..., None]


def _take(values: Tensor, index: Tensor) -> Tensor:
    # Four times as fast as values[index], of which a picture is mostly made.
    return values.index_select(0, index)


def _pairs(
    centre: Tensor, conic: Tensor, opacity: Tensor, depth: Tensor, width: int, height: int, config: RasterConfig
) -> Pairs:
    row = depth.argsort(stable=True)
    row = row[_take(opacity, row) >= config.alpha_min]
    (x, y), (a, b, c) = _take(centre, row).unbind(-1), _take(conic, row).unbind(-1)
    # alpha >= alpha_min is the ellipse a dx^2 + 2 b dx dy + c dy^2 <= reach.
    reach = 2 * (_take(opacity, row) / config.alpha_min).log()
    tall = (reach * a / (a * c - b * b)).sqrt()
    top = (y - tall - 0.5).ceil().clamp(0, height).long()
    lines = (((y + tall - 0.5).floor().long() + 1).clamp(0, height) - top).clamp_min(0)
    of = torch.repeat_interleave(lines)
    line_y = torch.arange(len(of), device=row.device) + _take(top - (lines.cumsum(0) - lines), of)
    dy = line_y + 0.5 - _take(y, of)
    a, b, c, x = (_take(values, of) for values in (a, b, c, x))
    middle, least = x - b / a * dy, (c - b * b / a) * dy * dy
    half = ((_take(reach, of) - least).clamp_min(0) / a).sqrt()
    first = (middle - half - 0.5).ceil().clamp(0, width).long()
    length = (((middle + half - 0.5).floor().long() + 1).clamp(0, width) - first).clamp_min(0)
    row = _take(row, of)
    # Per pair three gathered numbers: alpha = exp(peak - a (x - middle)^2 / 2).
    line = torch.repeat_interleave(length)
    column = torch.arange(len(line), device=row.device) + _take(first - (length.cumsum(0) - length), line)
    peak = _take(opacity, row).log() - least / 2
    across = column.to(x.dtype) + 0.5
    alpha = (_take(peak, line) - _take(a / 2, line) * (across - _take(middle, line)).square()).exp()
    pixel = _take(line_y * width, line) + column
    order = _sort_stable(pixel, width * height)
    return Pairs(
        row, dy, length, line, across - _take(x, line), alpha.clamp_max(config.alpha_max), order, _take(pixel, order)
    )


def _sort_stable(key: Tensor, limit: int) -> Tensor:
    """The order that sorts keys (P,) in 0..limit, equal ones as they come."""
    if key.device.type != "cpu":
        return key.argsort(stable=True)
    # numpy sorts 16-bit integers by radix, several times as fast as torch sorts 64-bit ones.
    keys = key.numpy()
    order = np.argsort((keys & 0xFFFF).astype(np.uint16), kind="stable")
    if limit > 1 << 16:
        high = (keys[order] >> 16).astype(np.uint16 if limit <= 1 << 32 else np.int64)
        order = order[np.argsort(high, kind="stable")]
    return torch.from_numpy(order)


class _Composite(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        centre: Tensor,
        conic: Tensor,
        opacity: Tensor,
        colour: Tensor,
        depth: Tensor,
        width: int,
        height: int,
        config: RasterConfig,
    ) -> tuple[Tensor, Tensor]:
        pairs = _pairs(centre, conic, opacity, depth, width, height, config)
        alpha = _take(pairs.alpha, pairs.order)
        splat = _take(pairs.row, _take(pairs.line, pairs.order))
        # Transmittance before each pair: the running sum less its value where the pixel begins.
        absorbed = torch.log1p(-alpha.double())
        running = absorbed.cumsum(0)
        begins = torch.ones_like(pairs.pixel, dtype=torch.bool)
        begins[1:] = pairs.pixel[1:] != pairs.pixel[:-1]
        start = begins.nonzero()[:, 0]
        segment = begins.cumsum(0) - 1
        after = (running - _take(_take(running - absorbed, start), segment)).exp()
        before = (after / (1 - alpha.double())).to(alpha.dtype)
        weight = torch.where(after > config.transmittance_min, alpha * before, 0.0)
        planes = [
            weight.new_zeros(height * width).index_add_(0, pairs.pixel, weight * _take(each, splat))
            for each in colour.T
        ]
        image = torch.stack(planes, dim=-1).reshape(height, width, -1)
        coverage = weight.new_zeros(height * width).index_add_(0, pairs.pixel, weight).reshape(height, width)
        ctx.save_for_backward(conic, opacity, colour, image, coverage, *pairs, splat, before, weight, start, segment)
        ctx.alpha_max = config.alpha_max
        return image, coverage

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, image_grad: Tensor, coverage_grad: Tensor) -> tuple[Tensor | None, ...]:
        conic, opacity, colour, image, coverage, *rest = ctx.saved_tensors
        pairs, (splat, before, weight, start, segment) = Pairs(*rest[:8]), rest[8:]
        grads = image_grad.reshape(-1, colour.shape[-1]).T
        total = (image_grad * image).sum(-1).reshape(-1) + (coverage_grad * coverage).reshape(-1)
        shade = _take(coverage_grad.reshape(-1), pairs.pixel)
        for grad, shades in zip(grads, colour.T, strict=True):
            shade = shade + _take(grad, pairs.pixel) * _take(shades, splat)
        # What lies behind a pair is dimmed by it: all of the pixel less what was added up to here.
        added = (weight * shade).double()
        running = added.cumsum(0)
        behind = _take(total, pairs.pixel) - (running - _take(_take(running - added, start), segment)).to(total.dtype)
        alpha = _take(pairs.alpha, pairs.order)
        # Through log alpha, which is linear in what is wanted; a clamped alpha does not move.
        moves = (weight > 0) & (alpha < ctx.alpha_max)
        slope = torch.where(moves, alpha * (before * shade - behind / (1 - alpha)), 0.0)
        slope = torch.empty_like(slope).scatter_(0, pairs.order, slope)
        # Moments of the slopes in dx and dy, per scanline and then per particle.
        first = slope * pairs.dx
        s0, s1, s2 = (_sums(values, pairs.length) for values in (slope, first, first * pairs.dx))
        dy = pairs.dy
        s, sx, sxx, sy, sxy, syy = (
            torch.zeros_like(opacity).index_add_(0, pairs.row, values)
            for values in (s0, s1, s2, s0 * dy, s1 * dy, s0 * dy * dy)
        )
        a, b, c = conic.unbind(-1)
        centre_grad = torch.stack([a * sx + b * sy, b * sx + c * sy], dim=1)
        conic_grad = torch.stack([-sxx / 2, -sxy, -syy / 2], dim=1)
        colour_grad = None
        if ctx.needs_input_grad[3]:
            columns = [
                torch.zeros_like(opacity).index_add_(0, splat, weight * _take(grad, pairs.pixel)) for grad in grads
            ]
            colour_grad = torch.stack(columns, dim=-1)
        return centre_grad, conic_grad, s / opacity.clamp_min(1e-12), colour_grad, None, None, None, None


def _sums(values: Tensor, length: Tensor) -> Tensor:
    """Sums (S,) of consecutive stretches of values (P,), `length` (S,) each, by one running sum in float64."""
    running = torch.nn.functional.pad(values.double().cumsum(0), (1, 0))
    ends = length.cumsum(0)
    return (_take(running, ends) - _take(running, ends - length)).to(values.dtype)
