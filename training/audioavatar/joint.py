"""Joint training: a generator's clean motion is decoded and rendered, and every term of the loss reaches it at once.

L_simple, L1, and 1 - SSIM, L_traj, L_vsd, L_arap, L_iso, L_loc, L_spec, each scaled to pull with a given share of L1's
gradient, through the window's frames; what each would pull with unscaled is logged. The rigidity terms count only
beyond the fit's own: a price on all distortion pulls every mouth shut. Legend: T frames, N particles, C channels of
motion.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from audioavatar.config import JointConfig
from audioavatar.distil.procedural_clips import to_teacher
from audioavatar.distil.score import Distillation
from audioavatar.distil.teacher import VideoTeacher
from audioavatar.driven.generator import MotionTransformer, kept_signal
from audioavatar.driven.refinement import Refiner
from audioavatar.driven.training import Checkpoint, TrainingSteps
from audioavatar.regularisers import arap, isometry, locality, spectral, trajectory
from common.progress import MetricLog
from common.runs import fingerprint, plain
from training.audioavatar.stage_file import about, checkpoint_of, save_tensors
from training.audioavatar.subject import Subject

logger = logging.getLogger(__name__)

DISTORTION = ("arap", "iso", "loc", "spec")
TERMS = ("simple", "vsd", "traj", "l1", "ssim", *DISTORTION)


@dataclass(frozen=True)
class JointClip:
    """A teacher's clip of a `subject`: `features` (T, D), fitted `channels` (T, C), `tracks` (T, N, 2) px to be
    followed, `frames` (T, H, W, 3) in 0..1, the `image` (H, W, 3) before them, and the teacher's condition."""

    subject: Subject
    features: Tensor
    channels: Tensor
    tracks: Tensor
    frames: Tensor
    image: Tensor
    condition: Any = None


def train_joint(
    net: MotionTransformer,
    clips: Sequence[JointClip],
    teacher: VideoTeacher | None,
    config: JointConfig = JointConfig(),
    seed: int = 0,
    refiner: Refiner | None = None,
    checkpoint: Checkpoint | None = None,
) -> list[dict[str, float]]:
    """Train `net` in place on clips of one length; returns the loss of every term and, every `log_every` steps, the
    norm of its gradient in the channels of motion, bare (`norm_`) and as it is used (`pull_`).

    Without a teacher, or with weight 0, there is no distillation. A refiner is applied before decoding and stays.
    """
    random = torch.Generator().manual_seed(seed)
    distillation = Distillation(teacher, config.distil, seed) if teacher is not None and config.vsd else None
    parts = [_parts(clip, teacher if distillation else None, config.window) for clip in clips]
    weights: dict[str, float] = {name: getattr(config, name) for name in TERMS}
    optimiser = torch.optim.Adam(net.requires_grad_(True).parameters(), lr=config.rate)
    history: list[dict[str, float]] = []
    kept = {"net": net, "optimiser": optimiser, "random": random, "history": history}
    kept |= {"distillation": distillation} if distillation else {}
    steps = TrainingSteps("joint", config.steps, checkpoint, **kept)
    if distillation and steps.first == 0:
        _warm_up(distillation, net, clips, parts, config, refiner, random)
    scales = _scales(history, weights)
    for step in steps:
        number = int(torch.randint(len(clips), (), generator=random))
        part = parts[number][int(torch.randint(len(parts[number]), (), generator=random))]
        simple, predicted = _predict(net, clips[number], config, random)
        channels = predicted * net.deviation + net.mean
        terms = _terms(clips[number], part, _refined(refiner, channels, clips[number])[part.window])
        video = terms.pop("video")
        if distillation:
            rendered = torch.cat([part.lead, to_teacher(video)], dim=2)
            terms["vsd"] = distillation.loss(rendered, part.condition, step / config.steps)
        used = {name: term for name, term in terms.items() if weights[name]}
        record = {"step": step, "simple": float(simple.detach())}
        record |= {name: float(term.detach()) for name, term in terms.items()}
        if step % config.log_every == 0:
            norms = _norms({"simple": simple, **used}, predicted)
            record |= {f"norm_{name}": norm for name, norm in norms.items()}
            scales = _scales([*history, record], weights)
            record |= {f"pull_{name}": scales[name] * norm for name, norm in norms.items()}
        optimiser.zero_grad()
        loss = config.simple * simple
        for name, term in used.items():
            loss = loss + scales[name] * term
        steps.report(**terms, simple=simple)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        history.append(record)
    net.requires_grad_(False)
    logger.info("joint training, the last step: %s", {name: round(value, 5) for name, value in history[-1].items()})
    return history


def joint(
    net: MotionTransformer,
    clips: Sequence[JointClip],
    teacher: VideoTeacher | None,
    out: Path,
    made_of: str,
    config: JointConfig = JointConfig(),
    seed: int = 0,
    refiner: Refiner | None = None,
    log: MetricLog | None = None,
) -> Path:
    """The stage: `out` holds the weights of `net` after joint training, and the losses and pulls of its steps.

    A file made of the same (`made_of`: a fingerprint of everything that went in) stays; a killed stage goes on from its
    checkpoint and makes the same bytes.
    """
    key = fingerprint([made_of, plain(config), seed])
    if about(out).get("made_of") != key:
        trained = copy.deepcopy(net)
        checkpoint = checkpoint_of(out, key, "joint", log)
        history = train_joint(trained, clips, teacher, config, seed, refiner, checkpoint)
        save_tensors(out, trained.state_dict(), {"made_of": key, "history": history})
        if checkpoint:
            checkpoint.remove()
    return out


@dataclass(frozen=True)
class _Part:
    """Frames of a clip that are rendered together: what comes before them, (1, 3, L, H, W), and their condition."""

    window: slice
    lead: Tensor
    condition: Any


def _parts(clip: JointClip, teacher: VideoTeacher | None, size: int) -> list[_Part]:
    """The whole windows of a clip."""
    whole = to_teacher(torch.cat([clip.image[None], clip.frames]))
    parts = []
    for start in range(0, len(clip.frames) - size + 1, size):
        lead, condition = 0, None
        if teacher is not None:
            lead, condition = teacher.part(clip.condition, start, start + size, whole)
        before = whole[:, :, start + 1 - lead : start + 1]
        parts.append(_Part(slice(start, start + size), before, condition))
    return parts


@torch.no_grad()
def _warm_up(
    distillation: Distillation,
    net: MotionTransformer,
    clips: Sequence[JointClip],
    parts: Sequence[Sequence[_Part]],
    config: JointConfig,
    refiner: Refiner | None,
    random: torch.Generator,
) -> None:
    """Train the critic on renders of one part of every clip, before the generator changes."""
    renders = []
    for clip, own in zip(clips, parts, strict=True):
        part = own[int(torch.randint(len(own), (), generator=random))]
        _, predicted = _predict(net, clip, config, random)
        channels = _refined(refiner, predicted * net.deviation + net.mean, clip)[part.window]
        video = torch.cat([part.lead, to_teacher(clip.subject.video(clip.subject.offsets(channels)))], dim=2)
        renders.append((distillation.teacher.encode(video), part.condition))
    for step in range(config.distil.warm_up):
        with torch.enable_grad():
            distillation.follow(*renders[step % len(renders)])


def _predict(
    net: MotionTransformer, clip: JointClip, config: JointConfig, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """L_simple with its term of velocities, and the clean motion (T, C), standardised, predicted at a random tau."""
    fitted = (clip.channels - net.mean) / net.deviation
    encoded = net.encode(clip.features[None])
    tau = torch.rand(1, generator=random)
    first, noise = (torch.randn(fitted.shape, generator=random)[None] for _ in range(2))
    clean = fitted[None]
    if config.own_samples:
        with torch.no_grad():
            clean = net(first, encoded, torch.ones(1))
    kept = kept_signal(tau)
    predicted = net(kept.sqrt() * clean + (1 - kept).sqrt() * noise, encoded, tau)[0]
    simple = (predicted - fitted).square().mean() + 0.5 * (predicted - fitted).diff(dim=0).square().mean()
    return simple, predicted


def _refined(refiner: Refiner | None, channels: Tensor, clip: JointClip) -> Tensor:
    if refiner is None:
        return channels
    return refiner(channels[None], clip.features[None], torch.arange(len(channels)))[0]


def _terms(clip: JointClip, part: _Part, channels: Tensor) -> dict[str, Tensor]:
    """Every term of the rendered window but that of the teacher, and its `video` (T, H, W, 3)."""
    subject = clip.subject
    motion = subject.offsets(channels)
    video = subject.video(motion)
    target = clip.frames[part.window]
    tracks, followed = subject.tracks(motion) / subject.diagonal, clip.tracks[part.window] / subject.diagonal
    with torch.no_grad():
        allowed = _distortion(subject, subject.shift(subject.offsets(clip.channels[part.window])))
    return {
        "traj": trajectory(followed, tracks, reduction="mean"),
        "l1": (video - target).abs().mean(),
        "ssim": 1 - structural_similarity(video, target),
        **{name: (value - allowed[name]).relu() for name, value in _distortion(subject, subject.shift(motion)).items()},
        "video": video,
    }


def _distortion(subject: Subject, shift: Tensor) -> dict[str, Tensor]:
    moved = subject.rest + shift
    return {
        "arap": arap(moved, subject.rest, subject.graph),
        "iso": isometry(moved, subject.graph),
        "loc": locality(shift, subject.graph),
        "spec": spectral(shift, subject.region),
    }


def _norms(terms: Mapping[str, Tensor], motion: Tensor) -> dict[str, float]:
    """The norm of each term's gradient in the predicted motion."""
    return {name: float(torch.autograd.grad(term, motion, retain_graph=True)[0].norm()) for name, term in terms.items()}


def _scales(history: Sequence[Mapping[str, float]], weights: Mapping[str, float]) -> dict[str, float]:
    """What terms are multiplied by, from the mean norms of their gradients so far; their weights where L1 is out."""
    measured = [record for record in history if "norm_l1" in record]
    if not measured:
        return dict(weights)
    mean = {name: sum(record.get(f"norm_{name}", 0.0) for record in measured) / len(measured) for name in TERMS}
    shares = {name: weights[name] * mean["l1"] / mean[name] if mean[name] else weights[name] for name in TERMS}
    limited = {name: min(shares[name], 1.0) for name in DISTORTION}  # of one that hardly counts no more is made
    return shares | limited | {name: weights[name] for name in ("simple", "l1")}


def structural_similarity(first: Tensor, second: Tensor, side: int = 7) -> Tensor:
    """Mean SSIM of frames (T, H, W, 3) in 0..1 in square windows, with a gradient."""

    def mean(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, side, 1)

    a, b = first.permute(0, 3, 1, 2), second.permute(0, 3, 1, 2)
    mean_a, mean_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mean_a.square(), mean(b * b) - mean_b.square()
    both = mean(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    upper = (2 * mean_a * mean_b + c1) * (2 * both + c2)
    return (upper / ((mean_a.square() + mean_b.square() + c1) * (var_a + var_b + c2))).mean()
