"""Speech stage: speech, music and loudness of a clip, by a voice detector or else from energy and pitch."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.executors.stage import Stage, Weights, loaded
from common.ledger.store import Outcome
from common.media.audio import read_audio
from common.media.open import MediaError
from curation.rows import ClipRow

if TYPE_CHECKING:
    from perception.speech.silero import VoiceDetector


@dataclass(frozen=True)
class SpeechStage(Stage[ClipRow]):
    """Over cut clip rows. Outputs: clip fields speech_judge, speech_pct, voice_certainty, snr_db, music_ratio,
    clipping_pct, loudness_lufs, silence_start, silence_end."""

    name = "speech"
    version = "3"
    reads = ("unit", "source_sha256", "t_start", "t_end")
    speech_detector: Weights = Weights("speech_detector", None, "")
    detector: "VoiceDetector | None" = loaded(default=None)

    def load(self) -> None:
        """Load the voice detector, if there is one."""
        from perception.speech.silero import load_voice_detector

        if self.speech_detector.path is not None:
            self.hold(detector=load_voice_detector(self.speech_detector.path))

    def __call__(self, row: ClipRow) -> Outcome:
        """Measure the source's audio, not the clip file's, which another stage may have moved."""
        from perception.speech.detect import speech_activity  # scipy.signal takes a second of CPU
        from perception.speech.loudness import integrated_loudness, silent_ends

        try:
            wave = read_audio(row["path"], start=row["t_start"], end=row["t_end"])
        except MediaError as error:
            return Outcome(row["unit"], "rejected", error.kind, str(error))
        stats = speech_activity(wave, self.detector)
        loudness, (before, after) = integrated_loudness(wave), silent_ends(wave)
        fields = {
            "speech_judge": "energy" if self.detector is None else "silero",
            "speech_pct": round(stats.speech_pct, 2),
            "voice_certainty": None if stats.certainty is None else round(stats.certainty, 4),
            "snr_db": None if stats.snr_db is None else round(stats.snr_db, 2),
            "music_ratio": round(stats.music_ratio, 4),
            "clipping_pct": round(stats.clipping_pct, 4),
            "loudness_lufs": None if loudness is None else round(loudness, 2),
            "silence_start": round(before, 2),
            "silence_end": round(after, 2),
        }
        return Outcome(row["unit"], "kept", outputs=fields)
