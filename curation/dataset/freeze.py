"""Freezing: the kept clips of a run as a data set version, their files checked and their contents hashed."""

from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from common.executors.config import ExecutorConfig
from common.executors.flow import Flow, Step
from common.executors.flow_run import run_flow
from common.ledger.store import Ledger
from common.ledger.tables import MEMORY_LIMIT, batches
from common.query import connect
from common.runs import RunFolder, plain
from curation.dataset.content import ContentStage
from curation.dataset.versions import CONTENTS, SCHEMA, VersionError, write_version


def freeze(
    run: RunFolder, rules: Any, folder: Path, executor: ExecutorConfig, hash_contents: bool = True
) -> dict[str, Any]:
    """Write the list of the kept clips of a run into `folder`; returns its header.

    `rules` is the recipe's `curation` section (a dataclass or mapping without paths), which is part of the name. The
    clip files are checked against the table and, with `hash_contents`, decoded (about 900 frames of 480p a second).
    Raises FileNotFoundError without a clip table; VersionError when no clip is kept or a file differs from the table.
    """
    with connect(run.root) as connection:
        connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
        connection.register("contents", _hash_clips(run, executor) if hash_contents else CONTENTS.empty_table())
        sql = "SELECT * REPLACE (CASE WHEN crop IS NOT NULL THEN crop_side END AS crop_side) FROM ({}) ORDER BY clip_id"
        rows = connection.sql(sql.format(f"SELECT {_columns(connection)} {_FROM}"))
        header = write_version(folder, batches(rows, SCHEMA), plain(rules))
    if header is None:
        raise VersionError(f"{run.root} has no kept clip to freeze; run the curation job or loosen its thresholds.")
    return header


_FROM = """FROM clips AS c LEFT JOIN (SELECT DISTINCT ON (video_id) * FROM sources) AS s USING (video_id)
           LEFT JOIN contents USING (clip_id) WHERE c.decision = 'kept'"""


def _columns(connection: duckdb.DuckDBPyConnection) -> str:
    """SQL for the columns of a list; null for columns that the tables of an older run lack."""
    own = {
        "url": ("s", "url"),
        "source_height": ("s", "height"),
        "source_sha256": ("s", "sha256"),
        "crop_side": ("c", "width"),
        "content_sha256": ("contents", "content_sha256"),
    }
    there = {
        alias: {row[0] for row in connection.execute(f"DESCRIBE {view}").fetchall()}
        for alias, view in (("c", "clips"), ("s", "sources"), ("contents", "contents"))
    }
    chosen = []
    for name in SCHEMA.names:
        alias, column = own.get(name, ("c", name))
        chosen.append(f"{alias}.{column} AS {name}" if column in there[alias] else f"NULL AS {name}")
    return ", ".join(chosen)


def _hash_clips(run: RunFolder, executor: ExecutorConfig) -> pa.Table:
    """clip_id and content hash of every kept clip, each file decoded once."""
    with connect(run.root) as connection:
        kept = connection.sql("SELECT clip_id AS unit, sha256 FROM clips WHERE decision = 'kept' ORDER BY clip_id")
        listed = (row for batch in batches(kept) for row in batch.to_pylist())
        flow = Flow((Step(ContentStage(run.clips)),))
        rows = run_flow(flow, listed, Ledger(run.ledger), executor, "hash clips").rows()
        names, digests, bad = list[str](), list[str](), list[str]()
        for name, row in rows:
            if "decision" in row:
                bad.append(row["message"])
            else:
                names.append(name)
                digests.append(row["content_sha256"])
    if bad:
        raise VersionError(f"{len(bad)} clips cannot be frozen, the first: {bad[0]}")
    return pa.Table.from_arrays([pa.array(names, pa.string()), pa.array(digests, pa.string())], schema=CONTENTS)
