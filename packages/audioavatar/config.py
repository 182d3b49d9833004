"""Settings of the avatar: rasteriser, canonical builder, fit, motion. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

Backend = Literal["auto", "torch", "gsplat"]


@dataclass(frozen=True)
class RasterConfig:
    """Constants of compositing, those of gsplat 1.5 (1.6 has `alpha_max` 0.99).

    Contributions below `alpha_min` are skipped; a ray ends before the particle that would leave `transmittance_min` or
    less; `blur` px^2 is added to both variances of a projected particle; particles nearer than `near` are not drawn.
    """

    alpha_min: float = 1 / 255
    alpha_max: float = 0.999
    transmittance_min: float = 1e-4
    blur: float = 0.3
    near: float = 0.01
    backend: Backend = "auto"


@dataclass(frozen=True)
class ReliefConfig:
    """The builder from one picture; lengths are px of the picture as it is built, whose longest side is `size`.

    A particle every `spacing` px, every `fine_spacing` at mouth and eyes, each a Gaussian of `deviation` times that.
    Lip particles darker than `dark_lips` of their median are left out: a dark line that belongs to the lips lets a fit
    paint an open mouth with it. `steps` of Adam refine colours and sizes.
    """

    size: int = 64
    spacing: float = 2.0
    fine_spacing: float = 1.0
    deviation: float = 0.7
    opacity: float = 0.95
    dark_lips: float = 0.72
    teeth_above_line: float = 0.2
    keep_lip_line: bool = False
    steps: int = 120
    rate: float = 0.02
