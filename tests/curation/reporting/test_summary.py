"""The closing summary says who judged, and what the judges that no weights were given for would add."""

from pathlib import Path

from common.clips import write_clips
from common.runs import RunFolder
from curation.reporting.summary import summarise, write_source_part, write_sources

CLIP = {
    "video_id": "v",
    "duration": 36.0,
    "decision": "kept",
    "reasons": [],
    "caption": "One.",
    "speech_judge": "silero",
}


def test_what_was_not_judged_is_said_with_what_it_would_add(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [
        CLIP | {"clip_id": "a", "face_judge": "centerface"},
        CLIP | {"clip_id": "b", "face_judge": "cascade", "sync_c": 5.0},
        CLIP | {"clip_id": "c", "decision": "rejected", "reasons": ["no_speech"]},
        CLIP | {"clip_id": "d", "decision": "pending", "reasons": ["needs captioner"]},
    ]
    write_clips(run.clips_parquet, rows)
    write_source_part(tmp_path / "listed.parquet", [(0, {"unit": "v", "path": "v.mp4"})])
    write_sources(run, [tmp_path / "listed.parquet"])
    summary = summarise(run)
    assert summary.unjudged == {"sync_scorer": 1, "quality_scorer": 2} and summary.pending_roles == {"captioner": 1}
    assert summary.judges == {"speech": "silero", "face": "cascade and centerface"}
    _, _, _, judged, *needs = summary.lines()
    assert judged == "judged by silero (speech), cascade and centerface (face)"
    assert needs[0].endswith("set models.captioner and run the same command again.")
    assert "1 kept clips were not judged by a sync_scorer" in needs[1] and "set models.sync_scorer" in needs[1]
    assert "refuses poor pictures (Q-Align)" in needs[2] and len(needs) == 3
