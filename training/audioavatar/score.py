"""Scores of a trained second system: fits, and held-out voices said by people trained on and by held-out ones.

The only place of this training that looks at what is true of drawn voices, lips, stress and gestures, to score by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from audioavatar.avatar import GESTURES, Avatar, load_avatar
from audioavatar.config import SayConfig
from audioavatar.driven.features import audio_features
from audioavatar.driven.model import load_motion_model
from audioavatar.driven.space import LearntSpace
from audioavatar.frames import FrameRenderer
from audioavatar.motion import Motion, lip_gap
from audioavatar.regularisers import arap
from audioavatar.say import AudioAvatar
from common.constants import FPS, SAMPLES_PER_FRAME
from common.progress import MetricLog
from common.runs import RunFolder, atomic_write, write_json
from miniature.world.clips import Performance, perform
from omniavatar.encoders.audio import AudioEncoder, load_audio_encoder
from perception.faces.crop import crop_track
from perception.faces.detect import FaceDetector, load_face_detector
from perception.sync.syncnet import SyncNet, SyncResult, load_syncnet, sync_scores
from training.audioavatar.config import EMBEDDING, LOG, MOTION, TEACHER_ROLES, AvatarTrainConfig
from training.audioavatar.embed import FittedClip, read_space, similarity
from training.audioavatar.people import Voice, held_out_voices, people_names, voice_wave
from training.audioavatar.picture import Shown, draw_training
from training.audioavatar.stages import (
    AVATARS,
    CLIPS,
    FITS,
    Unit,
    each_unit,
    make_avatars,
    make_clips,
    read_motion,
    training_units,
)
from training.audioavatar.teach import read_clip

DELAY = 3  # frames, that have to be found again
CLOSED = 0.9  # from which on lids count as closed
FOLLOWED = ("lip_gap", "nod", "nod_stress", "brows", "hands")
"""Correlations with the drawn truth of the voice: gap of the lips; head up and down, of which drift is a part that no
audio tells, and with stress alone; brows; hands, of those whose picture shows them."""


@dataclass(frozen=True)
class _Judges:
    net: SyncNet
    detector: FaceDetector
    encoder: AudioEncoder
    space: LearntSpace

    def sync(self, frames: np.ndarray, wave: np.ndarray, avatar: Avatar) -> tuple[np.ndarray, SyncResult]:
        """The crops of the face, found in every frame or where it was in the portrait, and how they go with a wave."""
        boxes, box = [], avatar.face.numpy()
        for frame in frames:
            found = self.detector.detect(frame)
            box = max((face.box for face in found), key=lambda each: float(np.prod(each[2:] - each[:2])), default=box)
            boxes.append(box)
        crops = crop_track(frames, np.stack(boxes), self.net.crop_size)
        return crops, sync_scores(self.net, crops, wave)


def score(config: AvatarTrainConfig, run: RunFolder, models: Mapping[str, Path]) -> dict[str, Any]:
    """Score the fits and the motion model of a run -> `report/avatar.parquet`, a row per clip, and the means of them,
    which `report/avatar.json` keeps; `report/avatar.png` shows some talks and the losses."""
    root, held_out = Path(run.root), config.score
    everybody = people_names(config.people, held_out.people)
    teacher_models = {role: models[role] for role in TEACHER_ROLES}
    make_avatars(config, run, teacher_models, everybody)
    voices = held_out_voices(config.voices, held_out.voices)
    units = [Unit(name, voice, next(iter(config.teachers))) for name in everybody for voice in voices]
    clips = make_clips(config, run, teacher_models, units, root / "heldout", "heldout")
    encoder, space = load_audio_encoder(models["audio_encoder"]), read_space(root / EMBEDDING)
    judges = _Judges(load_syncnet(models["sync_scorer"]), load_face_detector(models["face_detector"]), encoder, space)
    avatars = {name: load_avatar(root / AVATARS / name) for name in everybody}
    shown = [*everybody[: config.people.train][:2], *everybody[config.people.train :][:2]]
    rows: list[dict[str, Any]] = []
    talks: list[Shown] = []

    def judge_fit(unit: Unit) -> dict[str, Any]:
        rows.append(_fit_row(unit, avatars[unit.person], config, root, judges))
        return rows[-1]

    model = load_motion_model(root / MOTION)

    def judge_talk(unit: Unit) -> dict[str, Any]:
        avatar = avatars[unit.person]
        wave, other = (voice_wave(each, config.voices) for each in (unit.voice, _next(voices, unit.voice)))
        moved = AudioAvatar(avatar, model, encoder).say(wave, SayConfig(seed=config.seed + unit.voice.number)).motion
        own = unit.person in everybody[: config.people.train]
        row, crops = _row("own" if own else "held_out", unit, avatar, moved, wave, clips, judges, config)
        row["swapped"] = sync_scores(judges.net, crops, other).sync_c
        late = np.concatenate([np.zeros(DELAY * SAMPLES_PER_FRAME, np.float32), wave])[: len(wave)]
        row["delay_found"] = float(row["offset"] - sync_scores(judges.net, crops, late).offset == DELAY)
        if config.voices.source == "drawn":
            other_performance = perform(_next(voices, unit.voice).number, config.voices.seconds)
            row |= {f"{name}_swapped": r for name, r in _followed(avatar, moved, other_performance).items()}
        rows.append(row)
        if unit.person in shown and unit.voice == voices[0]:
            who = f"{unit.person}, {'trained on' if own else 'never seen'}"
            title = f"{who}: teacher, Sync-C {row['teacher_sync_c']:.1f}; below it the avatar, {row['sync_c']:.1f}"
            talks.append(Shown(title, read_clip(clips / unit.file).frames.numpy(), _rendered(avatar, moved)))
        return row

    each_unit(run, "score fits", config.score, training_units(config), judge_fit)
    each_unit(run, "score", config.score, units, judge_talk)
    with atomic_write(run.report / "avatar.parquet") as temporary:
        pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), temporary)
    means = summary(rows)
    write_json(run.report / "avatar.json", means)
    draw_training(MetricLog(run.logs / LOG), talks, run.report / "avatar.png")
    return means


_NUMBERS = ("teacher_sync_c", "teacher_offset", "sync_c", "offset", "swapped", "delay_found", "lip_gap_px", "arap",
            "retrieval", "similarity_offset", "clip_seconds", "blinks", "lids_closed", *FOLLOWED,
            *(f"{name}_swapped" for name in FOLLOWED))  # fmt: skip
_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("kind", "person", "voice", "teacher")]
    + [(name, pa.float64()) for name in _NUMBERS]
)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means of the rows of fits, of people trained on and of held-out ones; `share` is of the teacher's Sync-C,
    `retrieval` how many times more often than by chance a frame's audio finds its motion in the clip (R@1)."""
    means: dict[str, float] = {}
    fits = [row for row in rows if row["kind"] == "fit"]
    groups = {kind: [row for row in rows if row["kind"] == kind] for kind in ("fit", "own", "held_out")}
    # Teachers show different things, so where there are several their fits are told apart.
    teachers = list(dict.fromkeys(row["teacher"] for row in fits))
    if len(teachers) > 1:
        groups |= {f"fit_{name}": [row for row in fits if row["teacher"] == name] for name in teachers}
    for kind, of in groups.items():
        if not of:
            continue

        def mean(name: str, of: Sequence[Mapping[str, Any]] = of) -> float:
            return float(np.mean([row[name] for row in of]))

        figures = {"clips": len(of), "teacher_sync_c": mean("teacher_sync_c"), "sync_c": mean("sync_c")}
        figures["share"] = figures["sync_c"] / figures["teacher_sync_c"]
        figures["offset_0"] = float(np.mean([row["offset"] == 0 for row in of]))
        if not kind.startswith("fit"):
            figures |= {"swapped_share": mean("swapped") / figures["sync_c"], "delay_found": mean("delay_found")}
            blinking = [row["lids_closed"] for row in of if row["blinks"]]
            figures["blinks_per_minute"] = (
                60 * sum(row["blinks"] for row in of) / sum(row["clip_seconds"] for row in of)
            )
            figures |= {"lids_closed": float(np.mean(blinking))} if blinking else {}
        figures["similarity_offset_0"] = float(np.mean([row["similarity_offset"] == 0 for row in of]))
        for name in ("lip_gap_px", "arap", "retrieval", *FOLLOWED, *(f"{each}_swapped" for each in FOLLOWED)):
            measured = [row for row in of if row.get(name) is not None]
            figures |= {name: mean(name, measured)} if measured else {}
        means |= {f"{kind}.{name}": round(float(value), 3) for name, value in figures.items()}
    return means


def _fit_row(unit: Unit, avatar: Avatar, config: AvatarTrainConfig, root: Path, judges: _Judges) -> dict[str, Any]:
    wave = read_clip(root / CLIPS / unit.file).wave.numpy()
    return _row("fit", unit, avatar, read_motion(root / FITS / unit.file), wave, root / CLIPS, judges, config)[0]


def _row(
    kind: str,
    unit: Unit,
    avatar: Avatar,
    moved: Motion,
    wave: np.ndarray,
    clips: Path,
    judges: _Judges,
    config: AvatarTrainConfig,
) -> tuple[dict[str, Any], np.ndarray]:
    """The row of a motion, and the crops of its face."""
    _, teacher = judges.sync(read_clip(clips / unit.file).frames.numpy(), wave, avatar)
    crops, own = judges.sync(_rendered(avatar, moved), wave, avatar)
    rest = avatar.particles.mean[:, :2]
    row: dict[str, Any] = {"kind": kind, "person": unit.person, "voice": unit.voice.name}
    row["teacher"] = unit.teacher
    row |= {"teacher_sync_c": teacher.sync_c, "teacher_offset": float(teacher.offset)}
    row |= {"sync_c": own.sync_c, "offset": float(own.offset)}
    row |= {
        "lip_gap_px": float(lip_gap(avatar, moved).std()),
        "arap": float(arap(rest + moved.shift, rest, avatar.graph)),
    }
    features = audio_features(wave, "wav2vec2", judges.encoder)[: len(moved)]
    found = similarity(judges.space, [FittedClip(avatar, moved, features)])
    row |= {"retrieval": found.frames / found.chance_frames, "similarity_offset": float(found.offset)}
    closed = moved.gesture[:, 0].numpy() >= CLOSED
    row |= {"clip_seconds": len(moved) / FPS, "lids_closed": float(moved.gesture[:, 0].max())}
    row["blinks"] = float((closed & ~np.roll(closed, 1)).sum())
    if config.voices.source == "drawn":
        row |= _followed(avatar, moved, perform(unit.voice.number, config.voices.seconds))
    return row, crops


def _rendered(avatar: Avatar, moved: Motion) -> np.ndarray:
    return np.stack(list(FrameRenderer(avatar, SayConfig(longest_side=max(avatar.size))).frames(moved)))


def _followed(avatar: Avatar, moved: Motion, performance: Performance) -> dict[str, float | None]:
    """How far the avatar follows what is true of a voice: the correlations of `FOLLOWED`, those of hands without hands
    left out; None where there is nothing to follow."""
    gesture = dict(zip(GESTURES, moved.gesture.numpy().T, strict=True))
    nod, truth = moved.head[:, 1].numpy(), performance.motion
    # Brows of the drawn world are its smoothed stress.
    found = {
        "lip_gap": _r(lip_gap(avatar, moved).numpy(), performance.speech.lips[:, 0]),
        "nod": _r(nod, truth.y),
        "nod_stress": _r(nod, truth.brow),
        "brows": _r(gesture["brows"], truth.brow),
    }
    hands = [
        _r(-gesture[f"{side} hand down"], lift)
        for side, lift in zip(("left", "right"), truth.hands.T, strict=True)
        if avatar.gestures[GESTURES.index(f"{side} hand down")].any()
    ]
    seen = [each for each in hands if each is not None]
    return found | ({"hands": float(np.mean(seen))} if seen else {})


def _r(motion: np.ndarray, truth: np.ndarray) -> float | None:
    """Correlation over the frames that both have: None where the truth keeps still, as brows do in a clip without
    stress; 0 for a motion that does, which follows nothing."""
    count = min(len(motion), len(truth))
    motion, truth = motion[:count], truth[:count]
    if truth.std() < 1e-6:
        return None
    return float(np.corrcoef(motion, truth)[0, 1]) if motion.std() > 1e-6 else 0.0


def _next(voices: Sequence[Voice], voice: Voice) -> Voice:
    """Another voice: with whose audio a talk is compared as if it were its own."""
    return voices[(voices.index(voice) + 1) % len(voices)]
