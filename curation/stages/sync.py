"""Sync stage: SyncNet on every face of a clip; the audio is moved where it is merely off, and drift is measured.

Sign (measured by planted shifts in the tests): offset > 0 = the audio leads the video, so it is delayed by `offset`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.constants import AUDIO_RATE
from common.executors.stage import Stage, Weights, loaded, no_effect
from common.ledger.store import Outcome
from common.media.audio import read_audio
from curation.config import SpeakerConfig, SyncConfig
from curation.rows import ClipRow
from curation.stages.cut import cut_row
from curation.stages.shots import FRAME
from curation.stages.speaker import face_crops, speaker_fields, track_audio
from curation.stages.tracks import READS, read_tracks
from perception.faces.tracks import Track

if TYPE_CHECKING:
    from perception.sync.syncnet import SyncNet, SyncResult


@dataclass(frozen=True)
class SyncStage(Stage[ClipRow]):
    """Over cut clip rows; it may rewrite `<folder>/<clip_id>.mp4`.

    Outputs: clip fields sync_*, those of the speaking face, `sync_scores` [[confidence, distance, offset], ...] per
    face track, and sha256 of the file where it was rewritten. A clip without a face has none.
    """

    name = "sync"
    pool = "gpu"
    version = "3"
    reads = (*READS, "x", "y", "point_at", "sha256", "lips", "speaking_pct")
    config: SyncConfig
    speaker: SpeakerConfig
    sync_scorer: Weights
    folder: Path = no_effect()
    tracks: Path = no_effect()
    net: "SyncNet" = loaded()

    def load(self) -> None:
        """Load SyncNet."""
        import torch

        from perception.sync.syncnet import load_syncnet

        torch.set_num_threads(1)  # the executor's processes are the parallelism
        self.hold(net=load_syncnet(self.sync_scorer.file))

    def products(self, row: ClipRow, outcome: Outcome) -> Mapping[Path, int | None]:
        """The clip file, where its audio was moved."""
        return {self.folder / f"{row['unit']}.mp4": None} if "sha256" in outcome.outputs else {}

    def __call__(self, row: ClipRow) -> Outcome:
        """Score each face against the source's audio, correct the offset of the one that speaks and score it again.

        Frames come from the clip file, audio from the source: a run killed between rewriting and recording does the
        same again.
        """
        tracks = read_tracks(self.tracks, row)
        if not tracks:
            return Outcome(row["unit"], "kept", "no_face")
        crops = [face_crops(self.folder / f"{row['unit']}.mp4", track, self.net.crop_size) for track in tracks]
        scores = [self._score(*pair, _audio(row, 0)) for pair in zip(tracks, crops, strict=True)]
        fields = speaker_fields(self.speaker, tracks, row, [result.sync_c for result in scores])
        fields["sync_scores"] = [[round(s.sync_c, 4), round(s.sync_d, 4), s.offset] for s in scores]
        speaker = fields["face_track_id"]
        result, shift = scores[speaker], 0
        file: dict[str, Any] = {}
        if 1 <= abs(result.offset) <= self.config.max_correction and result.sync_c >= self.config.min_correction_c:
            moved = self._score(tracks[speaker], crops[speaker], _audio(row, result.offset))
            # A true offset all but vanishes when the audio is moved; a chance one does not.
            if abs(moved.offset) < abs(result.offset):
                shift, result = result.offset, moved
                file = cut_row(self.folder, row, shift).outputs
        return Outcome(row["unit"], "kept", outputs=fields | file | _fields(result, shift))

    def _score(self, track: Track, crops: np.ndarray, wave: np.ndarray) -> "SyncResult":
        """Scores of one face over the frames it is seen in."""
        from perception.sync.syncnet import sync_scores

        return sync_scores(self.net, crops, track_audio(track, wave), self.config.max_shift)


def _fields(result: "SyncResult", shift: int) -> dict[str, Any]:
    """Clip fields sync_* of a score taken after the audio was shifted by `shift` frames; offsets are the source's."""
    fields: dict[str, Any] = {
        "sync_c": round(result.sync_c, 4),
        "sync_c_valid": round(result.sync_c_valid, 4),
        "sync_d": round(result.sync_d, 4),
        "sync_offset": result.offset + shift,
        "sync_offset_applied": shift,
        "sync_windows": result.windows,
    }
    if drift := measure_drift(result.by_window):
        names = ("sync_offset_first", "sync_offset_middle", "sync_offset_last")
        fields |= {name: offset + shift for name, offset in zip(names, drift.thirds, strict=True)}
        fields |= {"sync_drift": drift.frames, "sync_drift_c": drift.confidence}
    return fields


def _audio(row: ClipRow, shift: int) -> np.ndarray:
    """The clip's audio (n,) delayed by `shift` frames, as `cut_clip` writes it."""
    return read_audio(row["path"], AUDIO_RATE, row["t_start"] - shift * FRAME, row["t_end"] - shift * FRAME)


LEAST_WINDOWS = 45  # of five frames: a third must hold a syllable or two
MAX_DRIFT = 15  # frames from the first window to the last
LEAST_INSIDE = 0.7  # share of a line's windows that must meet audio
OFF_LINE = 2.0  # frames by which the offset of a third may miss the line


@dataclass(frozen=True)
class Drift:
    """`thirds`: offset in frames of each third by itself (positive = the audio leads the video). `frames`: growth of
    the offset from the first window to the last along the straight line that fits best, None when the first or the
    last third does not lie on it (the middle alone may be chance); `confidence` along that line, on the scale of
    Sync-C, which it equals where nothing drifts."""

    thirds: tuple[int, int, int]
    frames: int | None
    confidence: float


def measure_drift(by_window: np.ndarray) -> Drift | None:
    """Read distances (L, 2V+1) of L windows at shifts -V to V (`SyncResult.by_window`); None for less than 45 windows.

    Sound beyond the ends is left out. A third's offset may be chance, and of a thousand lines one may fit by chance;
    both together hardly ever are.
    """
    windows, shifts = by_window.shape
    if windows < LEAST_WINDOWS:
        return None
    most = shifts // 2
    reached = np.arange(windows)[:, None] + np.arange(-most, most + 1)
    distances = np.where((reached >= 0) & (reached < windows), by_window, np.nan)
    first, middle, last = (most - int(np.nanargmin(_mean(part))) for part in np.array_split(distances, 3))
    least, _, growth, centre = min(
        (distance, abs(growth), growth, most - column)
        for growth in range(-MAX_DRIFT, MAX_DRIFT + 1)
        for distance, column in [_best_line(distances, growth)]
    )
    confidence = float(np.nanmedian(_mean(distances))) - least
    ends = ((first, centre + growth / 3), (last, centre - growth / 3))
    on_it = all(abs(third - offset) <= OFF_LINE for third, offset in ends)
    return Drift((first, middle, last), -growth if on_it else None, round(confidence, 4))


def _mean(distances: np.ndarray) -> np.ndarray:
    """Mean over the windows; nan for a shift at which no window overlaps the audio."""
    count = np.isfinite(distances).sum(axis=0)
    return np.where(count > 0, np.nansum(distances, axis=0) / np.maximum(count, 1), np.nan)


def _best_line(distances: np.ndarray, growth: int) -> tuple[float, int]:
    """Least mean distance along the lines whose shift grows by `growth` from the first window to the last, and the
    column through whose middle that line goes."""
    windows, shifts = distances.shape
    bend = np.rint(growth * np.linspace(-0.5, 0.5, windows)).astype(int)[:, None]
    columns = bend + np.arange(shifts)
    reached = np.take_along_axis(distances, np.clip(columns, 0, shifts - 1), axis=1)
    lines = np.where((columns >= 0) & (columns < shifts), reached, np.nan)
    means = np.where(np.isfinite(lines).mean(axis=0) < LEAST_INSIDE, np.inf, _mean(lines))
    return float(np.min(means)), int(np.argmin(means))
