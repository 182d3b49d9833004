"""What the rows of the ablations share: people, the teacher's clips with their fits, the judges; and how a row is
scored."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from audioavatar.avatar import Avatar, load_avatar
from audioavatar.config import (
    DistilConfig,
    EmbeddingConfig,
    GeneratorConfig,
    JointConfig,
    RefinementConfig,
)
from audioavatar.driven.features import audio_features
from audioavatar.driven.generator import MotionTransformer, sample_motion
from audioavatar.driven.refinement import Refiner, refine
from audioavatar.motion import Motion, lip_gap
from audioavatar.particles import FACE
from audioavatar.regularisers import arap, spectral
from common.constants import SAMPLES_PER_FRAME
from common.media.images import read_image_file
from common.runs import RunFolder, fingerprint, read_json
from miniature.weights import model_paths
from omniavatar.encoders.audio import load_audio_encoder
from perception.faces.crop import crop_track
from perception.sync.syncnet import load_syncnet, sync_scores
from training.audioavatar.config import TEACHER_ROLES, AvatarTrainConfig, PeopleConfig, ScoreConfig, VoicesConfig
from training.audioavatar.embed import FittedClip
from training.audioavatar.omniavatar_teacher import OmniAvatarTeacher
from training.audioavatar.people import held_out_voices
from training.audioavatar.stage_file import about
from training.audioavatar.stages import (
    AVATARS,
    Unit,
    fit,
    make_clips,
    make_fits,
    read_motion,
    teach,
    training_people,
    training_units,
)
from training.audioavatar.subject import AvatarSubject
from training.audioavatar.teach import read_clip


@dataclass(frozen=True)
class AblationConfig:
    """Whom rows learn from, clips and fits of the recipe `audioavatar-small`, and sizes of every part: small, so that
    a row costs about a core-minute.

    The first of the people of `train` is scored, with its held-out voices.
    """

    train: AvatarTrainConfig = AvatarTrainConfig(
        people=PeopleConfig(train=6),
        voices=VoicesConfig(each=4, seconds=1.92),
        generator=GeneratorConfig(width=64, layers=2, steps=400),
        score=ScoreConfig(people=0, voices=4),
    )
    embedding: EmbeddingConfig = EmbeddingConfig()
    refinement: RefinementConfig = RefinementConfig(width=48, layers=2, steps=120, folds=2)
    joint: JointConfig = JointConfig(steps=24, distil=DistilConfig(warm_up=60, critic_steps=2))


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
    """What rows share: avatars, clips and fits in the run folder `out`/shared, and the networks that judge."""

    def __init__(self, out: Path, config: AblationConfig) -> None:
        self.paths, self.train = model_paths(), config.train
        self.run, root = RunFolder(out / "shared"), out / "shared"
        self.encoder = load_audio_encoder(self.paths["audio_encoder"])
        self.syncnet = load_syncnet(self.paths["sync_scorer"])
        makers = {role: self.paths[role] for role in TEACHER_ROLES}  # clips of other weights would be others
        clips, fits = teach(self.train, self.run, makers), fit(self.train, self.run)
        units = training_units(self.train)
        people = training_people(self.train)
        self.training = [[self._taught(unit, clips, fits) for unit in units if unit.person == name] for name in people]
        voices = held_out_voices(self.train.voices, self.train.score.voices)
        held_out = [Unit(people[0], voice, units[0].teacher) for voice in voices]
        clips = make_clips(self.train, self.run, makers, held_out, root / "heldout", "heldout")
        more_fits = make_fits(self.train, self.run, held_out, clips, root / "heldout_fits", "heldout fit")
        self.held_out = [self._taught(unit, clips, more_fits) for unit in held_out]
        every = [fits / unit.file for unit in units] + [more_fits / unit.file for unit in held_out]
        self.key = fingerprint([about(file)["made_of"] for file in every])

    def new_teacher(self) -> OmniAvatarTeacher:
        """A teacher of its own for who changes it: a critic's LoRA stays in its network."""
        return OmniAvatarTeacher.from_pretrained(self.paths, next(iter(self.train.teachers.values())))

    def delayed(self, clip: Taught, frames: int = 3) -> Taught:
        """The clip with its audio some frames late."""
        wave = np.concatenate([np.zeros(frames * SAMPLES_PER_FRAME, np.float32), clip.wave])[: len(clip.wave)]
        features = audio_features(wave, "wav2vec2", self.encoder)[: len(clip.frames)]
        return replace(clip, wave=wave, features=features)

    def _taught(self, unit: Unit, clips: Path, fits: Path) -> Taught:
        folder, clip = Path(self.run.root) / AVATARS / unit.person, read_clip(clips / unit.file)
        wave, image = clip.wave.numpy(), read_image_file(folder / "portrait.png")
        features = audio_features(wave, "wav2vec2", self.encoder)[: len(clip.frames)]
        prompt, motion = read_json(folder / "person.json")["prompt"], read_motion(fits / unit.file)
        return Taught(load_avatar(folder), clip.frames, wave, motion, features, prompt, image)


@dataclass(frozen=True)
class Space:
    """Where motion is generated: `channels` of a clip, and back to the motion of the scored avatar."""

    channels: Callable[[Taught], Tensor]
    motion: Callable[[Tensor], Motion]
    moving: int  # channels in front that are refined
    figures: dict[str, float]  # of an embedding: retrieval and offsets on held-out voices


@dataclass(frozen=True)
class Driven:
    """A trained row: the generator, its refiner or none, how it samples, and who is seen."""

    space: Space
    net: MotionTransformer
    refiner: Refiner | None
    subject: AvatarSubject
    sampling: GeneratorConfig
    seed: int

    def channels(self, features: Tensor) -> Tensor:
        """Audio features (T, D) -> channels of motion (T, C)."""
        sampled = sample_motion(self.net, features, self.sampling, self.seed)
        return sampled if self.refiner is None else refine(self.refiner, sampled, features)


def refinement_gain(world: World, driven: Driven) -> float:
    """By which share refinement lowers the error of face channels on held-out voices; negative: it raises it."""
    if driven.refiner is None:
        return float("nan")
    before = after = 0.0
    for clip in world.held_out:
        sampled = sample_motion(driven.net, clip.features, driven.sampling, driven.seed)
        fitted, moving = driven.space.channels(clip), driven.space.moving
        scale = driven.net.deviation
        before += float(((sampled - fitted) / scale)[:, :moving].abs().mean())
        after += float(((refine(driven.refiner, sampled, clip.features) - fitted) / scale)[:, :moving].abs().mean())
    return 1 - after / before


@torch.no_grad()
def scores_of(world: World, driven: Driven) -> dict[str, float]:
    """Means over the held-out voices."""
    rows = [_score(world, driven, clip) for clip in world.held_out]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _score(world: World, driven: Driven, clip: Taught) -> dict[str, float]:
    subject = driven.subject
    motion = driven.space.motion(driven.channels(clip.features))
    video = subject.video(motion).clamp(0, 1)
    face = subject.region == FACE
    tracks, truth = subject.tracks(motion)[:, face], subject.tracks(clip.motion)[:, face]
    rest = subject.avatar.camera.project(subject.avatar.particles.mean)[0][face]
    gaps = torch.stack([lip_gap(subject.avatar, each) for each in (motion, clip.motion)])
    frames = (video * 255).round().to(torch.uint8).numpy()
    boxes = np.repeat(subject.avatar.face.numpy()[None], len(video), axis=0)
    sync, taught = (
        sync_scores(world.syncnet, crop_track(each, boxes, world.syncnet.crop_size), clip.wave)
        for each in (frames, clip.frames.numpy())
    )
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
