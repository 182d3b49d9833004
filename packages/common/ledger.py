"""The ledger: one durable row per unit x stage x fingerprint; a rejection or a failure is as durable as a success.

While a stage runs its rows are appended to `<stage>-<fingerprint>.jsonl`; at its end they are merged into the Parquet
file of the same name. Readers merge both, so a run killed anywhere loses no row and counts none twice.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from common.jsonlines import JsonLines
from common.runs import atomic_write, plain

State = Literal["kept", "rejected", "failed", "pending"]
Key = tuple[str, str]  # unit, input hash

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


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one unit in one stage.

    `outputs` holds JSON values only: scores and references, never pixels. `seconds`, `cpu_seconds`, `gpu_seconds` (wall
    seconds x GPUs reserved), `peak_mb` (peak resident MB), `host` and `attempt` are filled in by the executor.
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


OUTCOME_FIELDS = [item.name for item in fields(Outcome)]


class Ledger:
    """The ledger folder of a run."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)

    def open(self, stage: str, fingerprint: str) -> "StageLog":
        """The log of one stage under one fingerprint. Errors: ValueError for a name that cannot be a file name."""
        if not re.fullmatch(r"[A-Za-z0-9_]+", stage):
            raise ValueError(f"Stage name '{stage}' must consist of letters, digits and underscores; rename the stage.")
        return StageLog(self.folder, stage, fingerprint)


class StageLog:
    """Rows of one stage and fingerprint; one writer at a time."""

    def __init__(self, folder: Path, stage: str, fingerprint: str) -> None:
        self.stage, self.fingerprint = stage, fingerprint
        self._parquet = folder / f"{stage}-{fingerprint}.parquet"
        self._lines = JsonLines(folder / f"{stage}-{fingerprint}.jsonl")

    def __enter__(self) -> "StageLog":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def done(self) -> dict[Key, Outcome]:
        """The last outcome of every (unit, input hash), whatever its state."""
        return {
            (row["unit"], row["input_hash"]): _outcome(row)
            for batch in _merged_batches([self._parquet, self._lines.path])
            for row in batch.select([*OUTCOME_FIELDS, "input_hash"]).to_pylist()
        }

    def lock(self) -> None:
        """Become the one writer of this stage. Errors: RuntimeError when another run is."""
        self._lines.open()

    def append(self, key: Key, outcome: Outcome) -> None:
        """Write one row, durable against the death of this process when the call returns.

        Errors: DiskFullError; RuntimeError when another run writes this stage.
        """
        row = {name: _clean(getattr(outcome, name)) for name in OUTCOME_FIELDS}
        row |= {"unit": key[0], "input_hash": key[1], "stage": self.stage, "fingerprint": self.fingerprint}
        row |= {"outputs": json.dumps(plain(outcome.outputs))}
        self._lines.append(row | {"recorded": datetime.now(UTC).replace(tzinfo=None).isoformat()})

    def compact(self) -> None:
        """Merge the appended lines into Parquet; killed at any moment it can be done again. Errors: DiskFullError."""
        if self._lines.path.exists():
            with atomic_write(self._parquet) as temporary, pq.ParquetWriter(temporary, LEDGER_SCHEMA) as writer:
                for batch in _merged_batches([self._parquet, self._lines.path]):
                    writer.write_batch(batch)
            self._lines.path.unlink()
        self.close()

    def close(self) -> None:
        """Let another run write this stage."""
        self._lines.close()


def ledger_rows(folder: Path | str, stage: str = "*") -> pa.Table:
    """All rows of the ledger (or of one stage), Parquet and lines merged, each unit x stage x fingerprint once."""
    return pa.Table.from_batches(_merged_batches(ledger_files(folder, stage)), LEDGER_SCHEMA)


def ledger_files(folder: Path | str, stage: str = "*") -> list[Path]:
    """The Parquet and JSON-lines files of the ledger, or of one stage."""
    files = [file for kind in ("parquet", "jsonl") for file in sorted(Path(folder).glob(f"{stage}-*.{kind}"))]
    return [file for file in files if not file.name.startswith(".")]  # what a killed compaction was writing


def ledger_sql(files: list[Path]) -> str:
    """A DuckDB query giving the merged rows of `files` with the columns of LEDGER_SCHEMA, also when there are none."""
    columns = {column.name: SQL_TYPES[str(column.type)] for column in LEDGER_SCHEMA}
    parts = ["SELECT " + ", ".join(f"NULL::{kind} AS {name}" for name, kind in columns.items()) + " WHERE false"]
    parquet = [quoted(file) for file in files if file.suffix == ".parquet" and file.exists()]
    lines = [quoted(file) for file in files if file.suffix == ".jsonl" and file.exists()]
    if parquet:
        parts.append(f"SELECT * FROM read_parquet([{', '.join(parquet)}], union_by_name = true)")
    if lines:
        # A torn line is read as a row of NULLs.
        options = f"format = 'newline_delimited', ignore_errors = true, columns = {columns}"
        parts.append(f"SELECT * FROM read_json([{', '.join(lines)}], {options}) WHERE unit IS NOT NULL")
    return (
        f"SELECT * FROM ({' UNION ALL BY NAME '.join(parts)}) QUALIFY row_number() OVER (PARTITION BY stage, "
        "fingerprint, unit, input_hash ORDER BY attempt DESC, recorded DESC) = 1"
    )


def quoted(file: Path) -> str:
    """A path as a string literal of SQL."""
    return "'" + str(file).replace("'", "''") + "'"


def _merged_batches(files: list[Path]) -> Iterator[pa.RecordBatch]:
    # DuckDB merges larger than memory by spilling, and must do so beside the ledger, not in the current folder.
    folder = files[0].parent if files else Path()
    with duckdb.connect(config={"temp_directory": str(folder / ".spill")}) as connection:
        rows = connection.sql(f"{ledger_sql(files)} ORDER BY stage, fingerprint, unit, input_hash")
        for batch in rows.to_arrow_reader(100_000):
            yield batch.cast(LEDGER_SCHEMA)


def _outcome(row: dict[str, Any]) -> Outcome:
    values = {name: row[name] for name in OUTCOME_FIELDS}
    return Outcome(**values | {"outputs": json.loads(row["outputs"])})


def _clean(value: Any) -> Any:
    # Lone surrogates (undecodable file names) and NULs have no place in Parquet text.
    return value.encode("utf-8", "backslashreplace").decode().replace("\0", "") if isinstance(value, str) else value
