"""Do lips and sound belong together? SyncNet on every face of a clip, and the sound moved where it is merely off.

Sign (measured by planted shifts in the tests): offset > 0 = the sound leads the picture, so it is delayed by `offset`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.constants import AUDIO_RATE
from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.audio import read_audio
from curation.config import PeopleConfig, SpeakerConfig, SyncConfig
from curation.stages.cut import FRAME, cut_row
from curation.stages.people import find_tracks
from curation.stages.speaker import DEFAULT_SPEAKER, READS, face_crops, speaker_fields, track_sound
from perception.faces.tracks import Track
from perception.sync.syncnet import SyncNet, SyncResult, load_syncnet, sync_scores


def sync_stage(
    config: SyncConfig,
    people: PeopleConfig,
    folder: Path,
    model: Path,
    model_hash: str,
    speaker: SpeakerConfig = DEFAULT_SPEAKER,
) -> Stage:
    """The stage over cut clip rows; it may rewrite `<folder>/<clip_id>.mp4`.

    Outputs: clip fields sync_*, those of the speaking face, and sha256 of the file. A clip without a face has none.
    """
    params = {"sync": asdict(config), "speaker": asdict(speaker), "people": asdict(people)}
    make = partial(_make, config, people, speaker, folder, model)
    reads = (*READS, "sha256", "lips", "speaking_pct")
    return Stage("sync", "3", params, {"sync_scorer": model_hash}, make, reads=reads)


def _make(
    config: SyncConfig, people: PeopleConfig, speaker: SpeakerConfig, folder: Path, model: Path
) -> Callable[[dict], Outcome]:
    torch.set_num_threads(1)  # the executor's processes are the parallelism
    return partial(score_sync, config, people, speaker, folder, load_syncnet(model))


def score_sync(
    config: SyncConfig, people: PeopleConfig, speaker: SpeakerConfig, folder: Path, net: SyncNet, row: dict[str, Any]
) -> Outcome:
    """Score each face against the source's sound, correct the offset of the one that speaks and score it again.

    Picture from the clip file, sound from the source: a run killed between rewriting and recording does the same again.
    """
    tracks = find_tracks(people, row)
    if not tracks:
        return Outcome(row["unit"], "kept", "no_face")
    crops = [face_crops(folder / f"{row['unit']}.mp4", track, net.crop_size) for track in tracks]
    scored = [_score(config, net, *pair, _sound(row, 0)) for pair in zip(tracks, crops, strict=True)]
    chosen = speaker_fields(speaker, tracks, row, [result.sync_c for result in scored])
    speaking = chosen["face_track_id"]
    result, shift = scored[speaking], 0
    file: dict[str, Any] = {}
    if 1 <= abs(result.offset) <= config.max_correction and result.sync_c >= config.min_correction_c:
        moved = _score(config, net, tracks[speaking], crops[speaking], _sound(row, result.offset))
        # A true offset all but vanishes when the sound is moved; a chance one does not.
        if abs(moved.offset) < abs(result.offset):
            shift, result = result.offset, moved
            file = cut_row(folder, row, shift).outputs
    return Outcome(row["unit"], "kept", outputs=chosen | file | _fields(result, shift))


def _fields(result: SyncResult, shift: int) -> dict[str, Any]:
    """Clip fields sync_* of a score taken after the sound was moved by `shift` frames; offsets are the source's."""
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


def _sound(row: dict[str, Any], shift: int) -> np.ndarray:
    """The clip's sound (n,) delayed by `shift` frames, as `cut_clip` writes it."""
    return read_audio(row["path"], AUDIO_RATE, row["t_start"] - shift * FRAME, row["t_end"] - shift * FRAME)


def _score(config: SyncConfig, net: SyncNet, track: Track, crops: np.ndarray, wave: np.ndarray) -> SyncResult:
    """Scores of one face over the frames it is seen in."""
    return sync_scores(net, crops, track_sound(track, wave), config.max_shift)


LEAST_WINDOWS = 45  # of five frames: a third must hold a syllable or two

MAX_DRIFT = 15  # frames from the first window to the last

LEAST_INSIDE = 0.7  # share of a line's windows that must meet sound

OFF_LINE = 2.0  # frames by which the offset of a third may miss the line


@dataclass(frozen=True)
class Drift:
    """`thirds`: offset in frames of each third by itself (positive = the sound leads the picture). `frames`: growth of
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
    heard = np.arange(windows)[:, None] + np.arange(-most, most + 1)
    distances = np.where((heard >= 0) & (heard < windows), by_window, np.nan)
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
    """Mean over the windows; nan for a shift at which no window meets sound."""
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
