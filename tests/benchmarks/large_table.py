"""Tables of a run as large as AVSpeech: CPU seconds, peak memory and spilled bytes of every question over all clips.

By hand, it takes some minutes and 3 GB of disk:

    OMP_NUM_THREADS=1 python -m tests.benchmarks.large_table --rows 2600000 --folder DIR

Each line is a process of its own. The clips are drawn: of 40 one is a copy of another, of 200 one is black, of 100 one
is silent.
"""

import argparse
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from common.executors.config import ExecutorConfig
from common.ledger.tables import connection_beside, sql_path
from common.runs import RunFolder
from curation.config import CurationConfig, SelectConfig, SourcesConfig
from curation.dataset.difference import compare
from curation.dataset.freeze import freeze
from curation.decide.reselect import reselect
from curation.decide.split import draw_split, write_split
from curation.decide.table import JUDGED_SCHEMA, cut_ids, stream_cut, write_clip_table, write_test_fingerprints
from curation.decide.yields import yield_table
from curation.reporting.report import write_curation_report
from curation.reporting.summary import LISTED_SCHEMA, summarise, write_sources
from curation.sources.listing import list_sources

CLIPS_PER_VIDEO, PARTS = 9, 8
REAL = {
    "fps_src": "25.0", "sync_c": "hash(i, 1) % 9000 / 1000", "sync_offset": "(hash(i, 2) % 3)::INT - 1",
    "iqa_1to5": "2 + hash(i, 3) % 3000 / 1000", "face_track_id": "0", "n_faces_median": "1.0",
    "speech_pct": "hash(i, 4) % 100", "caption": "'A person is talking to the camera.'", "width": "1280",
    "height": "720", "codec": "'h264'", "source": "'avspeech_train'", "row_index": "i", "size": "NULL",
    "bytes_uri": "'clips/' || clip_id || '.mp4'",
    "sha256": "md5('s' || i) || md5('t' || i)", "cut_sha256": "md5('s' || i) || md5('t' || i)", "crop": "NULL",
    "path": "'/data/videos/' || video_id || '.mp4'", "lips": "[[0.8, 0.4]]", "sync_scores": "[[5.0, 8.0, 0.0]]",
    "tracks_file": "video_id || '.tracks.parquet'", "speaking_pct": "NULL", "decision": "NULL", "reasons": "NULL",
    "framing": "['head', 'semi', 'full'][1 + (hash(i, 5) % 3)::INT]", "speaker_evidence": "'sync'",
    "music_ratio": "0.1", "text_area_pct": "0.2", "static_pct": "1.0", "xy_agreement": "0.05", "lip_motion": "1.0",
    "asd_speaking_pct": "80.0", "digital_source_type": "NULL", "sync_drift_c": "NULL",
    "caption_model": "'recipe'", "iqa_variant": "'scorer'", "face_px": "200 + hash(i, 6) % 100",
}  # fmt: skip

DRAWN = ("clip_id", "video_id", "t_start", "t_end", "duration", "hashes", "loudness")
KINDS = {"double": "DOUBLE", "int64": "BIGINT", "int32": "INT", "string": "VARCHAR"}


def make_parts(folder: Path, rows: int) -> list[Path]:
    """Parts of JUDGED_SCHEMA with `rows` drawn clips."""
    fields, typed = [], []
    for field in JUDGED_SCHEMA:
        kind = re.sub(r"list<(?:item|element): ", "", str(field.type))
        lists = str(field.type).count("list<")
        typed.append(f"{field.name}::{KINDS[kind.rstrip('>')]}{'[]' * lists} AS {field.name}")
        if field.name in DRAWN:
            fields.append(field.name)
        else:
            number = f"hash(i, '{field.name}') % 100000 / 1000" if kind == "double" else "NULL"
            fields.append(f"{REAL.get(field.name, number)} AS {field.name}")
    files = []
    for part in range(PARTS):
        path = folder / f"part-{part}.parquet"
        files.append(path)
        drawn = f"""
            WITH numbered AS (SELECT range AS i, CASE WHEN range % 40 = 39 THEN range - 20 ELSE range END AS origin
                              FROM range({part * rows // PARTS}, {(part + 1) * rows // PARTS})),
            timed AS (SELECT *, md5('c' || i)[:16] AS clip_id, md5('v' || i // {CLIPS_PER_VIDEO})[:11] AS video_id,
                      round((i % {CLIPS_PER_VIDEO}) * 12.0, 3) AS t_start,
                      3 + hash(origin, 'd') % 176 * 0.04 AS duration FROM numbered),
            noted AS (SELECT * REPLACE (round(duration, 3) AS duration), round(t_start + duration, 3) AS t_end,
                      [lower(lpad(hex(xor(CASE WHEN origin % 200 = 0 THEN 0::UBIGINT ELSE hash(origin, f) END,
                       CASE WHEN i = origin THEN 0 ELSE 8796160131080 END::UBIGINT)), 16, '0'))
                       FOR f IN [0, 1, 2]] AS hashes,
                      [CASE WHEN origin % 100 = 1 THEN -60
                       ELSE -55 + (hash(origin, 'l', s // 3) % 40)::INT + (hash(i, s) % 2)::INT END
                       FOR s IN range((duration * 10)::INT)]::INT[] AS loudness FROM timed)
            SELECT {", ".join(typed)} FROM (SELECT {", ".join(fields)} FROM noted)"""
        with connection_beside(folder) as connection:
            connection.execute("SET preserve_insertion_order = false")
            connection.execute(f"COPY ({drawn}) TO {sql_path(path)} (FORMAT parquet, COMPRESSION zstd)")
    return files


def make_lists(folder: Path, rows: int) -> None:
    """Sources as the stages leave them, and an AVSpeech list of as many rows as there are clips."""
    videos = (rows + CLIPS_PER_VIDEO - 1) // CLIPS_PER_VIDEO
    drawn = {"position": "i", "video_id": "md5('v' || i)[:11]", "state": "'kept'", "reason": "''", "duration": "120.0"}
    fields = ", ".join(f"({drawn.get(f.name, 'NULL')})::{_kind(f.type)} AS {f.name}" for f in LISTED_SCHEMA)
    line = f"md5('v' || i // {CLIPS_PER_VIDEO})[:11] || ',' || i % 50 || '.5,' || i % 50 + 6 || '.25,0.5,0.25'"
    with connection_beside(folder) as connection:
        sources = f"SELECT {fields} FROM range({videos}) t(i)"
        connection.execute(f"COPY ({sources}) TO {sql_path(folder / 'listed.parquet')} (FORMAT parquet)")
        lines = f"SELECT {line} FROM range({rows}) t(i)"
        target = sql_path(folder / "avspeech_train.csv")
        connection.execute(f"COPY ({lines}) TO {target} (FORMAT csv, HEADER false, QUOTE '', DELIMITER '|')")
        (folder / "run" / "ledger").mkdir(parents=True, exist_ok=True)
        for stage, letter, units in (("probe", "v", videos), ("sync", "c", rows)):
            size = 11 if stage == "probe" else 16
            outcomes = f"""SELECT md5('{letter}' || i)[:{size}] AS unit, '{stage}' AS stage, 'f' AS fingerprint,
                '0' AS input_hash, 'kept' AS state, '' AS reason, 1::INT AS attempt, '' AS error_class, '' AS message,
                'node' AS host, 1.5 AS "seconds", 1.0 AS cpu_seconds, 0.0 AS gpu_seconds, 300.0 AS peak_mb,
                '{{"duration": 120}}' AS outputs, TIMESTAMP '2026-01-01' AS recorded FROM range({units}) t(i)"""
            ledger = sql_path(folder / "run" / "ledger" / f"{stage}-f.parquet")
            connection.execute(f"COPY ({outcomes}) TO {ledger} (FORMAT parquet, COMPRESSION zstd)")


def _kind(kind: object) -> str:
    return {"bool": "BOOLEAN"}.get(str(kind)) or KINDS[str(kind)]


def questions(folder: Path) -> dict[str, Callable[[], object]]:
    """What is measured, in this order, over the parts in `folder`."""
    parts, run = sorted(folder.glob("part-*.parquet")), RunFolder(folder / "run")
    versions = {f"stage_{number}": f"{number:016d}" for number in range(12)}
    config, here = CurationConfig(), ExecutorConfig(workers=1)

    def versions_of() -> list[Path]:
        return sorted((folder / "versions").glob("*.parquet"), key=lambda file: file.stat().st_mtime)

    def stricter() -> None:
        write_split(folder / "test.tsv", draw_split(run.clips_parquet, 100))
        reselect(SelectConfig(min_sync_c=5.0), run, str(folder / "test.tsv"))
        freeze(run, {"min_sync_c": 5.0}, folder / "versions", here, hash_contents=False)

    return {
        "start of a process": lambda: None,
        "listing of the sources": lambda: sum(1 for _ in list_sources(SourcesConfig(str(_csv(folder)), "avspeech"))),
        "clip table with duplicates": lambda: write_clip_table(
            config, parts, run.clips_parquet, run_id="0" * 16, stage_versions=versions
        ),
        "rows for tracks and files": lambda: (cut_ids(parts), sum(1 for _ in stream_cut(parts, ("tracks_file",)))),
        "source table": lambda: write_sources(run, [folder / "listed.parquet"]),
        "test fingerprints": lambda: write_test_fingerprints(parts, run.clips_parquet, run.report / "test.jsonl"),
        "summary": lambda: summarise(run),
        "yield over 49 thresholds": lambda: yield_table(run.root, SelectConfig()),
        "report": lambda: write_curation_report(run, SelectConfig()),
        "freeze": lambda: freeze(run, {"min_sync_c": 4.0}, folder / "versions", here, hash_contents=False),
        "test split, reselect, freeze": stricter,
        "diff of two lists": lambda: compare(versions_of()[0], versions_of()[1]),
    }


def _csv(folder: Path) -> Path:
    return folder / "avspeech_train.csv"


def measure(folder: Path, name: str) -> None:
    """Answer one question in a process of its own and print its line."""
    begin, spilled, done = time.monotonic(), 0, threading.Event()
    child = os.fork()
    if child == 0:
        os.execv(
            sys.executable,
            [sys.executable, "-m", "tests.benchmarks.large_table", "--folder", str(folder), "--ask", name],
        )

    def watch() -> None:
        nonlocal spilled
        while not done.wait(0.2):
            spilled = max(spilled, sum(_size(file) for spill in folder.rglob(".spill") for file in spill.glob("*")))

    thread = threading.Thread(target=watch)
    thread.start()
    _, status, used = os.wait4(child, 0)
    done.set()
    thread.join()
    cpu, wall = used.ru_utime + used.ru_stime, time.monotonic() - begin
    failed = f"  FAILED {status}" if status else ""
    print(f"{name:30} {cpu:8.1f} {wall:8.1f} {used.ru_maxrss / 1024:8.0f} {spilled / 1e6:8.0f}{failed}", flush=True)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def main() -> None:
    """Make what is missing, then measure; with --ask, be the process that is measured."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--folder", type=Path, required=True)
    options.add_argument("--rows", type=int, default=2_600_000)
    options.add_argument("--ask", default="")
    options.add_argument("--only", nargs="*", default=())
    chosen = options.parse_args()
    if chosen.ask:
        questions(chosen.folder)[chosen.ask]()
        return
    (chosen.folder / "run").mkdir(parents=True, exist_ok=True)
    if not _csv(chosen.folder).exists():
        make_parts(chosen.folder, chosen.rows)
        make_lists(chosen.folder, chosen.rows)
    print(f"{'':30} {'CPU s':>8} {'wall s':>8} {'peak MB':>8} {'spill MB':>8}")
    for name in chosen.only or questions(chosen.folder):
        measure(chosen.folder, name)


if __name__ == "__main__":
    main()
