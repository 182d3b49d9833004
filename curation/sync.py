"""Do lips and sound belong together? SyncNet on every face of a clip, and the sound moved where it is merely off.

Sign (measured by planted shifts in the tests): offset > 0 = the sound leads the picture, so it is delayed by `offset`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.executors import Stage
from common.ledger import Outcome
from common.media import AUDIO_RATE, decode_video, read_audio
from curation.cut import FRAME, cut_row
from curation.people import PeopleConfig, find_tracks, people_fields
from perception.syncnet import SyncNet, SyncResult, crop_track, load_syncnet, sync_scores
from perception.tracks import Track

SAMPLES_PER_FRAME = round(FRAME * AUDIO_RATE)


@dataclass(frozen=True)
class SyncConfig:
    """`max_shift` frames searched each way; an offset of at most `max_correction` frames is put right when the
    confidence is at least `min_correction_c`."""

    max_shift: int = 15
    max_correction: int = 10
    min_correction_c: float = 3.0


def sync_stage(config: SyncConfig, people: PeopleConfig, folder: Path, model: Path, model_hash: str) -> Stage:
    """The stage over cut clip rows; it may rewrite `<folder>/<clip_id>.mp4`.

    Outputs: clip fields sync_*, those of the speaking face, and sha256 of the file. A clip without a face has none.
    """
    params = {"sync": asdict(config), "people": asdict(people)}
    reads = ("unit", "source_sha256", "sha256", "t_start", "t_end", "faces")
    make = partial(_make, config, people, folder, model)
    return Stage("sync", "1", params, {"sync_scorer": model_hash}, make, reads=reads)


def _make(config: SyncConfig, people: PeopleConfig, folder: Path, model: Path) -> Callable[[dict], Outcome]:
    torch.set_num_threads(1)  # the executor's processes are the parallelism
    return partial(score_sync, config, people, folder, load_syncnet(model))


def score_sync(config: SyncConfig, people: PeopleConfig, folder: Path, net: SyncNet, row: dict[str, Any]) -> Outcome:
    """Score each face against the source's sound, keep the best, correct its offset and score again.

    Picture from the clip file, sound from the source: a run killed between rewriting and recording does the same again.
    """
    tracks = find_tracks(people, row)
    if not tracks:
        return Outcome(row["unit"], "kept", "no_face")
    crops = [_crop(folder / f"{row['unit']}.mp4", track, net.crop_size) for track in tracks]
    scored = [_score(config, net, *pair, _sound(row, 0)) for pair in zip(tracks, crops, strict=True)]
    speaker = int(np.argmax([result.sync_c for result in scored]))
    result = scored[speaker]
    fields: dict[str, Any] = {"sync_offset": result.offset, "sync_offset_applied": 0}
    if 1 <= abs(result.offset) <= config.max_correction and result.sync_c >= config.min_correction_c:
        shift = result.offset
        moved = _score(config, net, tracks[speaker], crops[speaker], _sound(row, shift))
        # A true offset all but vanishes when the sound is moved; a chance one does not.
        if abs(moved.offset) < abs(shift):
            fields = {"sync_offset": shift + moved.offset, "sync_offset_applied": shift}
            fields |= cut_row(folder, row, shift).outputs
            result = moved
    fields |= {
        "sync_c": round(result.sync_c, 4),
        "sync_d": round(result.sync_d, 4),
        "sync_windows": result.windows,
    }
    return Outcome(row["unit"], "kept", outputs=fields | people_fields(tracks, row, speaker))


def _sound(row: dict[str, Any], shift: int) -> np.ndarray:
    """The clip's sound (n,) delayed by `shift` frames, as `cut_clip` writes it."""
    return read_audio(row["path"], AUDIO_RATE, row["t_start"] - shift * FRAME, row["t_end"] - shift * FRAME)


def _crop(file: Path, track: Track, side: int) -> np.ndarray:
    """The face of one track (n, side, side, 3), taken frame by frame: a clip of large pictures fills the memory."""
    frames = islice(decode_video(file), track.start_frame, track.stop_frame)
    return crop_track(frames, track.boxes, side)  # type: ignore[arg-type]  # it only iterates over them


def _score(config: SyncConfig, net: SyncNet, track: Track, crops: np.ndarray, wave: np.ndarray) -> SyncResult:
    """Scores of one face over the frames it is seen in."""
    sound = wave[track.start_frame * SAMPLES_PER_FRAME : track.stop_frame * SAMPLES_PER_FRAME]
    return sync_scores(net, crops, sound, config.max_shift)
