"""Does somebody speak, and over what? Energy and pitch of the clip's sound; needs no weights."""

from functools import partial
from typing import Any

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.open import MediaError
from perception.speech.detect import speech_activity
from perception.speech.loudness import integrated_loudness, silent_ends


def speech_stage() -> Stage:
    """The stage over cut clip rows.

    Outputs: clip fields speech_pct, snr_db, music_ratio, clipping_pct, loudness_lufs, silence_start, silence_end.
    """
    return Stage("speech", "2", {}, {}, partial(_make), reads=("unit", "source_sha256", "t_start", "t_end"))


def _make():
    return measure_speech


def measure_speech(row: dict[str, Any]) -> Outcome:
    """Listen to the source, not to the clip file, whose sound another stage may have moved."""
    try:
        wave = read_audio(row["path"], start=row["t_start"], end=row["t_end"])
    except MediaError as error:
        return Outcome(row["unit"], "rejected", error.kind, str(error))
    stats, loudness, (before, after) = speech_activity(wave), integrated_loudness(wave), silent_ends(wave)
    fields = {
        "speech_pct": round(stats.speech_pct, 2),
        "snr_db": round(stats.snr_db, 2),
        "music_ratio": round(stats.music_ratio, 4),
        "clipping_pct": round(stats.clipping_pct, 4),
        "loudness_lufs": None if loudness is None else round(loudness, 2),
        "silence_start": round(before, 2),
        "silence_end": round(after, 2),
    }
    return Outcome(row["unit"], "kept", outputs=fields)
