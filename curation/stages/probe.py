"""Can the file be used at all? Streams, frame times and damage of one source video, without decoding it."""

from dataclasses import asdict
from functools import partial
from typing import Any

from common.executors.stage import Stage
from common.ledger.store import Outcome
from common.media.index import probe
from common.media.open import MediaError
from common.runs import sha256_file

# A sound file or a picture with a video's name is, to the user, no video.
REASONS = {"no_video": "not_a_video"}


def probe_stage() -> Stage:
    """The stage over source rows; its outputs are the fields of common.media.video.Probe and the file's sha256."""
    return Stage("probe", "2", {}, {}, partial(_make), reads=("unit", "bytes", "mtime_ns"))


def _make():
    return probe_source


def probe_source(row: dict[str, Any]) -> Outcome:
    """Kept, or rejected as unreadable, not_a_video, truncated or no_audio. Raises FileNotFoundError."""
    try:
        described = probe(row["path"])
    except MediaError as error:
        return Outcome(row["unit"], "rejected", REASONS.get(error.kind, error.kind), str(error))
    outputs = asdict(described) | {"sha256": sha256_file(row["path"])}
    if not described.has_audio:
        message = f"{row['path']} has no sound; expected a talking person."
        return Outcome(row["unit"], "rejected", "no_audio", message, outputs)
    return Outcome(row["unit"], "kept", outputs=outputs)
