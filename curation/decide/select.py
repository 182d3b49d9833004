"""Which clips are kept? The only place that decides, from stored scores; another threshold needs no new run."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from curation.config import SelectConfig

Row = Mapping[str, Any]

# Clip field -> model role that fills it; a clip that lacks one is neither kept nor refused yet.
NEEDED_ROLES = {"sync_c": "sync_scorer", "iqa_1to5": "quality_scorer", "caption": "captioner"}

NOBODY_SPEAKS = {"no_face", "no_speech", "music"}
# In such a picture lips cannot be read well enough to say why they and the sound disagree.
UNFIT = {"still_picture", "low_frame_rate", "low_quality"}

# Refusals of the file itself, which no threshold can undo.
FILE_REASONS = frozenset({"unreadable", "truncated", "not_a_video", "unsupported", "no_audio", "bad_crop"})


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
    poor = ["low_quality"] if _below(row, "iqa_1to5", config.min_iqa) else []
    # Where nobody is seen or heard speaking, lips and sound cannot agree: that is no finding about sync.
    if not NOBODY_SPEAKS & set(reasons):
        reasons += _sync(config, row, fit=not UNFIT & {*reasons, *poor})
    if row.get("dup_group") not in (None, row["clip_id"]):
        poor.append("duplicate")
    if row.get("test_overlap") is not None:
        poor.append("in_test_set")
    return reasons + poor


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
    if _above(row, "text_area_pct", config.max_text_area_pct):
        yield "burned_in_text"


def _sound(config: SelectConfig, row: Row) -> Iterator[str]:
    if _below(row, "speech_pct", config.min_speech_pct):
        yield "no_speech"
    if _above(row, "music_ratio", config.max_music_ratio):
        yield "music"


def _sync(config: SelectConfig, row: Row, fit: bool) -> Iterator[str]:
    """What is wrong with who speaks when; `fit`: the picture allows to say more than that lips and sound disagree."""
    off = abs((row.get("sync_offset") or 0) - (row.get("sync_offset_applied") or 0))
    apart = _below(row, "sync_c", config.min_sync_c)
    if fit and (_below(row, "asd_speaking_pct", config.min_speaking_pct) or (apart and _lips_still(config, row))):
        yield "off_screen_speaker"
    elif fit and _drifts(config, row):
        yield "drift"
    elif fit and apart and row["sync_c"] <= config.chance_sync_c:
        yield "dubbed"
    elif apart or off > config.max_offset:
        yield "low_sync"
    if _above(row, "xy_agreement", config.max_xy_distance):
        yield "wrong_person"


def _lips_still(config: SelectConfig, row: Row) -> bool:
    return _below(row, "lip_motion", config.min_lip_motion)


def _drifts(config: SelectConfig, row: Row) -> bool:
    """Whether the thirds are apart and the whole clip is synchronous along one slope: thirds alone differ by chance."""
    first, last, slope = (row.get(field) for field in ("sync_offset_first", "sync_offset_last", "sync_drift"))
    if first is None or last is None or slope is None or _below(row, "sync_drift_c", config.min_sync_c):
        return False
    return bool(min(abs(last - first), abs(slope)) > config.max_drift)


def _below(row: Row, field: str, least: float) -> bool:
    value = row.get(field)
    return value is not None and value < least


def _above(row: Row, field: str, most: float) -> bool:
    value = row.get(field)
    return value is not None and value > most


def _split(config: SelectConfig, video_id: str) -> str:
    digest = hashlib.sha256(f"{config.split_seed}\0{video_id}".encode()).digest()
    return "test" if int.from_bytes(digest[:8], "big") < config.test_share * 2**64 else "train"
