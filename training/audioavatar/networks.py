"""Stages of the second system's training that train networks on everybody's fits: embedding, motion, refinement, joint.

Each writes one file, whole or not at all. Losses go to the log, the state to a checkpoint every minute: a killed stage
goes on from there and makes the same bytes.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from audioavatar.avatar import FILE, GESTURES, load_avatar
from audioavatar.distil.teacher import VideoTeacher
from audioavatar.driven.features import audio_features
from audioavatar.driven.generator import MotionTransformer
from audioavatar.driven.model import (
    MotionModel,
    beside_channels,
    fit_motion_model,
    load_motion_model,
    motion_channels,
    with_beside,
)
from audioavatar.driven.ridge import fit_ridge
from audioavatar.motion import Motion
from common.errors import InputError
from common.media.images import read_image_file
from common.progress import MetricLog, progress
from common.runs import RunFolder, fingerprint, plain, read_json, sha256_file
from omniavatar.encoders.audio import load_audio_encoder
from training.audioavatar.config import EMBEDDING, GENERATOR, LOG, MOTION, REFINER, AvatarTrainConfig
from training.audioavatar.embed import FittedClip, read_space, train_space
from training.audioavatar.joint import JointClip
from training.audioavatar.joint import joint as train_together
from training.audioavatar.refine import read_refiner, train_refiner
from training.audioavatar.stage_file import checkpoint_of, read_tensors, save_tensors
from training.audioavatar.stages import AVATARS, CLIPS, FITS, Unit, read_motion, training_people, training_units
from training.audioavatar.subject import AvatarSubject
from training.audioavatar.teach import load_teacher, read_clip


@dataclass(frozen=True)
class Fitted:
    """What networks learn from: every unit's fit, all cut to the shortest; `key` is a fingerprint of them."""

    units: list[Unit]
    clips: list[FittedClip]
    key: str


def read_fits(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Fitted:
    """Fits, avatars and audio features of all clips of training, with gestures that follow the voice."""
    root, encoder = Path(run.root), load_audio_encoder(models["audio_encoder"])
    avatars = {name: load_avatar(root / AVATARS / name) for name in training_people(config)}
    units, clips, hashes = training_units(config), [], []
    for unit in progress(units, "read fits"):
        features = audio_features(read_clip(root / CLIPS / unit.file).wave.numpy(), "wav2vec2", encoder)
        clips.append(FittedClip(avatars[unit.person], read_motion(root / FITS / unit.file), features))
        files = (root / AVATARS / unit.person / FILE, root / CLIPS / unit.file, root / FITS / unit.file)
        hashes.append([sha256_file(file) for file in files])
    frames = min(min(len(clip.motion), len(clip.features)) for clip in clips)
    cut = [FittedClip(avatar, _cut(motion, frames), features[:frames]) for avatar, motion, features in clips]
    clips = _with_gestures(config, units, cut)
    return Fitted(units, clips, fingerprint([hashes, config.gesture_teachers]))


def _with_gestures(config: AvatarTrainConfig, units: Sequence[Unit], clips: list[FittedClip]) -> list[FittedClip]:
    """Clips of teachers whose head and gestures do not follow the voice, with those that ridge regression from the
    other teachers' clips gives: as they are they would teach the generator that audio tells nothing of them."""
    shown = [clip for unit, clip in zip(units, clips, strict=True) if _shows_gestures(config, unit)]
    if not shown or len(shown) == len(clips):
        return clips
    ridge = fit_ridge([clip.features for clip in shown], [beside_channels(clip.avatar, clip.motion) for clip in shown])
    return [
        clip
        if _shows_gestures(config, unit)
        else clip._replace(motion=with_beside(clip.avatar, clip.motion, ridge(clip.features)))
        for unit, clip in zip(units, clips, strict=True)
    ]


def _shows_gestures(config: AvatarTrainConfig, unit: Unit) -> bool:
    return not config.gesture_teachers or unit.teacher in config.gesture_teachers


def embed(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """The joint embedding of audio and motion -> `embedding.safetensors`."""
    with _logged(run, "embed") as (log, figures):
        fitted = read_fits(config, run, models)
        out = Path(run.root) / EMBEDDING
        train_space(fitted.clips, out, fitted.key, config.embedding, config.seed, log)
        figures["clips"] = len(fitted.clips)
    return out


def motion(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """What drives any avatar from wav2vec2 states -> `generator.safetensors`, of which `avatar say` can make a talk."""
    out = Path(run.root) / GENERATOR
    with _logged(run, "motion") as (log, figures):
        fitted = read_fits(config, run, models)
        learnt = config.space == "embedding"
        space = read_space(Path(run.root) / EMBEDDING) if learnt else None
        used = [plain(config.generator), plain(config.embedding) if learnt else "", config.driver, config.seed]
        checkpoint = checkpoint_of(out, fingerprint([fitted.key, used]), "motion", log)
        model = fit_motion_model(
            fitted.clips, "wav2vec2", config.driver, config.seed, generator=config.generator, space=space,
            checkpoint=checkpoint,
        )  # fmt: skip
        model.save(out)
        if checkpoint:
            checkpoint.remove()
        figures["clips"] = len(fitted.clips)
    return out


def refine(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """The refinement of the generator's samples -> `refiner.safetensors`, which is empty where there is none."""
    root = Path(run.root)
    model = load_motion_model(root / GENERATOR)
    if not isinstance(model.net, MotionTransformer) or not config.refinement.steps:
        save_tensors(root / REFINER, {}, {"driver": config.driver, "steps": config.refinement.steps})
        return root / REFINER
    with _logged(run, "refine") as (log, figures):
        fitted = read_fits(config, run, models)
        train_refiner(
            model.net, [clip.features for clip in fitted.clips], _channels(model, fitted.clips),
            len(model.space) + len(GESTURES), root / REFINER, fingerprint([fitted.key, sha256_file(root / GENERATOR)]),
            config.generator, config.refinement, config.seed, log,
        )  # fmt: skip
        figures["clips"] = len(fitted.clips)
    return root / REFINER


def joint(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """Generator and refinement as one, after joint training against the first teacher -> `motion.safetensors`."""
    root = Path(run.root)
    model = load_motion_model(root / GENERATOR)
    with _logged(run, "joint") as (log, figures):
        if isinstance(model.net, MotionTransformer) and config.refinement.steps:
            model = replace(model, refiner=read_refiner(root / REFINER))
        if isinstance(model.net, MotionTransformer) and config.joint.steps:
            model = replace(model, net=_joined(model, model.net, config, run, models, log))
        model.save(root / MOTION)
        figures["bytes"] = (root / MOTION).stat().st_size
    return root / MOTION


def _joined(
    model: MotionModel,
    net: MotionTransformer,
    config: AvatarTrainConfig,
    run: RunFolder,
    models: Mapping[str, Path],
    log: MetricLog,
) -> MotionTransformer:
    """The net after joint training, whose losses and pulls `joint.safetensors` keeps."""
    root, fitted = Path(run.root), read_fits(config, run, models)
    teacher = _score_teacher(config, models) if config.joint.vsd else None
    numbers = [number for number, unit in enumerate(fitted.units) if _shows_gestures(config, unit)]
    chosen = sorted(numbers, key=lambda number: (number % config.voices.each, number))[: config.joint_clips]
    channels = _channels(model, [fitted.clips[number] for number in chosen])
    subjects: dict[str, AvatarSubject] = {}
    clips = []
    for number, values in zip(chosen, channels, strict=True):
        unit, clip = fitted.units[number], fitted.clips[number]
        if unit.person not in subjects:
            subjects[unit.person] = AvatarSubject(clip.avatar, model.bound(clip.avatar))
        clips.append(_joint_clip(unit, clip, values, subjects[unit.person], teacher, root))
    made_of = fingerprint([fitted.key, sha256_file(root / GENERATOR), sha256_file(root / REFINER), chosen])
    out = root / "joint.safetensors"
    train_together(net, clips, teacher, out, made_of, config.joint, config.seed, model.refiner, log)
    net.load_state_dict(read_tensors(out))
    return net


def _score_teacher(config: AvatarTrainConfig, models: Mapping[str, Path]) -> VideoTeacher:
    """The recipe's first teacher, of which joint training needs more than clips. Raises InputError."""
    name = next(iter(config.teachers))
    teacher = load_teacher(name, models, config)
    if not hasattr(teacher, "predict"):
        raise InputError(
            f"avatar.joint distils from the first of avatar.teachers, {name}, which gives clips alone; name one with a"
            " network first, such as omniavatar, or set avatar.joint.vsd to 0."
        )
    return cast(VideoTeacher, teacher)


def _joint_clip(
    unit: Unit, clip: FittedClip, channels: Tensor, subject: AvatarSubject, teacher: VideoTeacher | None, root: Path
) -> JointClip:
    taught, folder = read_clip(root / CLIPS / unit.file), root / AVATARS / unit.person
    image, prompt = read_image_file(folder / "portrait.png"), read_json(folder / "person.json")["prompt"]
    frames = taught.frames[: len(channels)].float() / 255
    condition = None if teacher is None else teacher.condition(image, taught.wave.numpy(), prompt)
    with torch.no_grad():
        tracks = subject.tracks(clip.motion)
    return JointClip(subject, clip.features, channels, tracks, frames, torch.from_numpy(image).float() / 255, condition)


def _channels(model: MotionModel, clips: Sequence[FittedClip]) -> list[Tensor]:
    return [motion_channels(model.space, clip.avatar, clip.motion) for clip in clips]


def _cut(motion: Motion, frames: int) -> Motion:
    return Motion(*(track[:frames] for track in vars(motion).values()))


@contextmanager
def _logged(run: RunFolder, stage: str) -> Iterator[tuple[MetricLog, dict[str, Any]]]:
    """The log, for losses, and a place for figures, which it gets at the end with the seconds of the stage."""
    log, figures = MetricLog(run.logs / LOG), dict[str, Any]()
    started, cpu = time.monotonic(), time.process_time()
    try:
        yield log, figures
        spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
        log.write(stage=stage, step=0, **figures, **{name: round(of, 3) for name, of in spent.items()})
    finally:
        log.close()
