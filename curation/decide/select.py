"""Decision rule: which clips are kept, as one SQL expression over stored scores; another threshold needs no new run.

`curate`, `reselect`, `takedown`, the report, the funnel and `yield` all use the texts below, over a few rows in memory
or over millions in Parquet. `{name}` in a text stands for the threshold `SelectConfig.name`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from string import Formatter
from typing import Any

import duckdb
import pyarrow as pa

from common.clips import CLIP_SCHEMA
from common.ledger.tables import NO_EXTENSIONS
from curation.config import SelectConfig

# Clip field -> model role that fills it; a clip that lacks what `SelectConfig.require` names is not kept yet.
SCORED_BY = {"sync_c": "sync_scorer", "iqa_1to5": "quality_scorer", "caption": "captioner"}

# Where nobody is seen or heard speaking, lips and audio cannot agree: that says nothing about sync.
NOBODY_SPEAKS = ("music", "no_face", "no_speech")
# In such a video lips cannot be read well enough to say why they and the audio disagree.
UNFIT = ("low_frame_rate", "low_quality", "still_picture")

# Refusals of the file itself, which no threshold can undo.
FILE_REASONS = frozenset({"unreadable", "truncated", "not_a_video", "unsupported", "no_audio", "bad_crop"})

# Fault -> condition on a row, whatever else is wrong with it. Faults named like a reason are reported as that reason,
# in this order, except for sync; a field without a value is no fault.
FAULTS = {
    "too_short": "duration < {min_seconds}",
    "too_long": "duration > {max_seconds}",
    "generated": "digital_source_type IS NOT NULL AND {reject_generated} = 1",
    # A slow video stored at 25 fps repeats frames; a still image repeats them too, but has its own reason.
    "low_frame_rate": """fps_src * (CASE WHEN coalesce(static_pct, 0) > {max_static_pct} THEN 1
                         ELSE 1 - coalesce(static_pct, 0) / 100 END) < {min_fps}""",
    "low_resolution": "least(width, height) < {min_side} OR coalesce(face_px < {min_face_px}, false)",
    "still_picture": "static_pct > {max_static_pct}",
    "no_face": "n_faces_median IS NOT NULL AND face_track_id IS NULL",
    "several_faces": "n_faces_median > {max_faces}",
    "burned_in_text": """text_area_pct > CASE WHEN text_judge = 'pp-ocr' THEN {max_text_boxes_pct}
                         ELSE {max_text_area_pct} END""",
    "no_speech": "speech_pct < {min_speech_pct}",
    "music": "music_ratio > {max_music_ratio} OR voice_certainty < {min_voice_certainty}",
    "silent_lips": "asd_speaking_pct < {min_speaking_pct}",
    # The thirds are apart and the whole clip is synchronous along one slope: thirds alone differ by chance.
    "drift": """sync_offset_first IS NOT NULL AND sync_offset_last IS NOT NULL AND sync_drift IS NOT NULL
                AND NOT coalesce(sync_drift_c < {min_sync_c}, false)
                AND least(abs(sync_offset_last - sync_offset_first), abs(sync_drift)) > {max_drift}""",
    "apart": "sync_c < {min_sync_c}",
    "off": "abs(coalesce(sync_offset, 0) - coalesce(sync_offset_applied, 0)) > {max_offset}",
    "wrong_person": "xy_agreement > {max_xy_distance}",
    "low_quality": "iqa_1to5 < {min_iqa}",
    "duplicate": "dup_group <> clip_id",
    "in_test_set": "test_overlap IS NOT NULL",
}
# What only tells faults apart that refuse a row anyway.
HINTS = {"lips_still": "lip_motion < {min_lip_motion}", "chance": "sync_c <= {chance_sync_c}"}
_IMAGE_AND_AUDIO = tuple(FAULTS)[1 : tuple(FAULTS).index("silent_lips")]
# At most one reason about sync: the most specific that the image allows (`fit`).
_SYNC = """CASE WHEN fit AND (silent_lips OR (apart AND lips_still)) THEN 'off_screen_speaker'
           WHEN fit AND drift THEN 'drift' WHEN fit AND apart AND chance THEN 'dubbed'
           WHEN apart OR off THEN 'low_sync' END"""

_LASTING = f"reason IN ({', '.join(map(repr, sorted(FILE_REASONS)))}) OR starts_with(reason, 'failed ')"
# What a stage could not work on at all keeps the decision and the reason that the stage gave it.
_STUCK = f"list_filter(coalesce(reasons, []), lambda reason: {_LASTING})"


def select(config: SelectConfig, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Clip fields decision ("kept", "rejected", "failed", "pending"), reasons and split of each clip row, in order.

    Rows need clip_id, video_id, duration, fps_src, width and height; fields that are absent count as null.
    Pending rows name the model roles that would complete them, as "needs <role>".
    """
    read = [column for column in CLIP_SCHEMA if column.name != "stage_versions"]
    columns = {column.name: pa.array([row.get(column.name) for row in rows], column.type) for column in read}
    table = pa.table(columns).append_column("position", pa.array(range(len(rows)), pa.int64()))
    with duckdb.connect(config=NO_EXTENSIONS) as connection:
        connection.register("clips", table)
        decided = decided_sql(config, carry=("position",))
        sql = f"SELECT decision, reasons, split FROM ({decided}) ORDER BY position"
        return connection.sql(sql).to_arrow_table().to_pylist()


def decided_sql(config: SelectConfig, table: str = "clips", carry: Sequence[str] = ()) -> str:
    """A query that gives for every row of `table` clip_id, video_id, duration, decision, reasons and split, and the
    columns named in `carry` as they are."""
    conditions = ", ".join(f"{_never_null(text, config)} AS {name}" for name, text in (FAULTS | HINTS).items())
    reasons = [f"CASE WHEN {name} THEN '{name}' END" for name in _IMAGE_AND_AUDIO]
    sync = [f"CASE WHEN spoken THEN {rule} END" for rule in (_SYNC, "CASE WHEN wrong_person THEN 'wrong_person' END")]
    poor = [f"CASE WHEN {name} THEN '{name}' END" for name in ("low_quality", "duplicate", "in_test_set")]
    needs = [f"CASE WHEN {field} IS NULL THEN 'needs {role}' END" for field, role in _required(config)]
    return f"""
        WITH judged AS (SELECT *, {_STUCK} AS stuck, {conditions} FROM {table}),
        fit AS (SELECT *, NOT ({" OR ".join(NOBODY_SPEAKS)}) AS spoken, NOT ({" OR ".join(UNFIT)}) AS fit FROM judged),
        refused AS (SELECT *, {_without_nulls(needs)} AS needs, CASE WHEN too_short THEN ['too_short']
                    ELSE {_without_nulls([*reasons, *sync, *poor])} END AS faults FROM fit)
        SELECT {", ".join(["clip_id", "video_id", "duration", *carry])},
        CASE WHEN len(stuck) > 0 THEN decision WHEN len(faults) > 0 THEN 'rejected' WHEN len(needs) > 0 THEN 'pending'
             ELSE 'kept' END AS decision,
        CASE WHEN len(stuck) > 0 THEN stuck WHEN len(faults) > 0 THEN faults ELSE needs END AS reasons,
        {_split_sql(config)} AS split
        FROM refused"""


def yield_sql(config: SelectConfig, grid: Mapping[str, Sequence[float]], table: str = "clips") -> str:
    """A query giving of every combination of the thresholds in `grid` (names of SelectConfig fields) how many clips and
    milliseconds are kept, and pending, while all other thresholds stay `config`'s.

    A row is refused when it has any fault, however the faults are told apart: so what the grid does not touch is
    judged once, and only the remaining rows are compared with every combination.
    """
    touched = {name for name, text in FAULTS.items() if _thresholds(text) & set(grid)}
    settled = " AND ".join(f"NOT {_never_null(text, config)}" for name, text in FAULTS.items() if name not in touched)
    needs = " OR ".join(f"{field} IS NULL" for field, _ in _required(config)) or "false"
    candidates = f"""SELECT *, round(duration * 1000)::BIGINT AS ms, ({needs}) AS needs FROM {table}
                     WHERE len({_STUCK}) = 0 AND {settled}"""
    cells = " CROSS JOIN ".join(
        f"(SELECT unnest([{', '.join(map(_number, values))}]) AS {name})" for name, values in grid.items()
    )
    names = ", ".join(grid)
    kept = " AND ".join(f"NOT {_never_null(FAULTS[name], config, grid)}" for name in FAULTS if name in touched)
    return f"""
        WITH rows AS ({candidates}), cells AS (SELECT * FROM {cells}),
        passed AS (SELECT {names}, needs, count(*) AS clips, sum(ms) AS ms
                   FROM rows, cells WHERE {kept or "true"} GROUP BY ALL)
        SELECT {", ".join(f"cells.{name}" for name in grid)},
        coalesce(sum(clips) FILTER (NOT needs), 0)::BIGINT AS clips,
        coalesce(sum(ms) FILTER (NOT needs), 0)::BIGINT AS ms,
        coalesce(sum(clips) FILTER (needs), 0)::BIGINT AS pending_clips,
        coalesce(sum(ms) FILTER (needs), 0)::BIGINT AS pending_ms
        FROM cells LEFT JOIN passed USING ({names}) GROUP BY ALL ORDER BY ALL"""


def _split_sql(config: SelectConfig) -> str:
    """Test for the videos whose hash lies below the share: the first 64 bits of SHA-256(seed, NUL, video id)."""
    limit = math.ceil(config.test_share * 2**64)
    if limit >= 2**64:
        return "'test'"
    # Hex digits of equal number are ordered as the numbers they write.
    seed = str(config.split_seed).encode().hex()
    digest = f"sha256(unhex('{seed}00') || encode(video_id))[1:16]"
    return f"CASE WHEN {digest} < '{max(limit, 0):016x}' THEN 'test' ELSE 'train' END"


def _required(config: SelectConfig) -> list[tuple[str, str]]:
    """Clip field and role of each score without which no clip is kept."""
    return [(field, role) for field, role in SCORED_BY.items() if role in config.require]


def _thresholds(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def _never_null(text: str, config: SelectConfig, grid: Mapping[str, Sequence[float]] | None = None) -> str:
    """A condition with its thresholds filled in, or the grid's columns for those; null counts as false."""
    values = {name: _number(value) for name, value in asdict(config).items() if isinstance(value, (int, float))}
    return f"coalesce({text.format(**values | {name: name for name in grid or ()})}, false)"


def _number(value: float) -> str:
    # Quoted: a bare literal such as 0.1 is a DECIMAL to SQL and would compare differently.
    return f"'{float(value)!r}'::DOUBLE"


def _without_nulls(items: Sequence[str]) -> str:
    return f"list_filter([{', '.join(items)}]::VARCHAR[], lambda reason: reason IS NOT NULL)"
