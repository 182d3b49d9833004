"""Stages of the second system's training that make what networks learn from: avatars, teacher clips, fits.

Each is a function of the settings and the run folder. What it makes is a file per unit that is there whole or not at
all, with what it was made of inside: a killed stage goes on where it was, and makes the same bytes.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from audioavatar.avatar import FILE, load_avatar
from audioavatar.distil.teacher import ClipTeacher
from audioavatar.fit.clip import fit_clip
from audioavatar.motion import Motion
from audioavatar.say import build
from common.executors.status import StageHeartbeat
from common.hashes import HASHES, remembered_hash
from common.ledger.store import State
from common.media.images import read_image_file
from common.progress import MetricLog, ProgressBar, progress
from common.runs import RunFolder, atomic_write, fingerprint, plain, read_json, sha256_file, write_json
from training.audioavatar.config import LOG, AvatarTrainConfig
from training.audioavatar.people import Voice, find_person, people_names, training_voices, voice_wave
from training.audioavatar.stage_file import about as about_file
from training.audioavatar.stage_file import read_tensors, save_tensors
from training.audioavatar.teach import clip_key, load_teacher, read_clip, save_clip

AVATARS, CLIPS, FITS = "avatars", "teacher", "fits"
T = TypeVar("T")


@dataclass(frozen=True)
class Unit:
    """One clip: who says what, by which teacher."""

    person: str
    voice: Voice
    teacher: str

    @property
    def file(self) -> Path:
        """Where its clip and its fit lie in the folders of those."""
        return Path(self.person) / f"{self.voice.name}.safetensors"


def training_people(config: AvatarTrainConfig) -> list[str]:
    """Names of those trained on."""
    return people_names(config.people, config.score.people)[: config.people.train]


def training_units(config: AvatarTrainConfig) -> list[Unit]:
    """Every clip of training, person by person. Raises InputError."""
    people = training_people(config)
    voices = training_voices(config.voices, len(people), config.score.voices)
    names = list(config.teachers)
    return [
        Unit(people[number // config.voices.each], voice, names[number % len(names)])
        for number, voice in enumerate(voices)
    ]


def each_unit(
    run: RunFolder, stage: str, settings: Any, units: Sequence[T], work: Callable[[T], dict[str, Any] | None]
) -> None:
    """Do the work of every unit, with a bar, a status for `omniavatar status`, and a line in the log for each that was
    not there: `work` returns its figures, or None for a unit that is."""
    counts: dict[State, int] = {"kept": 0}
    key, log = fingerprint(plain(settings))[:16], MetricLog(run.logs / LOG)
    bar: ProgressBar[None] = progress(len(units), stage)
    with StageHeartbeat(run.ledger, stage, key, len(units), counts) as status, bar:
        for number, unit in enumerate(units):
            started, cpu = time.monotonic(), time.process_time()
            figures = work(unit)
            if figures is not None:
                spent = {"seconds": time.monotonic() - started, "cpu_seconds": time.process_time() - cpu}
                log.write(stage=stage, step=number, **figures, **{name: round(of, 3) for name, of in spent.items()})
            counts["kept"] += 1
            status.beat()
            bar.update()


def teach(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> Path:
    """Avatars of the people of training, and a teacher's clip of every unit -> `teacher/`."""
    make_avatars(config, run, models, training_people(config))
    return make_clips(config, run, models, training_units(config), Path(run.root) / CLIPS)


def make_avatars(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path], people: Sequence[str]) -> None:
    """`avatars/<person>/`: the portrait, the avatar, and last `person.json` with what they were made of."""
    detector = _hash(run, models["face_detector"])

    def make(name: str) -> dict[str, Any] | None:
        folder = Path(run.root) / AVATARS / name
        person = find_person(name, config.people, config.seed, models)
        image = hashlib.sha256(person.image.tobytes()).hexdigest()
        key, about = fingerprint([image, person.prompt, plain(config.relief), detector]), folder / "person.json"
        if about.exists() and read_json(about).get("made_of") == key and (folder / FILE).exists():
            return None
        avatar = build(person.image, models["face_detector"], config.relief)
        avatar.save(folder)
        with atomic_write(folder / "portrait.png") as temporary:
            Image.fromarray(person.image).save(temporary, "png")
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
) -> Path:
    """A teacher's clip of every unit in `out`; a teacher is loaded when the first clip of it is to be made."""
    loaded: dict[str, ClipTeacher] = {}
    weights = {role: _hash(run, path) for role, path in sorted(models.items())}

    def make(unit: Unit) -> dict[str, Any] | None:
        folder, settings = Path(run.root) / AVATARS / unit.person, config.teachers[unit.teacher]
        image = read_image_file(folder / "portrait.png")
        prompt, wave = read_json(folder / "person.json")["prompt"], voice_wave(unit.voice, config.voices)
        seed = unit.voice.number + config.seed
        key = clip_key([unit.teacher, plain(settings), weights, prompt, seed], image, wave)
        if about_file(out / unit.file).get("made_of") == key:
            return None
        if unit.teacher not in loaded:
            loaded[unit.teacher] = load_teacher(unit.teacher, models, config)
        frames = loaded[unit.teacher].generate(image, wave, prompt, seed)
        about = {"made_of": key, "settings": loaded[unit.teacher].settings(), "prompt": prompt, "seed": seed}
        save_clip(out / unit.file, frames, wave, about)
        return {"person": unit.person, "voice": unit.voice.name}

    each_unit(run, stage, config.teachers, units, make)
    return out


def fit(config: AvatarTrainConfig, run: RunFolder) -> Path:
    """Every clip of training fitted by its person's avatar -> `fits/`."""
    return make_fits(config, run, training_units(config), Path(run.root) / CLIPS, Path(run.root) / FITS)


def make_fits(
    config: AvatarTrainConfig, run: RunFolder, units: Sequence[Unit], clips: Path, out: Path, stage: str = "fit"
) -> Path:
    """The clips of units fitted by their persons' avatars -> `out`. A fit has no randomness."""

    def make(unit: Unit) -> dict[str, Any] | None:
        folder, clip, path = Path(run.root) / AVATARS / unit.person, clips / unit.file, out / unit.file
        key = fingerprint([sha256_file(folder / FILE), sha256_file(clip), plain(config.fit)])
        if about_file(path).get("made_of") == key:
            return None
        result = fit_clip(load_avatar(folder), read_clip(clip).frames, config.fit)
        figures = {"psnr": round(result.psnr, 2), "arap": round(result.arap, 4)}
        save_tensors(path, dict(vars(result.motion)), {"made_of": key, **figures})
        return {"person": unit.person, "voice": unit.voice.name, **figures}

    each_unit(run, stage, config.fit, units, make)
    return out


def read_motion(path: Path) -> Motion:
    """A motion that `fit` wrote."""
    return Motion(**read_tensors(path))


def _hash(run: RunFolder, path: Path) -> str:
    return remembered_hash(path, run.cache / HASHES)
