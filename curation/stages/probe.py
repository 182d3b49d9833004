"""Probe stage: streams, frame times and damage of one source video, without decoding it."""

from dataclasses import asdict, dataclass

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.index import Probe, probe
from common.media.marks import read_marks
from common.media.open import MediaError
from common.runs import sha256_file
from curation.rows import SourceRow

# An audio or image file with a video's suffix is reported as not a video.
REASONS = {"no_video": "not_a_video"}


SILENT_END = 0.5  # seconds; less is a codec's padding or a microphone switched on a moment late


def _audio_span(described: Probe) -> list[float]:
    """First and last moment of the sound, in seconds of the picture; empty where they are the picture's."""
    begin, end = (edge - described.video_start for edge in (described.audio_start, described.audio_end))
    if not described.has_audio or (begin <= SILENT_END and described.duration - end <= SILENT_END):
        return []
    return [round(max(0.0, begin), 3), round(min(described.duration, end), 3)]


@dataclass(frozen=True)
class ProbeStage(Stage[SourceRow]):
    """Over source rows. Outputs: the fields of `common.media.index.Probe` and the file's sha256; rejected as
    unreadable, not_a_video, truncated or no_audio. The message of a kept source says what is special in how it is
    shown and heard (pixel shape, HDR, tracks, channels)."""

    name = "probe"
    version = "3"
    reads = ("unit", "bytes", "mtime_ns")

    def __call__(self, row: SourceRow) -> Outcome:
        """Raises FileNotFoundError."""
        try:
            described = probe(row["path"])
        except MediaError as error:
            return Outcome(row["unit"], "rejected", REASONS.get(error.kind, error.kind), str(error))
        outputs = asdict(described) | {"sha256": sha256_file(row["path"])}
        # Only where there is one: rows of filmed videos stay as they were.
        kind = read_marks(row["path"]).get("digitalSourceType", "").rpartition("/")[2]
        outputs |= {"digital_source_type": kind} if kind else {}
        outputs |= {"audio_span": audio_span} if (audio_span := _audio_span(described)) else {}
        if not described.has_audio:
            message = f"{row['path']} has no sound; expected a talking person."
            return Outcome(row["unit"], "rejected", "no_audio", message, outputs)
        return Outcome(row["unit"], "kept", message=described.presentation, outputs=outputs)
