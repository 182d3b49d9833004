"""Rows taken out of the ledger for good: those of units that must not be known any more."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.ledger.jsonlines import JsonLines
from common.ledger.store import ledger_files, ledger_sql
from common.ledger.tables import connection_beside, quoted
from common.runs import atomic_write


def forget_units(folder: Path | str, units: Collection[str]) -> int:
    """Drop every row of these units, and every row that names one of them in its message or outputs, from all stages;
    returns how many went.

    Killed at any moment it can be done again. Errors: DiskFullError; RuntimeError when a run is at one of the stages.
    """
    folder = Path(folder)
    return sum(_forget(folder, name, units) for name in sorted({f.name.split(".")[0] for f in ledger_files(folder)}))


def named_by(folder: Path | str, units: Collection[str]) -> list[str]:
    """All texts in the outputs of the rows that `forget_units` would drop, such as names of files; sorted."""
    folder = Path(folder)
    with connection_beside(folder) as connection:
        connection.register("doomed", _table(units))
        sql = f"SELECT outputs FROM ({ledger_sql(ledger_files(folder))}) WHERE {_condition(units)}"
        found = connection.execute(sql).fetchall()
    return sorted({text for (outputs,) in found for text in _texts(json.loads(outputs or "null"))})


def _forget(folder: Path, name: str, units: Collection[str]) -> int:
    stage, _, fingerprint = name.rpartition("-")
    lines = JsonLines(folder / f"{name}.jsonl")
    appending = lines.path.exists()
    lines.open()  # alone, so that nobody appends meanwhile
    try:
        files = ledger_files(folder, stage, fingerprint)
        with connection_beside(folder) as connection:
            connection.register("doomed", _table(units))
            rows = ledger_sql(files)
            ((count,),) = connection.execute(f"SELECT count(*) FROM ({rows}) WHERE {_condition(units)}").fetchall()
            if count:
                merged = folder / f"{name}.parquet"
                left = f"SELECT * FROM ({rows}) WHERE NOT ({_condition(units)}) ORDER BY unit, input_hash"
                with atomic_write(merged) as temporary:
                    connection.execute(f"COPY ({left}) TO {quoted(temporary)} (FORMAT parquet, COMPRESSION zstd)")
                for file in set(files) - {merged, lines.path}:
                    file.unlink()
        if count or not appending:
            lines.remove()
    finally:
        lines.close()
    return int(count)


def _table(units: Collection[str]) -> pa.Table:
    return pa.table({"unit": pa.array(sorted(units), pa.string())})


def _condition(units: Collection[str]) -> str:
    """Whether a row is of one of the units or names one as a whole word."""
    words = "|".join(re.escape(unit) for unit in sorted(units)).replace("'", "''")
    named = f"'(^|[^A-Za-z0-9_.-])({words})($|[^A-Za-z0-9_-])'"
    texts = ("unit", "message", "outputs")
    mentions = " OR ".join(f"coalesce(regexp_matches({text}, {named}), false)" for text in texts)
    return f"unit IN (SELECT unit FROM doomed) OR {mentions}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)
