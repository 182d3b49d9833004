"""The ledger: one durable row per unit x stage x fingerprint; rejections and failures are as durable as successes.

The rows of a stage are stored in up to three kinds of files, each named after stage and fingerprint. A running stage
appends to `.jsonl`; a large `.jsonl` is sealed into a numbered segment, `.000001.parquet`; at the end of the stage all
are merged into `.parquet`, which holds every unit once. Readers take the latest row of each unit across all of them, so
a run killed at any point loses no row and counts none twice.
"""

import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa

from common.ledger.jsonlines import JsonLines, json_bytes, json_value
from common.ledger.tables import BATCH_ROWS, PIECE_MEMORY, batches, connection_beside, sql_path, write_by_pieces
from common.parquet import check_parquet
from common.runs import read_format_version, write_format_version

logger = logging.getLogger(__name__)
State = Literal["kept", "rejected", "failed", "pending"]
STATES: tuple[State, ...] = get_args(State)
PAUSE = "pause_seconds"  # key of a pending outcome's outputs: how long to pause its worker
DIED, TIMED_OUT = "WorkerDied", "TimedOut"  # error classes of a unit whose worker was lost
Unit = dict[str, Any]  # a row with a "unit" id
Key = tuple[str, str]  # unit id, input hash
SEAL_BYTES = 32 * 2**20  # size of `.jsonl` that is sealed: about 75,000 rows, read in half a second
LEDGER_FORMAT = 2  # of the ledger folder
AFTER_SEGMENTS = 10**9  # above the number of any segment: appended lines are the latest rows
FLOW = "flow"  # folder in that of the ledger, for what flows record (`common.executors.flow_run`)
JOURNAL = "worker"  # and a number, in the names of files that workers write
HAND_OUT = b'{"begins":"hand-out"}\n'  # line of such a file after the rows of the hand-out before
SAMPLE_ROWS, SAMPLE_BYTES = 4096, 2**20  # by which it is estimated how many bytes a row of a stage has
ROW_BYTES = 300  # of a row beside its outputs
MERGE_SHARE = 8  # new rows are merged once they reach an eighth of the size of the old ones

LEDGER_SCHEMA = pa.schema(
    [
        ("unit", pa.string()),
        ("stage", pa.string()),
        ("fingerprint", pa.string()),
        ("input_hash", pa.string()),
        ("state", pa.string()),
        ("reason", pa.string()),
        ("attempt", pa.int32()),
        ("error_class", pa.string()),
        ("message", pa.string()),
        ("host", pa.string()),
        ("seconds", pa.float64()),
        ("cpu_seconds", pa.float64()),
        ("gpu_seconds", pa.float64()),
        ("peak_mb", pa.float64()),
        ("outputs", pa.string()),  # JSON
        ("recorded", pa.timestamp("us")),  # UTC
    ]
)
SQL_TYPES = {"string": "VARCHAR", "int32": "INTEGER", "double": "DOUBLE", "timestamp[us]": "TIMESTAMP"}
KEY_SCHEMA = pa.schema([("position", pa.int64()), ("unit", pa.string()), ("input_hash", pa.string())])


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of one unit in one stage.

    `outputs` holds JSON values only: scores and references, never pixels. `seconds`, `cpu_seconds`, `gpu_seconds` (wall
    seconds x GPUs reserved), `peak_mb` (peak resident MB), `host` and `attempt` are filled in by the executor.
    `outputs_json`: the outputs as serialised by a worker, recorded verbatim; `outputs` then holds only the keys that
    the executor itself reads.
    """

    unit: str
    state: State
    reason: str = ""
    message: str = ""
    outputs: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float = 0.0
    peak_mb: float = 0.0
    host: str = ""
    attempt: int = 1
    error_class: str = ""
    outputs_json: str = ""


OUTCOME_FIELDS = [item.name for item in fields(Outcome) if item.name != "outputs_json"]


class Last(NamedTuple):
    """The latest row of a unit that may be retried; `worker_crashes` counts the consecutive crashes it has caused."""

    state: State
    attempt: int
    error_class: str = ""
    worker_crashes: int = 0


class Ledger:
    """The ledger folder of a run."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def open(self, stage: str, fingerprint: str) -> "StageLedger":
        """The log of one stage under one fingerprint; a new ledger records its format.

        Raises ValueError for a name that is not valid in a file name, FormatVersionError for a ledger of newer code.
        """
        if not re.fullmatch(r"[A-Za-z0-9_]+", stage):
            raise ValueError(f"Stage name '{stage}' must consist of letters, digits and underscores; rename the stage.")
        if self.format_version() < LEDGER_FORMAT:
            if ledger_files(self.folder):
                logger.warning("%s is of an older version: what it recorded is not used, all is computed", self.folder)
            write_format_version(self.folder, LEDGER_FORMAT)
        return StageLedger(self.folder, stage, fingerprint)

    def format_version(self) -> int:
        """The format that the ledger records, 1 where it records none. Raises FormatVersionError for newer code's."""
        return read_format_version(self.folder, LEDGER_FORMAT, "move the ledger folder away to compute all again")


class StageLedger:
    """Rows of one stage and fingerprint; one writer at a time."""

    def __init__(self, folder: Path, stage: str, fingerprint: str) -> None:
        self.folder, self.stage, self.fingerprint = folder, stage, fingerprint
        self.name = f"{stage}-{fingerprint}"
        self._parquet = folder / f"{self.name}.parquet"
        self._lines = JsonLines(folder / f"{self.name}.jsonl")

    def __enter__(self) -> "StageLedger":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def done(self) -> Iterator[tuple[Key, Outcome]]:
        """The latest outcome of every (unit, input hash), whatever its state, read in batches."""
        with connection_beside(self.folder) as connection:
            for batch in batches(connection.sql(ledger_sql(self.files())), LEDGER_SCHEMA):
                for row in batch.to_pylist():
                    yield (row["unit"], row["input_hash"]), _outcome(row)

    def last(self, keys: pa.Table) -> tuple[np.ndarray, dict[int, Last]]:
        """The latest state of every key of a `key_table`, as an index into STATES or -1 for a key without a row (int8),
        and by position the details of those that failed or are pending."""
        states, unsettled = np.full(keys.num_rows, -1, np.int8), {}
        sql = f"""SELECT position, list_position({list(STATES)}, state) - 1 AS code, attempt, error_class,
                  CASE WHEN error_class = '{DIED}' THEN outputs END AS outputs
                  FROM keys JOIN ({ledger_sql(self.files())}) USING (unit, input_hash)"""
        with connection_beside(self.folder) as connection:
            connection.register("keys", keys)
            for batch in batches(connection.sql(sql)):
                positions, codes = (batch[name].to_numpy() for name in ("position", "code"))
                states[positions] = codes
                # By column: a dict for each of many failed rows would cost more than the query.
                failed = batch.filter(pa.array(codes >= STATES.index("failed")))
                for position, code, attempt, error_class, outputs in zip(
                    *(column.to_pylist() for column in failed.columns), strict=True
                ):
                    unsettled[position] = Last(STATES[code], attempt, error_class, worker_crashes(outputs))
        return states, unsettled

    def outcomes(self, keys: pa.Table) -> Iterator[Outcome]:
        """The latest outcome of each key of a `key_table`, in its order, in batches; keys without a row are omitted."""
        sql = f"SELECT l.* FROM keys JOIN ({ledger_sql(self.files())}) l USING (unit, input_hash) ORDER BY position"
        with connection_beside(self.folder) as connection:
            connection.register("keys", keys)
            for batch in batches(connection.sql(sql), LEDGER_SCHEMA):
                yield from map(_outcome, batch.to_pylist())

    def lock(self) -> None:
        """Become the only writer of this stage. Raises RuntimeError when another run is."""
        self._lines.open()

    def append(self, key: Key, outcome: Outcome) -> None:
        """Write one row; once the call returns, a kill of this process does not lose it.

        Raises DiskFullError, and RuntimeError when another run is writing this stage.
        """
        self.append_lines(ledger_line(key, self.stage, self.fingerprint, outcome))

    def append_lines(self, lines: bytes) -> None:
        """Write rows that `ledger_line` has made, in one write. Raises as `append`."""
        if self._lines.append_bytes(lines) >= SEAL_BYTES:
            self._seal()

    def journal(self, worker: int) -> Path:
        """The file in which a worker of this number notes rows before the recording process has them: one of the
        ledger's, whose rows count where no other file has later ones."""
        return journal_file(self.folder, self.name, worker)

    def take_over(self) -> None:
        """Make a segment of what workers of a killed run have noted and of the lines, before new workers use the files;
        it is merged at the end of the stage, not twice. Raises as `compact`."""
        if any(map(_is_journal, self.files())):
            self.lock()
            self._seal_journals()

    def is_open_ended(self) -> bool:
        """Whether a run is appending now, or was killed before it merged its rows."""
        return self._lines.path.exists()

    def compact(self) -> None:
        """Merge all rows into Parquet; safe to repeat after a kill at any moment.

        A few new rows beside very many old ones become a segment, which is merged once there are more of them: the cost
        of rewriting the large file is spread over many runs. Raises DiskFullError, and RuntimeError when another run is
        writing this stage.
        """
        self.lock()
        recent = [file for file in self.files() if file not in (self._parquet, self._lines.path)]
        old = self._parquet.stat().st_size if self._parquet.exists() else 0
        new = sum(file.stat().st_size for file in [*recent, self._lines.path])
        few = old > SEAL_BYTES and new * MERGE_SHARE < old and len(recent) < MERGE_SHARE
        if few or any(file.suffix == ".parquet" for file in self.files()):
            self._seal_journals()  # lines would be read once for each piece of the merged table
        if not few:
            if new:
                self._write(self._parquet, partial(ledger_sql, self.files()), self.files())
            for file in self.files():
                if file not in (self._parquet, self._lines.path):
                    file.unlink()
        self._lines.remove()

    def close(self) -> None:
        """Release the stage for other writers."""
        self._lines.close()

    def files(self) -> list[Path]:
        """The files that hold its rows."""
        return ledger_files(self.folder, self.stage, self.fingerprint)

    def _seal(self) -> None:
        """Turn the appended lines into a segment and start an empty `.jsonl`."""
        numbers = [_number(file) for file in self.files() if _is_segment(file)]
        lines = [file for file in self.files() if file.suffix == ".jsonl"]
        if any(file.stat().st_size for file in lines):
            number = max(numbers, default=0) + 1
            stored = [file for file in self.files() if file.suffix == ".parquet"]
            self._write(self.folder / f"{self.name}.{number:06d}.parquet", partial(_new_sql, lines, stored), lines)
            self._lines.clear()

    def _seal_journals(self) -> None:
        """Seal while no worker writes: what workers have noted is in the segment too, and their files go."""
        self._seal()
        for file in filter(_is_journal, self.files()):
            file.unlink()

    def _write(self, target: Path, query: Callable[[str], str], files: list[Path]) -> None:
        """Write the rows of `query`, which are those of `files`."""
        # Sorted by unit, so that a lookup reads only the row groups whose min/max range holds the unit.
        small = all(file.suffix == ".jsonl" for file in files)
        width = _row_bytes(max(files, key=lambda file: file.stat().st_size))
        write_by_pieces(target, query, LEDGER_SCHEMA, ("unit", "input_hash"), width, small)


def ledger_line(key: Key, stage: str, fingerprint: str, outcome: Outcome) -> bytes:
    """A row of the ledger as a line of JSON; workers make them, so that the recording process has not to."""
    row = {name: clean(getattr(outcome, name)) for name in OUTCOME_FIELDS}
    row |= {"unit": clean(key[0]), "input_hash": key[1], "stage": stage, "fingerprint": fingerprint}
    row |= {"outputs": outcome.outputs_json or json_bytes(outcome.outputs).decode()}
    row |= {"recorded": datetime.now(UTC).replace(tzinfo=None).isoformat()}
    return json_bytes(row) + b"\n"


def key_table(keys: Iterable[Key]) -> pa.Table:
    """Keys with their position as an Arrow table of about 50 bytes a row."""
    remaining, pieces, position = iter(keys), [], 0
    while piece := list(islice(remaining, BATCH_ROWS)):
        units, hashes = zip(*piece, strict=True)
        positions = pa.array(range(position, position + len(piece)), pa.int64())
        pieces.append(pa.record_batch([positions, pa.array(map(clean, units)), pa.array(hashes)], schema=KEY_SCHEMA))
        position += len(piece)
    return pa.Table.from_batches(pieces, KEY_SCHEMA)


def ledger_rows(folder: Path | str, stage: str = "*") -> pa.Table:
    """All rows of the ledger (or of one stage), each unit x stage x fingerprint once, ordered by stage and unit."""
    folder = Path(folder)
    sql = f"SELECT * FROM ({ledger_sql(ledger_files(folder, stage))}) ORDER BY stage, fingerprint, unit, input_hash"
    with connection_beside(folder) as connection:
        return pa.Table.from_batches(batches(connection.sql(sql), LEDGER_SCHEMA), LEDGER_SCHEMA)


def ledger_files(folder: Path | str, stage: str = "*", fingerprint: str = "*") -> list[Path]:
    """The Parquet and JSON-lines files of the ledger, or of one stage."""
    files = [file for kind in ("parquet", "jsonl") for file in sorted(Path(folder).glob(f"{stage}-*.{kind}"))]
    # Names that begin with a dot are temporary files of a killed compaction.
    pattern = re.compile(r"[A-Za-z0-9_]+-" + (r"[^.]*" if fingerprint == "*" else re.escape(fingerprint)) + r"\..*")
    return [file for file in files if pattern.fullmatch(file.name)]


def ledger_sql(files: list[Path], where: str = "true") -> str:
    """A DuckDB query for the latest row of every unit, with the columns of LEDGER_SCHEMA even when there is no file.
    `where` chooses among the units."""
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(file.name.split(".")[0], []).append(file)
    columns = ", ".join(f"NULL::{SQL_TYPES[str(column.type)]} AS {column.name}" for column in LEDGER_SCHEMA)
    parts = [part for group in groups.values() if (part := _stage_sql(group, where))]
    return " UNION ALL BY NAME ".join([f"SELECT {columns} WHERE false", *parts])


def _stage_sql(files: list[Path], where: str) -> str:
    """A DuckDB query for the latest row of every unit of one stage and fingerprint; "" without rows.

    The merged file holds every unit once and may be large; its rows of units without a later one pass through an anti
    join. Of the segments, each of which holds a unit once, the latest rows are found by their keys alone, which cost
    little beside the rows. Lines are few enough for a window function over whole rows.
    """
    parquet = [file for file in files if file.suffix == ".parquet"]
    lines = [file for file in files if file.suffix == ".jsonl" and file.exists() and file.stat().st_size]
    check_parquet(parquet, ("unit", "input_hash", "state", "attempt"))
    stored = _stored(parquet, where)
    merged = [sql for file, sql in stored.items() if not _is_segment(file)]
    later = [sql for file, sql in stored.items() if _is_segment(file)]
    begin = ""
    if lines:
        rows = _lines_sql(lines, stored.values(), where)
        if not parquet:
            return f"SELECT * EXCLUDE (written) FROM ({rows})"
        begin, later = f"WITH lines AS MATERIALIZED ({rows})", [*later, "SELECT * FROM lines"]
    if not later:
        return f"SELECT * EXCLUDE (written) FROM ({merged[0]})" if merged else ""
    recent = " UNION ALL BY NAME ".join(later)
    latest = f"SELECT unit, input_hash, max(written) AS written FROM ({recent}) GROUP BY ALL"
    rows = (
        recent
        if len(later) == 1
        else f"SELECT * FROM ({recent}) SEMI JOIN ({latest}) USING (unit, input_hash, written)"
    )
    if merged:
        keys = f"SELECT unit, input_hash FROM ({recent})"
        rows = f"SELECT * FROM ({merged[0]}) ANTI JOIN ({keys}) USING (unit, input_hash) UNION ALL BY NAME {rows}"
    return f"SELECT * FROM ({begin} SELECT * EXCLUDE (written) FROM ({rows}))"


def _stored(parquet: list[Path], where: str) -> dict[Path, str]:
    """A query for the rows of each file, with `written`, its place in the order of writing: that decides which row of a
    unit is the latest, not its time, since clocks may be set back."""
    return {
        file: f"SELECT *, {_number(file) if _is_segment(file) else 0} AS written "
        f"FROM read_parquet({sql_path(file)}) WHERE {where}"
        for file in parquet
    }


def _new_sql(lines: list[Path], parquet: list[Path], where: str) -> str:
    """A query for the rows of a new segment of files of lines, beside the other files of the stage."""
    filled = [file for file in lines if file.stat().st_size]
    return f"SELECT * EXCLUDE (written) FROM ({_lines_sql(filled, _stored(parquet, where).values(), where)})"


def _lines_sql(files: list[Path], stored: Collection[str], where: str) -> str:
    """A query for the latest row of every unit in files of lines, with `written` as of `_stored`.

    What a worker has noted counts where neither another line nor a `stored` row has the same or a later attempt: this
    process may have recorded it since, and another attempt too. What was pending is tried again under its old number.
    """
    columns = {column.name: SQL_TYPES[str(column.type)] for column in LEDGER_SCHEMA}
    options = f"format = 'newline_delimited', ignore_errors = true, columns = {columns}"
    # With ignore_errors, a line that is torn or no object is read as a row of NULLs.
    parts = []
    for file in files:
        noted = _is_journal(file)
        part = f"""SELECT *, {AFTER_SEGMENTS} + row_number() OVER () AS written, {noted} AS noted
                   FROM read_json({sql_path(file)}, {options}) new
                   WHERE unit IS NOT NULL AND input_hash IS NOT NULL AND state IN {STATES} AND ({where})"""
        if noted and stored:
            part += f""" AND NOT EXISTS (
                SELECT 1 FROM ({" UNION ALL BY NAME ".join(stored)}) old
                WHERE old.unit = new.unit AND old.input_hash = new.input_hash
                AND (old.attempt > new.attempt OR old.attempt = new.attempt AND old.state <> 'pending'))"""
        parts.append(part)
    rows = " UNION ALL BY NAME ".join(parts)
    if not any(map(_is_journal, files)):
        last = "QUALIFY row_number() OVER (PARTITION BY unit, input_hash ORDER BY written DESC) = 1"
        return f"SELECT * EXCLUDE (noted) FROM ({rows}) {last}"
    of_lines = "max(attempt) FILTER (WHERE NOT noted) OVER (PARTITION BY unit, input_hash)"
    best = f"CASE WHEN NOT noted THEN written WHEN attempt > coalesce(line, -1) THEN {3 * AFTER_SEGMENTS} + attempt END"
    return f"""SELECT * EXCLUDE (noted, line) FROM (SELECT *, {of_lines} AS line FROM ({rows}))
               QUALIFY row_number() OVER (PARTITION BY unit, input_hash ORDER BY {best} DESC NULLS LAST) = 1"""


def _row_bytes(file: Path) -> float:
    """About how many bytes a row of a file of the ledger has, by its first ones."""
    if file.suffix == ".jsonl":
        with open(file, "rb") as lines:
            begin = lines.read(SAMPLE_BYTES)
        return len(begin) / max(1, begin.count(b"\n"))
    sql = f"SELECT avg(strlen(outputs)) FROM (FROM read_parquet({sql_path(file)}) LIMIT {SAMPLE_ROWS})"
    with connection_beside(file.parent, PIECE_MEMORY) as connection:
        ((mean,),) = connection.execute(sql).fetchall()
    return ROW_BYTES + (mean or 0.0)


def worker_crashes(outputs: str | None) -> int:
    """Consecutive crashes that a lost worker's row counts; 0 for any other row, whose outputs are not read."""
    if outputs is None:
        return 0
    counted = json_value(outputs)
    return int(counted.get("worker_crashes", counted.get("deaths", 0)))  # "deaths": of older ledgers


def clean(value: Any) -> Any:
    """Text that Parquet can store: lone surrogates (undecodable file names) are escaped, NULs removed."""
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "") if isinstance(value, str) else value


def journal_file(folder: Path, name: str, worker: int) -> Path:
    """See `StageLedger.journal`; `name` is that of the stage and its fingerprint."""
    return folder / f"{name}.{JOURNAL}{worker}.jsonl"


def _is_journal(file: Path) -> bool:
    return file.suffix == ".jsonl" and file.suffixes[0].startswith("." + JOURNAL)


def _is_segment(file: Path) -> bool:
    return file.suffix == ".parquet" and len(file.suffixes) == 2


def _number(segment: Path) -> int:
    return int(segment.suffixes[0][1:])


def _outcome(row: dict[str, Any]) -> Outcome:
    values = {name: row[name] for name in OUTCOME_FIELDS}
    return Outcome(**values | {"outputs": json_value(row["outputs"])})
