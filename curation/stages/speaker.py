"""Which of the faces speaks? Lips against the voice, an active-speaker network, SyncNet and the data set's own point.

Every judge gives a value per face track; `choose_speaker` weighs them, and all later fields are about that face.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.open import MediaError
from common.media.video import decode_video
from curation.config import PeopleConfig, SpeakerConfig
from curation.stages.people import annotated_distances, find_tracks, people_fields
from perception.faces.crop import crop_track
from perception.faces.tracks import Track
from perception.sync.active_speaker import CROP_SIDE, ActiveSpeaker, load_active_speaker, speaking_scores
from perception.sync.lips import SIDE, lip_motion

Row = Mapping[str, Any]

READS = ("unit", "source_sha256", "t_start", "t_end", "crop", "size", "faces", "x", "y", "point_at")


DEFAULT_SPEAKER = SpeakerConfig()


@dataclass(frozen=True)
class Evidence:
    """One value per face track from each judge that was asked, None from the others: percent of frames in which it
    speaks, SyncNet confidence, motion and agreement of the lips, distance from the annotated point."""

    speaking_pct: Sequence[float] | None = None
    sync_c: Sequence[float] | None = None
    lips: Sequence[Sequence[float]] | None = None
    distance: Sequence[float] | None = None


def choose_speaker(config: SpeakerConfig, evidence: Evidence) -> tuple[int, str]:
    """Number of the face that speaks, and what says so: the first judge in this order that sees a face speak at all.

    "active_speaker", "sync", "lips" (the moving lips that agree best with the voice), "annotation" (the nearest face),
    "none" (no face is seen to speak: the one that SyncNet likes best, or the one seen most often).
    """
    if evidence.speaking_pct and max(evidence.speaking_pct) >= config.min_speaking_pct:
        return int(np.argmax(evidence.speaking_pct)), "active_speaker"
    if evidence.sync_c and max(evidence.sync_c) >= config.min_sync_c:
        return int(np.argmax(evidence.sync_c)), "sync"
    moving = [agreement if motion >= config.min_lip_motion else -np.inf for motion, agreement in evidence.lips or ()]
    if moving and max(moving) > -np.inf:
        return int(np.argmax(moving)), "lips"
    if evidence.distance:
        return int(np.argmin(evidence.distance)), "annotation"
    return (int(np.argmax(evidence.sync_c)) if evidence.sync_c else 0), "none"


def speaker_fields(
    config: SpeakerConfig, tracks: list[Track], row: Row, sync_c: Sequence[float] | None = None
) -> dict[str, Any]:
    """Clip fields of the face that speaks: those of `people_fields`, speaker_evidence, asd_speaking_pct,
    lip_agreement; and lip_motion of the face whose lips move most. Reads `speaking_pct` and `lips` of the row."""
    lips, speaking = row.get("lips"), row.get("speaking_pct")
    evidence = Evidence(speaking, sync_c, lips, annotated_distances(tracks, row))
    speaker, said_by = choose_speaker(config, evidence)
    return people_fields(tracks, row, speaker) | {
        "speaker_evidence": said_by,
        "asd_speaking_pct": speaking[speaker] if speaking else None,
        "lip_motion": max(motion for motion, _ in lips) if lips else None,
        "lip_agreement": lips[speaker][1] if lips else None,
    }


def lips_stage(config: SpeakerConfig, people: PeopleConfig, folder: Path) -> Stage:
    """The stage over cut clip rows, without weights.

    Outputs: `lips` [[motion, agreement], ...] per face track, and the fields of `speaker_fields` as far as is known.
    """
    params = {"speaker": asdict(config), "people": asdict(people)}
    return Stage("lips", "1", params, {}, partial(_make_lips, config, people, folder), (*READS, "speaking_pct"))


def _make_lips(config: SpeakerConfig, people: PeopleConfig, folder: Path) -> Callable[[dict[str, Any]], Outcome]:
    cv2.setNumThreads(1)  # the executor's processes are the parallelism
    return partial(measure_lips, config, people, folder)


def measure_lips(config: SpeakerConfig, people: PeopleConfig, folder: Path, row: dict[str, Any]) -> Outcome:
    """Kept whatever is found; rejected when the source's sound cannot be read."""
    tracks = find_tracks(people, row)
    if not tracks:
        return Outcome(row["unit"], "kept")
    try:
        wave = read_audio(row["path"], AUDIO_RATE, row["t_start"], row["t_end"])
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    found = [lip_motion(face_crops(_file(folder, row), track, SIDE), track_sound(track, wave)) for track in tracks]
    lips = [[round(each.motion, 4), round(each.agreement, 4)] for each in found]
    return Outcome(row["unit"], "kept", outputs={"lips": lips} | speaker_fields(config, tracks, row | {"lips": lips}))


def active_speaker_stage(people: PeopleConfig, folder: Path, model: Path, model_hash: str) -> Stage:
    """The stage over cut clip rows. Output: `speaking_pct` per face track, percent of its frames in which it speaks."""
    make = partial(_make_active_speaker, people, folder, model)
    return Stage("active_speaker", "1", {"people": asdict(people)}, {"active_speaker": model_hash}, make, READS)


def _make_active_speaker(people: PeopleConfig, folder: Path, model: Path) -> Callable[[dict[str, Any]], Outcome]:
    torch.set_num_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(measure_speaking, people, folder, load_active_speaker(model, device))


def measure_speaking(people: PeopleConfig, folder: Path, net: ActiveSpeaker, row: dict[str, Any]) -> Outcome:
    """Kept whatever is found; rejected when the source's sound cannot be read."""
    tracks = find_tracks(people, row)
    if not tracks:
        return Outcome(row["unit"], "kept")
    try:
        wave = read_audio(row["path"], AUDIO_RATE, row["t_start"], row["t_end"])
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    scores = [
        speaking_scores(net, face_crops(_file(folder, row), track, CROP_SIDE), track_sound(track, wave))
        for track in tracks
    ]
    shares = [round(100 * float(np.mean(score > 0)), 2) if len(score) else 0.0 for score in scores]
    return Outcome(row["unit"], "kept", outputs={"speaking_pct": shares})


def face_crops(file: Path, track: Track, side: int) -> np.ndarray:
    """The face of one track (n, side, side, 3), taken frame by frame: a clip of large pictures fills the memory."""
    frames = islice(decode_video(file), track.start_frame, track.stop_frame)
    return crop_track(frames, track.boxes, side)  # type: ignore[arg-type]  # it only iterates over them


def track_sound(track: Track, wave: np.ndarray) -> np.ndarray:
    """The piece of the clip's sound (n,) over the frames in which a face is seen."""
    return wave[track.start_frame * SAMPLES_PER_FRAME : track.stop_frame * SAMPLES_PER_FRAME]


def _file(folder: Path, row: Row) -> Path:
    return folder / f"{row['unit']}.mp4"
