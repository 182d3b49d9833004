"""Permanent removal of units from the ledger, for takedowns."""

import json
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from common.ledger.jsonlines import JsonLines
from common.ledger.store import ledger_files, ledger_sql
from common.ledger.tables import connection_beside, sql_path
from common.runs import atomic_write


def forget_units(folder: Path | str, units: Collection[str]) -> int:
    """Delete the rows of these units, and rows that name one of them in their message or outputs, from all stages;
    returns the number of deleted rows.

    Safe to repeat after a kill at any moment. Raises DiskFullError, and RuntimeError when a run is executing one of the
    stages.
    """
    folder = Path(folder)
    return sum(_forget(folder, name, units) for name in sorted({f.name.split(".")[0] for f in ledger_files(folder)}))


def named_by(folder: Path | str, units: Collection[str]) -> list[str]:
    """All strings in the outputs of the rows that `forget_units` would delete, such as file names; sorted."""
    folder = Path(folder)
    with connection_beside(folder) as connection:
        connection.register("removed", _table(units))
        sql = f"SELECT outputs FROM ({ledger_sql(ledger_files(folder))}) WHERE {_condition(units)}"
        found = connection.execute(sql).fetchall()
    return sorted({text for (outputs,) in found for text in _texts(json.loads(outputs or "null"))})


def _forget(folder: Path, name: str, units: Collection[str]) -> int:
    stage, _, fingerprint = name.rpartition("-")
    lines = JsonLines(folder / f"{name}.jsonl")
    appending = lines.path.exists()
    lines.open()  # exclusive, so that no run appends meanwhile
    try:
        files = ledger_files(folder, stage, fingerprint)
        with connection_beside(folder) as connection:
            connection.register("removed", _table(units))
            rows = ledger_sql(files)
            ((count,),) = connection.execute(f"SELECT count(*) FROM ({rows}) WHERE {_condition(units)}").fetchall()
            if count:
                merged = folder / f"{name}.parquet"
                remaining = f"SELECT * FROM ({rows}) WHERE NOT ({_condition(units)}) ORDER BY unit, input_hash"
                with atomic_write(merged) as temporary:
                    connection.execute(
                        f"COPY ({remaining}) TO {sql_path(temporary)} (FORMAT parquet, COMPRESSION zstd)"
                    )
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
    """SQL condition: the row belongs to one of the units or names one as a whole word."""
    words = "|".join(re.escape(unit) for unit in sorted(units)).replace("'", "''")
    named = f"'(^|[^A-Za-z0-9_.-])({words})($|[^A-Za-z0-9_-])'"
    texts = ("unit", "message", "outputs")
    mentions = " OR ".join(f"coalesce(regexp_matches({text}, {named}), false)" for text in texts)
    return f"unit IN (SELECT unit FROM removed) OR {mentions}"


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(item)
