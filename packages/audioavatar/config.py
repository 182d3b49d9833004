"""Settings of the avatar: rasteriser, canonical builder, fit, motion. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from common.errors import InputError
from common.ranges import Count

Backend = Literal["auto", "torch", "gsplat"]
Driver = Literal["ridge", "tcn", "generator"]


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
    steps: int = 80
    rate: float = 0.03


@dataclass(frozen=True)
class FitConfig:
    """The fit of one clip; lengths in px of the avatar's picture.

    First head and mouth fields (`field_*`), begun with lips `start_open` px apart; then stages of the particles around
    the mouth, each steps, blur of the comparison, diffusion of the steps, rate of shifts and rate of growth. Prices are
    relative to the mean absolute error of a pixel, weighted 4 at the mouth; that of `trajectory` is per square of the
    picture's diagonal. `whole` moves all particles in the second part, not those around the mouth alone.
    """

    field_steps: int = 16
    field_blur: float = 1.5
    head_rate: float = 0.15
    field_rate: float = 0.35
    start_open: float = 1.0
    particle_stages: tuple[tuple[int, float, float, float, float], ...] = (
        (12, 1.0, 6.0, 0.25, 0.04),
        (18, 0.0, 1.0, 0.12, 0.03),
    )
    arap: float = 0.03
    locality: float = 0.009
    smooth: float = 0.002
    growth: float = 0.01
    hinge: float = 0.02
    trajectory: float = 20.0
    isometry: float = 0.01
    spectral: float = 0.002
    whole: bool = False


@dataclass(frozen=True)
class TeacherConfig:
    """Sampling of the teacher's clips; the defaults suit the small world's weights."""

    longest_side: int = 64
    chunk_frames: int = 49
    shift: float = 1.5
    steps: int = 10
    text_guidance: float = 1.0
    audio_guidance: float = 2.5


@dataclass(frozen=True)
class TcnConfig:
    """The convolutional baseline from audio to motion; `noise` in standard deviations of the features."""

    width: int = 64
    steps: int = 300
    rate: float = 3e-3
    weight_decay: float = 0.02
    noise: float = 0.1


@dataclass(frozen=True)
class GeneratorConfig:
    """The motion diffusion transformer: its size, training, and sampling in windows of frames.

    `guidance` 1 is what was trained, more follows the audio more; `noise` in standard deviations of the features.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    window: int = 48
    overlap: int = 12
    steps: int = 800
    rate: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.1
    audio_drop: float = 0.1
    velocity: float = 0.5
    sampling_steps: int = 10
    guidance: float = 1.25

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window:
            raise InputError(
                f"generator.overlap is {self.overlap} of windows of {self.window} frames, so that sampling would never"
                f" end; expected 0 to {self.window - 1}."
            )


@dataclass(frozen=True)
class EmbeddingConfig:
    """The joint embedding: widths, training on `particles` of `clips` per step, and weights: `contrast` of L_sim, in it
    `patch` of its windows, `rebuild` of L_rec. `noise` in standard deviations of the features."""

    embedding: int = 16
    width: int = 64
    audio_width: int = 64
    steps: int = 200
    clips: int = 4
    particles: int = 128
    rate: float = 4e-3
    weight_decay: float = 0.01
    noise: float = 0.1
    contrast: float = 0.3
    patch: float = 1.0
    rebuild: float = 1.0


@dataclass(frozen=True)
class RefinementConfig:
    """The transformer that corrects face and hands: size, frames it attends to on both sides, training in windows;
    `noise` in standard deviations of the features.

    With more than one of `folds` every clip's samples come from a generator that has not seen it, but fewer clips.
    Two folds of 24 clips changed the held-out error by -8 % in principal components, +12 % in the embedding (one seed).
    """

    width: int = 64
    layers: int = 4
    heads: int = 4
    reach: int = 16
    window: int = 48
    steps: int = 200
    rate: float = 2e-3
    weight_decay: float = 0.02
    noise: float = 0.1
    folds: Count = 1


@dataclass(frozen=True)
class DistilConfig:
    """Score distillation: the method, range of tau (the upper end moves to `last_highest`), rank of the critic's LoRA,
    its learning rate and its steps before each of the student's, and `warm_up` before the first: without it VSD
    made a generator worse (README), it seems because a critic that is still the teacher gives a gradient of noise."""

    method: Literal["vsd", "sds"] = "vsd"
    lowest: float = 0.3
    highest: float = 0.98
    last_highest: float = 0.98
    rank: int = 16
    critic_rate: float = 5e-3
    critic_steps: int = 3
    warm_up: int = 300


@dataclass(frozen=True)
class JointConfig:
    """Joint training: steps, learning rate, frames rendered per step, and the weight of every term.

    Weights of L_simple and L1 are factors. Those of the others say how hard a term pulls, relative to L1: the norms of
    their gradients in the motion, which lie apart by up to four orders of magnitude, are measured every `log_every`
    steps. Distortion costs where it exceeds that of the fit. `own_samples`: the generator starts from its own motion
    instead of the fitted one, so that nothing but the teacher says what is right.
    """

    steps: int = 60
    rate: float = 2e-4
    window: int = 8
    log_every: int = 10
    own_samples: bool = False
    simple: float = 1.0
    vsd: float = 1.0
    traj: float = 2.0
    l1: float = 1.0
    ssim: float = 1.0
    arap: float = 0.5
    iso: float = 0.25
    loc: float = 0.25
    spec: float = 0.25
    distil: DistilConfig = DistilConfig()

    def __post_init__(self) -> None:
        if self.vsd and self.window % 4:
            raise InputError(f"joint.window is {self.window} frames; a latent of the teacher is 4, so expected 4n.")


@dataclass(frozen=True)
class SayConfig:
    """A talk: its longest side in px, seed and `strength` of the mouth's motion, and swing of the camera to both sides
    in degrees, there and back in `turn_frames`."""

    longest_side: int = 128
    seed: int = 0
    strength: float = 1.0
    turntable: float = 0.0
    turn_frames: int = 100
