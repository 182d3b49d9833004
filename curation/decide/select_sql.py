"""The rules of `curation.decide.select` as SQL, to decide over millions of rows at once.

In the texts below `{name}` stands for the threshold `SelectConfig.name`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from string import Formatter

from curation.config import SelectConfig
from curation.decide.select import FILE_REASONS, NEEDED_ROLES, NOBODY_SPEAKS, UNFIT

# What is wrong with a row whatever else is: fault -> condition. Those named like a reason are given as that reason, in
# this order but for sync; a field without a value is no fault.
FAULTS = {
    "too_short": "duration < {min_seconds}",
    "too_long": "duration > {max_seconds}",
    "low_frame_rate": """fps_src * (CASE WHEN coalesce(static_pct, 0) > {max_static_pct} THEN 1
                         ELSE 1 - coalesce(static_pct, 0) / 100 END) < {min_fps}""",
    "low_resolution": "least(width, height) < {min_side} OR coalesce(face_px < {min_face_px}, false)",
    "still_picture": "static_pct > {max_static_pct}",
    "no_face": "n_faces_median IS NOT NULL AND face_track_id IS NULL",
    "several_faces": "n_faces_median > {max_faces}",
    "burned_in_text": "text_area_pct > {max_text_area_pct}",
    "no_speech": "speech_pct < {min_speech_pct}",
    "music": "music_ratio > {max_music_ratio}",
    "silent_lips": "asd_speaking_pct < {min_speaking_pct}",
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
PICTURE_AND_SOUND = tuple(FAULTS)[1 : tuple(FAULTS).index("silent_lips")]
SYNC = """CASE WHEN fit AND (silent_lips OR (apart AND lips_still)) THEN 'off_screen_speaker'
          WHEN fit AND drift THEN 'drift' WHEN fit AND apart AND chance THEN 'dubbed'
          WHEN apart OR off THEN 'low_sync' END"""

_LASTING = f"reason IN ({', '.join(map(repr, sorted(FILE_REASONS)))}) OR starts_with(reason, 'failed ')"
STUCK = f"list_filter(coalesce(reasons, []), lambda reason: {_LASTING})"


def decided_sql(config: SelectConfig, table: str = "clips") -> str:
    """A query giving of every row of `table` its clip_id, video_id, duration and what `select` says of it: decision and
    reasons."""
    conditions = ", ".join(f"{_sure(text, config)} AS {name}" for name, text in (FAULTS | HINTS).items())
    given = [f"CASE WHEN {name} THEN '{name}' END" for name in PICTURE_AND_SOUND]
    sync = [f"CASE WHEN heard THEN {reason} END" for reason in (SYNC, "CASE WHEN wrong_person THEN 'wrong_person' END")]
    poor = [f"CASE WHEN {name} THEN '{name}' END" for name in ("low_quality", "duplicate", "in_test_set")]
    waits = [f"CASE WHEN {field} IS NULL THEN 'needs {role}' END" for field, role in NEEDED_ROLES.items()]
    return f"""
        WITH judged AS (SELECT *, {STUCK} AS stuck, {conditions} FROM {table}),
        fit AS (SELECT *, NOT ({_any(NOBODY_SPEAKS)}) AS heard, NOT ({_any(UNFIT)}) AS fit FROM judged),
        refused AS (SELECT *, {_present(waits)} AS waits, CASE WHEN too_short THEN ['too_short']
                    ELSE {_present([*given, *sync, *poor])} END AS faults FROM fit)
        SELECT clip_id, video_id, duration,
        CASE WHEN len(stuck) > 0 THEN decision WHEN len(faults) > 0 THEN 'rejected' WHEN len(waits) > 0 THEN 'pending'
             ELSE 'kept' END AS decision,
        CASE WHEN len(stuck) > 0 THEN stuck WHEN len(faults) > 0 THEN faults ELSE waits END AS reasons
        FROM refused"""


def yield_sql(config: SelectConfig, grid: Mapping[str, Sequence[float]], table: str = "clips") -> str:
    """A query giving of every combination of the thresholds in `grid` (names of SelectConfig fields) how many clips and
    milliseconds are kept, and pending, while all other thresholds stay `config`'s.

    A row is refused when it has any fault, however the faults are told apart: so what the grid does not touch is
    judged once, and only what is left is held against every combination.
    """
    touched = {name for name, text in FAULTS.items() if _thresholds(text) & set(grid)}
    settled = " AND ".join(f"NOT {_sure(text, config)}" for name, text in FAULTS.items() if name not in touched)
    waits = " OR ".join(f"{field} IS NULL" for field in NEEDED_ROLES)
    left = f"""SELECT *, round(duration * 1000)::BIGINT AS ms, ({waits}) AS waits FROM {table}
               WHERE len({STUCK}) = 0 AND {settled}"""
    cells = " CROSS JOIN ".join(
        f"(SELECT unnest([{', '.join(map(_number, values))}]) AS {name})" for name, values in grid.items()
    )
    names = ", ".join(grid)
    kept = " AND ".join(f"NOT {_sure(FAULTS[name], config, grid)}" for name in FAULTS if name in touched) or "true"
    return f"""
        WITH rows AS ({left}), cells AS (SELECT * FROM {cells}),
        passed AS (SELECT {names}, waits, count(*) AS clips, sum(ms) AS ms FROM rows, cells WHERE {kept} GROUP BY ALL)
        SELECT {", ".join(f"cells.{name}" for name in grid)},
        coalesce(sum(clips) FILTER (NOT waits), 0)::BIGINT AS clips,
        coalesce(sum(ms) FILTER (NOT waits), 0)::BIGINT AS ms,
        coalesce(sum(clips) FILTER (waits), 0)::BIGINT AS pending_clips,
        coalesce(sum(ms) FILTER (waits), 0)::BIGINT AS pending_ms
        FROM cells LEFT JOIN passed USING ({names}) GROUP BY ALL ORDER BY ALL"""


def _thresholds(text: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(text) if name}


def _sure(text: str, config: SelectConfig, grid: Mapping[str, Sequence[float]] | None = None) -> str:
    """A condition with its thresholds put in, or the columns of the grid for those; never null."""
    values = {name: _number(value) for name, value in asdict(config).items() if isinstance(value, (int, float))}
    return f"coalesce({text.format(**values | {name: name for name in grid or ()})}, false)"


def _number(value: float) -> str:
    # As text: what looks like a number to SQL is a decimal of a few digits.
    return f"'{float(value)!r}'::DOUBLE"


def _any(names: frozenset[str] | set[str]) -> str:
    return " OR ".join(sorted(names))


def _present(items: Sequence[str]) -> str:
    return f"list_filter([{', '.join(items)}], lambda reason: reason IS NOT NULL)"
