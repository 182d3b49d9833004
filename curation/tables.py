"""Tables of a run: clips, tracks, sources and test fingerprints, written from what the stages have left in Parquet
parts; no more than a batch of rows is held."""

import logging
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from common.progress import progress
from common.query import materialise
from common.runs import RunFolder, sha256_file
from common.tracks import TRACKS_FILE, write_tracks
from curation.config import CurationConfig
from curation.dataset.holdings import PER_FRAME
from curation.decide.table import cut_ids, stream_cut, write_clip_table, write_test_fingerprints
from curation.reporting.summary import CurationSummary, summarise, write_sources
from curation.stages.cut import cut_row
from curation.stages.tracks import track_rows

logger = logging.getLogger(__name__)

TEST_FINGERPRINTS = "test_fingerprints.jsonl"
LISTED_FILES = 100_000  # names of files looked up at once
LARGE = 100_000  # clips from which on questions are worth a copy of the table made for them


def write_tables(
    config: CurationConfig,
    run: RunFolder,
    parts: Sequence[Path],
    source_parts: Sequence[Path],
    run_id: str,
    stage_versions: Mapping[str, str],
    references: Sequence[Mapping[str, Any]],
) -> CurationSummary:
    """Write the tables of a run from what the stages have left of its clips (`write_part`) and sources
    (`write_source_part`), and make the clip files what the clip table says. Raises what `write_clip_table` raises."""
    restore_files(run.clips, parts)
    columns = ("clip_id", "tracks_file", "face_track_id", "width", "height", "x", "y", "point_at")
    judges = ("speaking_pct", "lips", "sync_scores")
    write_tracks(run.root / TRACKS_FILE, track_rows(run.root / PER_FRAME, stream_cut(parts, (*columns, *judges))))
    write_clip_table(
        config, parts, run.clips_parquet, run_id=run_id, stage_versions=stage_versions, references=references
    )
    write_sources(run, source_parts)
    write_test_fingerprints(parts, run.clips_parquet, run.report / TEST_FINGERPRINTS)
    summary = summarise(run)
    if summary.clips >= LARGE:
        materialise(run.root)
    return summary


def restore_files(folder: Path, parts: Sequence[Path]) -> None:
    """Make the clip files what the parts say: write lost or outdated ones again, remove those of older cuts."""
    expected = cut_ids(parts).cast(pa.binary())
    files = folder.glob("*.mp4")
    while some := list(islice(files, LISTED_FILES)):
        # As bytes: what people put there need not have a name in UTF-8.
        stays = pc.is_in(pa.array([os.fsencode(file.stem) for file in some], pa.binary()), expected).to_pylist()
        for file, is_expected in zip(some, stays, strict=True):
            if not is_expected:
                file.unlink()
    columns = ("path", "t_start", "t_end", "crop", "size", "sync_offset_applied", "sha256")
    for clip in progress(stream_cut(parts, columns), "verify clips", len(expected)):
        file = folder / f"{clip['unit']}.mp4"
        if not file.exists() or sha256_file(file) != clip["sha256"]:
            logger.info("%s differs from its record and is cut again", file.name)
            cut_row(folder, clip, clip["sync_offset_applied"] or 0)
