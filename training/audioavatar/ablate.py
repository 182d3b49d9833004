"""Ablations of the second system on the small world: python -m training.audioavatar.ablate --out runs/avatar-ablations

Rows leave one thing out, with several seeds each; all share the teacher's clips and their fits, and whatever else two
rows have in common. Every part is a file that is made once: stopped and started again it goes on where it was, and the
table holds what is there. Scores are of held-out voices of a person of training.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import FILE, Avatar, load_avatar
from audioavatar.config import (
    DistilConfig,
    EmbeddingConfig,
    FitConfig,
    GeneratorConfig,
    JointConfig,
    RefinementConfig,
    ReliefConfig,
)
from audioavatar.driven.basis import bind, coefficients, principal_components
from audioavatar.driven.features import audio_features
from audioavatar.driven.generator import MotionTransformer, fit_generator, sample_motion
from audioavatar.driven.refinement import refine
from audioavatar.fit.clip import fit_clip
from audioavatar.motion import Motion, lip_gap
from audioavatar.particles import FACE
from audioavatar.regularisers import arap, spectral
from audioavatar.say import build
from common.progress import setup_logging
from common.runs import fingerprint, plain, read_json, write_json
from miniature.weights import model_paths
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from omniavatar.encoders.audio import load_audio_encoder
from perception.faces.crop import crop_track
from perception.sync.syncnet import load_syncnet, sync_scores
from training.audioavatar.ablation_report import write_report
from training.audioavatar.embed import FittedClip, embed, read_space, similarity
from training.audioavatar.joint import JointClip, joint
from training.audioavatar.omniavatar_teacher import OmniAvatarTeacher
from training.audioavatar.refine import read_refiner, train_refiner
from training.audioavatar.stage_file import about, read_tensors, save_tensors
from training.audioavatar.subject import AvatarSubject



@dataclass(frozen=True)
class Row:
    """What is in: the embedding (else principal components), its contrast of windows, refinement, clips of a second
    synthetic person, score distillation, trajectories."""

    embedding: bool = True
    patch: bool = True
    refinement: bool = True
    hybrid: bool = True
    distil: str = "vsd"
    trajectories: bool = True


ROWS = {
    "full": Row(),
    "without embedding": Row(embedding=False),
    "without patch level": Row(patch=False),
    "without refinement": Row(refinement=False),
    "without hybrid synthesis": Row(hybrid=False),
    "without VSD": Row(distil=""),
    "without trajectories": Row(trajectories=False),
    "SDS instead of VSD": Row(distil="sds"),
}


@dataclass(frozen=True)
class AblationConfig:
    """Whom rows learn from, and sizes of every part: small, so that a row costs about a core-minute.

    Each of `people` says its own `voices` of `seconds`; the first is scored, with the voices `held_out`.
    """

    people: tuple[int, ...] = (HELD_OUT_SEED, HELD_OUT_SEED + 7)
    voices: tuple[tuple[int, ...], ...] = ((101, 102, 103, 104), (105, 106, 107, 108))
    held_out: tuple[int, ...] = (HELD_OUT_SEED + 101, HELD_OUT_SEED + 102, HELD_OUT_SEED + 103)
    seconds: float = 1.28
    fit: FitConfig = FitConfig(field_steps=14, particle_stages=((8, 1.0, 6.0, 0.25, 0.04), (6, 0.0, 1.0, 0.12, 0.03)))
    embedding: EmbeddingConfig = EmbeddingConfig(steps=200)
    generator: GeneratorConfig = GeneratorConfig(width=64, layers=2, window=32, overlap=8, steps=300)
    refinement: RefinementConfig = RefinementConfig(width=48, layers=2, window=32, steps=120)
    joint: JointConfig = JointConfig(steps=24, distil=DistilConfig(warm_up=16, critic_steps=1))


@dataclass(frozen=True)
class Taught:
    """A teacher's clip of one avatar with its fit. `frames` (T, H, W, 3) uint8."""

    avatar: Avatar
    frames: Tensor
    wave: np.ndarray
    motion: Motion
    features: Tensor
    prompt: str
    image: np.ndarray

    @property
    def fitted(self) -> FittedClip:
        """What the embedding is trained on."""
        return FittedClip(self.avatar, self.motion, self.features)


class World:
    """What rows share: avatars, clips and fits below `out`/shared, and the networks that judge."""

    def __init__(self, out: Path, config: AblationConfig) -> None:
        self.paths, self.out, self.config = model_paths(), out / "shared", config
        self.teacher: OmniAvatarTeacher | None = None
        self.encoder = load_audio_encoder(self.paths["audio_encoder"])
        self.syncnet = load_syncnet(self.paths["sync_scorer"])
        self.key = fingerprint([config.people, config.voices, config.seconds, plain(config.fit)])
        self.training = [[self._taught(person, voice) for voice in own] for person, own in zip(config.people, config.voices, strict=True)]
        self.held_out = [self._taught(config.people[0], voice) for voice in config.held_out]

    def new_teacher(self) -> OmniAvatarTeacher:
        """A teacher of its own for who changes it: a critic's LoRA stays in its network."""
        return OmniAvatarTeacher.from_pretrained(self.paths)

    def _taught(self, person: int, voice: int) -> Taught:
        drawn, wave = draw_clip(person, 0.2), draw_clip(voice, self.config.seconds).audio
        image = drawn.frames[0]
        avatar = self._avatar(person, image)
        path = self.out / f"{person}-{voice}.safetensors"
        key = fingerprint([self.key, person, voice])
        if about(path).get("made_of") != key:
            self.teacher = self.teacher or self.new_teacher()
            frames = torch.from_numpy(self.teacher.generate(image, wave, drawn.caption, voice % 100_000))
            result = fit_clip(avatar, frames, self.config.fit)
            save_tensors(
                path,
                {"frames": frames, **{name: value for name, value in vars(result.motion).items()}},
                {"made_of": key, "psnr": result.psnr, "arap": result.arap},
            )
        tensors = read_tensors(path)
        frames = tensors.pop("frames")
        features = audio_features(wave, "wav2vec2", self.encoder)[: len(frames)]
        return Taught(avatar, frames, wave, Motion(**tensors), features, drawn.caption, image)

    def _avatar(self, person: int, image: np.ndarray) -> Avatar:
        folder = self.out / f"avatar-{person}"
        if not (folder / FILE).is_file():
            build(image, self.paths["face_detector"], ReliefConfig()).save(folder)
        return load_avatar(folder)


@dataclass(frozen=True)
class Space:
    """Where motion is generated: `channels` of a clip, and back to the motion of the scored avatar."""

    channels: Callable[[Taught], Tensor]
    motion: Callable[[Tensor], Motion]
    mouth: int
    retrieval: float = float("nan")
    offset: float = float("nan")


def _space(world: World, clips: Sequence[Taught], row: Row, config: AblationConfig, seed: int, key: str, out: Path) -> Space:
    """The embedding's space, or that of principal components; after it head motion in the avatar's units."""
    avatar = world.training[0][0].avatar
    found: dict[str, float] = {}
    if row.embedding:
        settings = replace(config.embedding, patch=float(row.patch))
        space = read_space(embed([clip.fitted for clip in clips], out / f"embed-{key}.safetensors", key, settings, seed))
        score, offset = similarity(space, [clip.fitted for clip in world.held_out])
        found = {"retrieval": score, "offset": float(offset)}
        bound: Any = space.bind(avatar)
        encode: Callable[[Taught], Tensor] = lambda clip: space.encode(clip.avatar, clip.motion)  # noqa: E731
        mouth = len(space)
    else:
        basis = principal_components(avatar, [clip.motion for clip in world.training[0]], 16)
        bound, mouth = bind(basis, avatar), len(basis)
        encode = lambda clip: coefficients(basis, clip.avatar, clip.motion)  # noqa: E731

    def units(of: Avatar) -> Tensor:
        return torch.tensor([of.unit, of.unit, 1.0])

    def channels(clip: Taught) -> Tensor:
        with torch.no_grad():
            return torch.cat([encode(clip), clip.motion.head / units(clip.avatar)], dim=1)

    def motion(values: Tensor) -> Motion:
        return bound.motion(values[:, :mouth], values[:, mouth:] * units(avatar))

    return Space(channels, motion, mouth, **found)


def run_row(world: World, row: Row, config: AblationConfig, seed: int, out: Path) -> dict[str, float]:
    """Train and score one row with one seed; its parts are files in `out`, those of other rows where they are equal."""
    clips = [clip for person in world.training[: 1 + row.hybrid] for clip in person]
    before = fingerprint([world.key, row.embedding, row.patch, row.hybrid, plain(config.embedding), seed])
    space = _space(world, clips, row, config, seed, before, out)
    features, channels = [clip.features for clip in clips], [space.channels(clip) for clip in clips]
    made = fingerprint([before, plain(config.generator)])
    path = out / f"motion-{made}.safetensors"
    if about(path).get("made_of") != made:
        save_tensors(path, fit_generator(features, channels, config.generator, seed).state_dict(), {"made_of": made})
    sizes = config.generator
    net = MotionTransformer(features[0].shape[1], channels[0].shape[1], sizes.width, sizes.layers, sizes.heads)
    net.load_state_dict(read_tensors(path))
    net.eval().requires_grad_(False)
    refiner, helps = None, float("nan")
    if row.refinement:
        file = out / f"refine-{made}.safetensors"
        train_refiner(net, features, channels, space.mouth, file, made, sizes, config.refinement, seed)
        refiner = read_refiner(file)
        helps = _refinement_gain(world, space, net, refiner, sizes, seed)
    settings = replace(
        config.joint,
        vsd=config.joint.vsd if row.distil else 0.0,
        traj=config.joint.traj if row.trajectories else 0.0,
        distil=replace(config.joint.distil, method=row.distil or "vsd"),  # type: ignore[arg-type]
    )
    subject = AvatarSubject(world.training[0][0].avatar, space.motion)
    teacher = world.new_teacher() if row.distil else None
    own = [_joint_clip(clip, subject, space, teacher) for clip in world.training[0]]
    last = fingerprint([made, row.refinement, plain(settings)])
    joint(net, subject, own, teacher, out / f"joint-{last}.safetensors", last, settings, seed, refiner)
    history = about(out / f"joint-{last}.safetensors")["history"]
    before_joint = _scores(world, space, net, refiner, subject, sizes, seed)
    net.load_state_dict(read_tensors(out / f"joint-{last}.safetensors"))
    scores = _scores(world, space, net, refiner, subject, sizes, seed)
    scores |= {"retrieval": space.retrieval, "similarity_offset": space.offset, "refinement_gain": helps}
    scores |= {"track_error_before_joint": before_joint["track_error"], "sync_c_before_joint": before_joint["sync_c"]}
    pulls = {name: value for name, value in history[0].items() if name.startswith("pull_")}
    return scores | pulls


def _joint_clip(clip: Taught, subject: AvatarSubject, space: Space, teacher: OmniAvatarTeacher | None) -> JointClip:
    image = torch.from_numpy(clip.image).float() / 255
    condition = None if teacher is None else teacher.condition(clip.image, clip.wave, clip.prompt)
    tracks = subject.tracks(clip.motion)
    return JointClip(clip.features, space.channels(clip), tracks, clip.frames.float() / 255, image, condition)


def _refinement_gain(
    world: World, space: Space, net: MotionTransformer, refiner: Any, sampling: GeneratorConfig, seed: int
) -> float:
    """By which share refinement lowers the error of face channels on held-out voices; negative: it raises it."""
    before = after = 0.0
    for clip in world.held_out:
        made, fitted = sample_motion(net, clip.features, sampling, seed), space.channels(clip)
        scale = net.deviation
        before += float(((made - fitted) / scale)[:, : space.mouth].abs().mean())
        after += float(((refine(refiner, made, clip.features) - fitted) / scale)[:, : space.mouth].abs().mean())
    return 1 - after / before


@torch.no_grad()
def _scores(
    world: World,
    space: Space,
    net: MotionTransformer,
    refiner: Any,
    subject: AvatarSubject,
    sampling: GeneratorConfig,
    seed: int,
) -> dict[str, float]:
    """Means over the held-out voices."""
    rows = [_score(world, space, net, refiner, subject, sampling, clip, seed) for clip in world.held_out]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _score(
    world: World,
    space: Space,
    net: MotionTransformer,
    refiner: Any,
    subject: AvatarSubject,
    sampling: GeneratorConfig,
    clip: Taught,
    seed: int,
) -> dict[str, float]:
    channels = sample_motion(net, clip.features, sampling, seed)
    if refiner is not None:
        channels = refine(refiner, channels, clip.features)
    motion = space.motion(channels)
    video = subject.video(motion).clamp(0, 1)
    face = subject.region == FACE
    tracks, truth = subject.tracks(motion)[:, face], subject.tracks(clip.motion)[:, face]
    rest = subject.avatar.camera.project(subject.avatar.particles.mean)[0][face]
    gaps = torch.stack([lip_gap(subject.avatar, each) for each in (motion, clip.motion)])
    net_side = world.syncnet.crop_size
    boxes = np.repeat(subject.avatar.face.numpy()[None], len(video), axis=0)
    frames = (video * 255).round().to(torch.uint8).numpy()
    sync = sync_scores(world.syncnet, crop_track(frames, boxes, net_side), clip.wave)
    taught = sync_scores(world.syncnet, crop_track(clip.frames.numpy(), boxes, net_side), clip.wave)
    return {
        "track_error": float((tracks - truth).norm(dim=-1).mean() / (truth - rest).norm(dim=-1).mean()),
        "sync_c": float(sync.sync_c),
        "sync_share": float(sync.sync_c / taught.sync_c),
        "offset_zero": float(sync.offset == 0),
        "lip_gap_r": float(torch.corrcoef(gaps)[0, 1]),
        "l1": float((video - clip.frames.float() / 255).abs().mean()),
        "arap": float(arap(subject.rest + motion.shift, subject.rest, subject.graph)),
        "jerk": float(spectral(motion.shift, subject.region)),
    }


def run_ablations(out: Path, results: Path | None, config: AblationConfig, seeds: int) -> None:
    """Every row with every seed, seed by seed; after each the report of what there is, in `results`."""
    world = World(out, config)
    for seed in range(seeds):
        for name, row in ROWS.items():
            file = out / "rows" / f"{name.replace(' ', '-')}-{seed}.json"
            key = fingerprint([world.key, asdict(row), plain(config), seed])
            if not file.is_file() or read_json(file)["made_of"] != key:
                scores = run_row(world, row, config, seed, out / "parts")
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, {"made_of": key, "row": name, "seed": seed, **scores})
            if results is not None:
                write_report(out / "rows", results)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path, help="folder of the table and the plot")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    setup_logging()
    torch.set_num_threads(1)
    run_ablations(options.out, options.results, AblationConfig(), options.seeds)


if __name__ == "__main__":
    main()
