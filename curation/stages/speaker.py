"""Which of the faces speaks? Lips against the voice, an active-speaker network, SyncNet and the data set's own point.

Every judge gives a value per face track; `choose_speaker` weighs them, and all later fields are about that face.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from common.constants import AUDIO_RATE, SAMPLES_PER_FRAME
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.open import MediaError
from common.media.video import decode_video
from curation.config import SpeakerConfig
from curation.rows import ClipRow
from curation.stages.tracks import READS, annotated_distances, people_fields, read_tracks
from perception.faces.tracks import Track

if TYPE_CHECKING:
    from perception.sync.active_speaker import ActiveSpeaker


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
    config: SpeakerConfig, tracks: Sequence[Track], row: Mapping[str, Any], sync_c: Sequence[float] | None = None
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


@dataclass(frozen=True)
class LipsStage(Stage[ClipRow]):
    """Over cut clip rows, without weights. Outputs: `lips` [[motion, agreement], ...] per face track, and the fields of
    `speaker_fields` as far as is known. A clip without a face has none."""

    name = "lips"
    version = "2"
    reads = (*READS, "x", "y", "point_at", "speaking_pct")
    config: SpeakerConfig
    folder: Path = no_effect()
    tracks: Path = no_effect()

    def load(self) -> None:
        """One thread for OpenCV: the executor's processes are the parallelism."""
        cv2.setNumThreads(1)

    def __call__(self, row: ClipRow) -> Outcome:
        """Kept whatever is found; rejected when the source's audio cannot be read."""
        from perception.sync.lips import SIDE, level_mouths, lip_motion

        tracks = read_tracks(self.tracks, row)
        if not tracks:
            return Outcome(row["unit"], "kept")
        try:
            wave = read_audio(row["path"], AUDIO_RATE, row["t_start"], row["t_end"])
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        file = self.folder / f"{row['unit']}.mp4"
        measured = []
        for track in tracks:
            if track.points is None:
                images = face_crops(file, track, SIDE)
            else:
                images = level_mouths(track_frames(file, track), track.points)
            measured.append(lip_motion(images, track_audio(track, wave), self.config.lip_lead))
        lips = [[round(each.motion, 4), round(each.agreement, 4)] for each in measured]
        fields = speaker_fields(self.config, tracks, {**row, "lips": lips})
        return Outcome(row["unit"], "kept", outputs={"lips": lips} | fields)


@dataclass(frozen=True)
class ActiveSpeakerStage(Stage[ClipRow]):
    """Over cut clip rows. Output: `speaking_pct` per face track, percent of its frames in which it speaks."""

    name = "active_speaker"
    pool = "gpu"
    version = "1"
    reads = READS
    active_speaker: Weights
    folder: Path = no_effect()
    tracks: Path = no_effect()
    net: "ActiveSpeaker" = loaded()

    def load(self) -> None:
        """Load the network, on a GPU where there is one."""
        import torch

        from perception.sync.active_speaker import load_active_speaker

        torch.set_num_threads(1)  # the executor's processes are the parallelism
        self.hold(net=load_active_speaker(self.active_speaker.file, "cuda" if torch.cuda.is_available() else "cpu"))

    def __call__(self, row: ClipRow) -> Outcome:
        """Kept whatever is found; rejected when the source's audio cannot be read."""
        from perception.sync.active_speaker import CROP_SIDE, speaking_scores

        tracks = read_tracks(self.tracks, row)
        if not tracks:
            return Outcome(row["unit"], "kept")
        try:
            wave = read_audio(row["path"], AUDIO_RATE, row["t_start"], row["t_end"])
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        file = self.folder / f"{row['unit']}.mp4"
        scores = [
            speaking_scores(self.net, face_crops(file, track, CROP_SIDE), track_audio(track, wave)) for track in tracks
        ]
        shares = [round(100 * float(np.mean(score > 0)), 2) if len(score) else 0.0 for score in scores]
        return Outcome(row["unit"], "kept", outputs={"speaking_pct": shares})


def face_crops(file: Path, track: Track, side: int) -> np.ndarray:
    """The face of one track (n, side, side, 3), read frame by frame: a clip of large frames would fill the memory."""
    from perception.faces.crop import crop_track

    return crop_track(track_frames(file, track), track.boxes, side)  # type: ignore[arg-type]  # it only iterates


def track_frames(file: Path, track: Track) -> Iterator[np.ndarray]:
    """The frames in which a face is seen, one after the other."""
    return islice(decode_video(file), track.start_frame, track.stop_frame)


def track_audio(track: Track, wave: np.ndarray) -> np.ndarray:
    """The piece of the clip's audio (n,) over the frames in which a face is seen."""
    return wave[track.start_frame * SAMPLES_PER_FRAME : track.stop_frame * SAMPLES_PER_FRAME]
