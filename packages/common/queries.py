"""The questions everybody asks about a run, by name: `omniavatar query NAME`.

Each reads the few columns it needs and forms no large intermediate: at ten million clips none takes longer than a
person waits. `$name` stands for a value given with the question.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Query:
    """One question: what it answers, its SQL over the views of a run, and the values it takes, with their defaults."""

    meaning: str
    sql: str
    values: dict[str, Any] = field(default_factory=dict)


QUERIES = {
    "states": Query(
        "units of every stage by state, with the time they took",
        """SELECT stage, state, count(*) AS units, round(sum(seconds) / 3600, 2) AS hours, max(attempt) AS most_attempts
           FROM outcomes GROUP BY ALL ORDER BY ALL""",
    ),
    "failures": Query(
        "failed and pending units by class of error or reason, the most frequent first",
        """SELECT stage, state, coalesce(nullif(error_class, ''), reason) AS class, count(*) AS units,
           any_value(message) AS example FROM outcomes WHERE state IN ('failed', 'pending')
           GROUP BY ALL ORDER BY units DESC, stage, state, class""",
    ),
    "funnel": Query(
        "units that every stage was given and passed on, in the order of the stages",
        """SELECT stage, count(*) AS units, count(*) FILTER (state = 'kept') AS kept,
           round(100 * kept / units, 1) AS kept_pct FROM outcomes GROUP BY stage ORDER BY min(recorded)""",
    ),
    "decisions": Query(
        "clips and hours by decision",
        """SELECT decision, count(*) AS clips, round(sum(duration) / 3600, 2) AS hours FROM clips
           GROUP BY ALL ORDER BY clips DESC, decision""",
    ),
    "reasons": Query(
        "why clips are not kept, a clip under each of its reasons",
        """WITH groups AS (
             SELECT decision, reasons, count(*) AS clips FROM clips WHERE decision <> 'kept' GROUP BY ALL),
           listed AS (SELECT decision, unnest(reasons) AS reason, clips FROM groups)
           SELECT decision, reason, sum(clips)::BIGINT AS clips FROM listed
           GROUP BY ALL ORDER BY clips DESC, decision, reason""",
    ),
    "hours": Query(
        "kept clips and hours by data set and split",
        """SELECT source, split, count(*) AS clips, round(sum(duration) / 3600, 2) AS hours FROM clips
           WHERE decision = 'kept' GROUP BY ALL ORDER BY ALL""",
    ),
    "scores": Query(
        "histograms of the scores: clips from `at_least` up to the next line",
        """SELECT 'sync_c' AS score, floor(sync_c * 4) / 4 AS at_least, count(*) AS clips FROM clips GROUP BY ALL
           UNION ALL SELECT 'iqa_1to5', floor(iqa_1to5 * 10) / 10, count(*) FROM clips GROUP BY ALL
           UNION ALL SELECT 'ase_1to5', floor(ase_1to5 * 10) / 10, count(*) FROM clips GROUP BY ALL ORDER BY ALL""",
    ),
    "best": Query(
        "the 100 best kept clips by sync_c, three of a video at most, found among the 2,000 best of all",
        """WITH top AS (
             SELECT video_id, clip_id, sync_c, iqa_1to5, duration FROM clips WHERE decision = 'kept'
             ORDER BY sync_c DESC, clip_id LIMIT 2000)
           SELECT * FROM top QUALIFY row_number() OVER (PARTITION BY video_id ORDER BY sync_c DESC, clip_id) <= 3
           ORDER BY sync_c DESC, clip_id LIMIT 100""",
    ),
    "clip": Query("one clip, all that is known: id=<clip_id>", "SELECT * FROM clips WHERE clip_id = $id", {"id": ""}),
    "unit": Query(
        "what became of one unit in every stage: id=<unit>",
        "SELECT * FROM outcomes WHERE unit = $id ORDER BY recorded",
        {"id": ""},
    ),
}
