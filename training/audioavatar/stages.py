"""Stages of the second system's training: teacher clips, fits, motion from audio.

Each is a function of the settings and the run folder. What it makes is a file per unit that is there whole or not at
all, with what it was made of inside: a killed stage goes on where it was, and makes the same bytes.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from audioavatar.avatar import FILE, Avatar, load_avatar
from audioavatar.config import FitConfig
from audioavatar.driven.basis import carry
from audioavatar.driven.features import audio_features
from audioavatar.driven.model import MotionModel, fit_motion_model
from audioavatar.fit.clip import fit_clip
from audioavatar.motion import Motion
from audioavatar.say import build
from common.executors.status import StageHeartbeat
from common.hashes import HASHES, remembered_hash
from common.progress import MetricLog, progress
from common.runs import RunFolder, atomic_write, fingerprint, plain, read_json, sha256_file, write_json
from omniavatar.encoders.audio import load_audio_encoder
from training.audioavatar.config import AvatarTrainConfig
from training.audioavatar.people import find_person, people_names, training_voices, voice_wave
from training.audioavatar.teach import TEACHERS, VideoTeacher, read_clip, save_clip, teacher_clip_key

logger = logging.getLogger(__name__)
AVATARS, CLIPS, FITS, MOTION = "avatars", "teacher", "fits", "motion.safetensors"
LOG = "train-avatar.jsonl"


@dataclass(frozen=True)
class Unit:
    """One clip of training: who says what, by which teacher, with which seed."""

    person: str
    voice: Any
    teacher: str

    @property
    def file(self) -> Path:
        """Where its clip lies below `teacher/` and its fit below `fits/`."""
        return Path(self.person) / f"{self.voice.name}.safetensors"


def training_units(config: AvatarTrainConfig) -> list[Unit]:
    """Every clip of training, person by person. Raises InputError."""
    people = people_names(config.people, config.score.people)[: config.people.train]
    voices = training_voices(config.voices, len(people), config.score.voices)
    names = list(config.teachers)
    return [
        Unit(people[number // config.voices.each], voice, names[number % len(names)])
        for number, voice in enumerate(voices)
    ]


def each_unit(run: RunFolder, stage: str, settings: Any, units: Sequence[Any], work: Callable[[Any], dict[str, Any] | None]) -> None:
    """Do the work of every unit, with a bar, a status for `omniavatar status` and a line in the log for each one that
    was not there: `work` returns its figures, or None for one that is."""
    counts: dict[Any, int] = {"kept": 0}
    key = fingerprint(plain(settings))[:16]
    with StageHeartbeat(run.ledger, stage, key, len(units), counts) as status, progress(len(units), stage) as bar:
        log = MetricLog(run.logs / LOG)
        for number, unit in enumerate(units):
            started, cpu = time.monotonic(), time.process_time()
            figures = work(unit)
            if figures is not None:
                spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
                log.write(stage=stage, step=number, **figures, **{k: round(v, 3) for k, v in spent.items()})
            counts["kept"] += 1
            status.beat()
            bar.update()


def teach(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """Avatars of the people of training and a teacher's clip of every unit -> the folder of the clips."""
    units = training_units(config)
    people = list(dict.fromkeys(unit.person for unit in units))
    make_avatars(config, run, models, people)
    teachers: dict[str, VideoTeacher] = {}
    make_clips(config, run, models, units, run.root / CLIPS, teachers)
    return Path(run.root) / CLIPS


def make_avatars(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path], people: Sequence[str]) -> None:
    """`avatars/<person>/`: the portrait, the avatar, and last `person.json` with what it was made of."""

    def make(name: str) -> dict[str, Any] | None:
        folder = Path(run.root) / AVATARS / name
        person = find_person(name, config.people, config.seed, models)
        key = fingerprint([hashlib.sha256(person.picture.tobytes()).hexdigest(), person.prompt, plain(config.relief), _hash(run, models["face_detector"])])
        about = folder / "person.json"
        if about.exists() and read_json(about).get("made_of") == key and (folder / FILE).exists():
            return None
        avatar = build(person.picture, models["face_detector"], config.relief)
        avatar.save(folder)
        with atomic_write(folder / "portrait.png") as temporary:
            Image.fromarray(person.picture).save(temporary, "png")
        write_json(about, {"made_of": key, "prompt": person.prompt})
        return {"person": name, "particles": len(avatar.particles)}

    each_unit(run, "avatars", config.relief, people, make)


def make_clips(
    config: AvatarTrainConfig,
    run: RunFolder,
    models: Mapping[str, Path],
    units: Sequence[Unit],
    out: Path,
    stage: str = "teach",
) -> None:
    """A teacher's clip of every unit in `out`; a teacher is loaded when the first clip of it is not there."""
    teachers: dict[str, VideoTeacher] = {}
    weights = {role: _hash(run, path) for role, path in sorted(models.items())}

    def make(unit: Unit) -> dict[str, Any] | None:
        path, person = out / unit.file, Path(run.root) / AVATARS / unit.person
        picture = np.asarray(Image.open(person / "portrait.png"))
        prompt, wave = read_json(person / "person.json")["prompt"], voice_wave(unit.voice, config.voices)
        settings = config.teachers[unit.teacher]
        key = teacher_clip_key([unit.teacher, plain(settings), weights, prompt, unit.voice.number], picture, wave)
        if is_made_of(path, key):
            return None
        if unit.teacher not in teachers:
            teachers[unit.teacher] = TEACHERS[unit.teacher](models, settings)
        frames = teachers[unit.teacher].generate(picture, wave, prompt, unit.voice.number)
        about = {"made_of": key, "teacher": teachers[unit.teacher].settings(), "prompt": prompt, "seed": unit.voice.number}
        save_clip(path, frames, wave, about)
        return {"person": unit.person, "voice": unit.voice.name}

    each_unit(run, stage, config.teachers, units, make)
