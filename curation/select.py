"""Which clips are kept? The only place that decides, from stored scores; another threshold needs no new run."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]

# Clip field -> model role that fills it; a clip that lacks one is neither kept nor refused yet.
NEEDED_ROLES = {"sync_c": "sync_scorer", "iqa_1to5": "quality_scorer", "caption": "captioner"}

# Refusals of the file itself, which no threshold can undo.
FILE_REASONS = frozenset({"unreadable", "truncated", "not_a_video", "no_audio"})


@dataclass(frozen=True)
class SelectConfig:
    """Thresholds; a clip is refused when it is below a `min_` or above a `max_`.

    `min_sync_c`, `min_iqa` (on 1 to 5; the paper's "40" of 0..100 is 2.6) and 3 to 20 s are OmniAvatar's; `max_offset`
    is what the sound may still be off, in frames; `min_side` and `min_face_px` in pixels of the source. Above
    `max_static_pct` a picture counts as still; frames that do change must come at `min_fps`. `test_share` of the
    videos, drawn by a hash of their id and `split_seed`, become the test split with all their clips.
    """

    min_seconds: float = 3.0
    max_seconds: float = 20.0
    min_sync_c: float = 4.0
    max_offset: int = 1
    min_iqa: float = 2.6
    max_faces: int = 1
    min_face_px: float = 32.0
    min_side: int = 256
    min_speech_pct: float = 30.0
    max_music_ratio: float = 0.36
    max_static_pct: float = 80.0
    min_fps: float = 20.0
    test_share: float = 0.1
    split_seed: int = 0


def select(config: SelectConfig, row: Row) -> dict[str, Any]:
    """Clip fields decision ("kept", "rejected", "failed", "pending"), reasons and split of one row of the clip table.

    What a stage could not work on at all keeps the decision and reason it brings. Pending rows name the model roles
    that would complete them, as "needs <role>".
    """
    split = {"split": _split(config, row["video_id"])}
    stuck = [reason for reason in row.get("reasons") or () if reason in FILE_REASONS or reason.startswith("failed ")]
    if stuck:
        return split | {"decision": row["decision"], "reasons": stuck}
    reasons = refusals(config, row)
    if reasons:
        return split | {"decision": "rejected", "reasons": reasons}
    missing = [f"needs {role}" for field, role in NEEDED_ROLES.items() if row.get(field) is None]
    return split | {"decision": "pending" if missing else "kept", "reasons": missing}


def refusals(config: SelectConfig, row: Row) -> list[str]:
    """Every reason to refuse a row, as far as its fields are known; a field without a value refuses nothing."""
    if row["duration"] < config.min_seconds:
        return ["too_short"]  # nothing else measured on so little is reliable
    reasons = [*_picture(config, row), *_sound(config, row)]
    # Where nobody is seen or heard speaking, lips and sound cannot agree: that is no finding about sync.
    if not {"no_face", "no_speech", "music"} & set(reasons):
        reasons += _sync(config, row)
    if _below(row, "iqa_1to5", config.min_iqa):
        reasons.append("low_quality")
    if row.get("dup_group") not in (None, row["clip_id"]):
        reasons.append("duplicate")
    return reasons


def _picture(config: SelectConfig, row: Row) -> Iterator[str]:
    if row["duration"] > config.max_seconds:
        yield "too_long"
    static = row["static_pct"] or 0.0
    still = static > config.max_static_pct
    # A slow video stored at 25 fps repeats frames; a still picture repeats them too, but has its own reason.
    if row["fps_src"] * (1 if still else 1 - static / 100) < config.min_fps:
        yield "low_frame_rate"
    if min(row["width"], row["height"]) < config.min_side or _below(row, "face_px", config.min_face_px):
        yield "low_resolution"
    if still:
        yield "still_picture"
    if row.get("n_faces_median") is not None and row.get("face_track_id") is None:
        yield "no_face"
    if _above(row, "n_faces_median", config.max_faces):
        yield "several_faces"


def _sound(config: SelectConfig, row: Row) -> Iterator[str]:
    if _below(row, "speech_pct", config.min_speech_pct):
        yield "no_speech"
    if _above(row, "music_ratio", config.max_music_ratio):
        yield "music"


def _sync(config: SelectConfig, row: Row) -> Iterator[str]:
    off = abs((row.get("sync_offset") or 0) - (row.get("sync_offset_applied") or 0))
    if _below(row, "sync_c", config.min_sync_c) or off > config.max_offset:
        yield "low_sync"


def _below(row: Row, field: str, least: float) -> bool:
    value = row.get(field)
    return value is not None and value < least


def _above(row: Row, field: str, most: float) -> bool:
    value = row.get(field)
    return value is not None and value > most


def _split(config: SelectConfig, video_id: str) -> str:
    digest = hashlib.sha256(f"{config.split_seed}\0{video_id}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < config.test_share * 2**64 else "train"
