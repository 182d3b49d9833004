"""Speech stage: speech, music and loudness of a clip, from energy and pitch; needs no weights."""

from dataclasses import dataclass

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.open import MediaError
from curation.rows import ClipRow


@dataclass(frozen=True)
class SpeechStage(Stage[ClipRow]):
    """Over cut clip rows. Outputs: clip fields speech_pct, snr_db, music_ratio, clipping_pct, loudness_lufs,
    silence_start, silence_end."""

    name = "speech"
    version = "2"
    reads = ("unit", "source_sha256", "t_start", "t_end")

    def __call__(self, row: ClipRow) -> Outcome:
        """Measure the source's audio, not the clip file's, which another stage may have moved."""
        from perception.speech.detect import speech_activity  # scipy.signal takes a second of CPU
        from perception.speech.loudness import integrated_loudness, silent_ends

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
