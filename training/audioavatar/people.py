"""People and voices that the second system learns from: drawn, from folders, or drawn by the base from prompts.

Of what is drawn only pictures and sound are taken; its landmarks, masks and openings stay where they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from common.constants import AUDIO_RATE
from common.errors import InputError
from miniature.world.clips import HELD_OUT_SEED, draw_clip
from miniature.world.figure import (
    COLOURS,
    FRAME_SIZE,
    HAIR_COLOURS,
    HAIR_STYLES,
    PATTERNS,
    SKINS,
    Framing,
    Identity,
    Motion,
    describe,
    draw_identity,
    draw_motion,
    render,
)
from miniature.world.voice import silence
from omniavatar.config import BASE_ROLES, GenerateConfig
from omniavatar.generate import draw_portrait
from omniavatar.models import ModelPaths, load_models
from omniavatar.planning.job import job_for
from omniavatar.video.inputs import decode_audio, decode_image
from training.audioavatar.config import PeopleConfig, VoicesConfig

DRAWN: Mapping[str, tuple[str, ...]] = {
    "skin": tuple(SKINS), "hair_colour": tuple(HAIR_COLOURS), "hair_style": HAIR_STYLES, "clothes": tuple(COLOURS),
    "pattern": PATTERNS, "glasses": ("yes", "no"), "framing": tuple(FRAME_SIZE),
}  # fmt: skip
"""Attributes of a drawn person that a recipe may choose, and their choices."""

IMAGES = (".png", ".jpg", ".jpeg", ".webp")
SOUNDS = (".wav", ".flac", ".mp3", ".m4a", ".ogg")
_FIRST_VOICE = 101
_FOLDER_PROMPT = "the face of a person - the person talks to the camera - a plain background"


@dataclass(frozen=True)
class Person:
    """A `image` (H, W, 3) uint8 RGB and the `prompt` that a teacher animates it with."""

    image: np.ndarray
    prompt: str


@dataclass(frozen=True)
class Voice:
    """A voice's name, its number, which is the teacher's seed, and where it comes from."""

    name: str
    number: int
    file: Path | None = None
    piece: int = 0


def people_names(config: PeopleConfig, held_out: int) -> list[str]:
    """Everybody's name: first those trained on, then `held_out` more. Raises InputError for a folder with too few."""
    count = config.train + held_out
    if config.source == "drawn":
        return [str(HELD_OUT_SEED + number) for number in range(count)]
    if config.source == "prompts":
        return [f"person-{number:04d}" for number in range(count)]
    files = _files(config.folder, IMAGES)
    if len(files) < count:
        raise InputError(f"{config.folder} holds {len(files)} pictures; expected {count}, {held_out} held out.")
    return [file.stem for file in files[:count]]


def find_person(name: str, config: PeopleConfig, seed: int, weights: Mapping[str, Path]) -> Person:
    """The person of a name of `people_names`. Raises InputError for attributes that there are not."""
    if config.source == "folder":
        file = next(file for file in _files(config.folder, IMAGES) if file.stem == name)
        return Person(decode_image(file)[0], config.template or _FOLDER_PROMPT)
    if config.source == "drawn":
        return drawn_person(name, config, seed).person
    rng, chosen = _chosen(name, config, seed)
    try:
        prompt = config.template.format(**chosen)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(
            f"avatar.people.template names {error}; the attributes are {', '.join(chosen) or 'none'}."
        ) from error
    settings = replace(config.portrait, seed=int(rng.integers(2**31)))
    return Person(_portrait_from_prompt(weights, prompt, settings), prompt)


def _chosen(name: str, config: PeopleConfig, seed: int) -> tuple[np.random.Generator, dict[str, str]]:
    """One choice of every attribute for the person of a name, and the generator that made it."""
    rng = np.random.default_rng([seed, int(name.rpartition("-")[2])])
    return rng, {key: choices[int(rng.integers(len(choices)))] for key, choices in sorted(config.attributes.items())}


@dataclass(frozen=True)
class DrawnPerson:
    """Somebody whom the small world draws: as what, in which `framing`, and the `pose` of the portrait, one frame."""

    identity: Identity
    framing: Framing
    pose: Motion

    @property
    def person(self) -> Person:
        """The portrait, of closed lips."""
        return Person(self.film(self.pose, silence(1).lips)[0], describe(self.identity, self.framing))

    def film(self, motion: Motion, lips: np.ndarray) -> np.ndarray:
        """Frames (T, H, W, 3) uint8 RGB of a motion and of lips (T, 3)."""
        return render(self.identity, motion, lips, self.framing).frames


def drawn_person(name: str, config: PeopleConfig, seed: int) -> DrawnPerson:
    """The drawn person of a name of `people_names`. Raises InputError for attributes that there are not."""
    _, chosen = _chosen(name, config, seed)
    for key, value in chosen.items():
        if value not in DRAWN.get(key, ()):
            options = ", ".join(DRAWN.get(key, tuple(DRAWN)))
            raise InputError(f"avatar.people.attributes has {key}: {value}; the small world draws {options}.")
    rng = np.random.default_rng(int(name))
    attributes: dict[str, Any] = dict(chosen)
    framing = cast(Framing, attributes.pop("framing", "face"))
    if "glasses" in attributes:
        attributes["glasses"] = attributes["glasses"] == "yes"
    identity = replace(draw_identity(rng), **attributes)
    return DrawnPerson(identity, framing, draw_motion(silence(1).stress, rng))


def _portrait_from_prompt(weights: Mapping[str, Path], prompt: str, config: GenerateConfig) -> np.ndarray:
    paths = ModelPaths(**{role: weights[role] for role in BASE_ROLES})
    job = job_for(config, (64, 64), audio=False, frames=config.portrait_frames)
    return draw_portrait(load_models(paths, config.load, job), prompt, config)


def training_voices(config: VoicesConfig, people: int, held_out: int) -> list[Voice]:
    """The voices of training, `config.each` per person, one person after the other. Raises InputError."""
    count = people * config.each
    if config.source == "drawn":
        return [Voice(str(_FIRST_VOICE + number), _FIRST_VOICE + number) for number in range(count)]
    files = _voice_files(config, held_out)[:-held_out]
    return [
        Voice(
            f"{files[i % len(files)].stem}-{i // len(files):03d}",
            _FIRST_VOICE + i,
            files[i % len(files)],
            i // len(files),
        )
        for i in range(count)
    ]


def held_out_voices(config: VoicesConfig, held_out: int) -> list[Voice]:
    """The voices of scoring. Raises InputError."""
    if config.source == "drawn":
        first = HELD_OUT_SEED + _FIRST_VOICE
        return [Voice(str(first + number), first + number) for number in range(held_out)]
    files = _voice_files(config, held_out)[-held_out:]
    return [Voice(f"{file.stem}-000", HELD_OUT_SEED + number, file) for number, file in enumerate(files)]


def voice_wave(voice: Voice, config: VoicesConfig) -> np.ndarray:
    """What a voice says: mono 16 kHz float32. Raises InputError for a file that is too short."""
    if voice.file is None:
        return draw_clip(voice.number, config.seconds).audio
    length = round(config.seconds * AUDIO_RATE)
    wave = decode_audio(voice.file)[0].wave[voice.piece * length : (voice.piece + 1) * length]
    if len(wave) < length:
        raise InputError(
            f"{voice.file} ends before piece {voice.piece + 1} of {config.seconds:g} s; give more or longer files, or "
            "fewer clips per person (avatar.voices.each)."
        )
    return np.ascontiguousarray(wave)


def _voice_files(config: VoicesConfig, held_out: int) -> list[Path]:
    files = _files(config.folder, SOUNDS)
    if len(files) <= held_out:
        raise InputError(f"{config.folder} holds {len(files)} sound files; expected more than the {held_out} held out.")
    return files


def _files(folder: str, suffixes: tuple[str, ...]) -> list[Path]:
    if not Path(folder).is_dir():
        raise InputError(f"There is no folder {folder}; expected files with {', '.join(suffixes)}.")
    files = sorted(file for file in Path(folder).iterdir() if file.suffix.lower() in suffixes)
    stems = [file.stem for file in files]
    if double := next((stem for stem in stems if stems.count(stem) > 1), ""):
        raise InputError(f"{folder} holds two files named {double}; give every one a name of its own.")
    return files
