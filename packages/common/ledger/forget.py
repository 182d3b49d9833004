"""Permanent removal of units from the ledger, for takedowns; rows are found by their exact stage and unit alone."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pyarrow as pa

from common.ledger.jsonlines import JsonLines
from common.ledger.store import ledger_files, ledger_sql
from common.ledger.tables import connection_beside, quoted, sql_path
from common.runs import atomic_write

Keys = Mapping[str, Collection[str]]  # stage -> units


def ledger_stages(folder: Path | str) -> list[str]:
    """Names of the stages that the ledger holds, sorted."""
    return sorted({_name(file).rpartition("-")[0] for file in ledger_files(Path(folder))})


def stage_units(folder: Path | str, stage: str) -> list[str]:
    """The units of a stage, sorted; for stages that are small, as those of evaluation are."""
    sql = f"SELECT DISTINCT unit FROM ({ledger_sql(ledger_files(Path(folder), stage))}) ORDER BY unit"
    with connection_beside(Path(folder)) as connection:
        return [unit for (unit,) in connection.execute(sql).fetchall()]


def count_units(folder: Path | str, keys: Keys) -> int:
    """The number of rows that `forget_units` would delete."""
    folder, count = Path(folder), 0
    with connection_beside(folder) as connection:
        for stage in [stage for stage in keys if keys[stage]]:
            connection.register("removed", _table(keys[stage]))
            sql = f"SELECT count(*) FROM ({ledger_sql(ledger_files(folder, stage))}) SEMI JOIN removed USING (unit)"
            count += connection.execute(sql).fetchall()[0][0]
    return count


def output_texts(folder: Path | str, stage: str, units: Collection[str], path: str) -> dict[str, bool]:
    """The texts at a JSON path (`$.file`, or `$.files.*` for several) of the outputs of these units' rows, such as file
    names -> whether a row of another unit has the same text there."""
    files = ledger_files(Path(folder), stage)
    if not files or not units:
        return {}
    found = f"json_extract_string(outputs, {quoted(path)})"
    texts = found if "*" in path else f"[{found}]"
    sql = f"""SELECT text, bool_or(other) FROM (
                  SELECT unit NOT IN (SELECT unit FROM removed) AS other, unnest({texts}) AS text
                  FROM ({ledger_sql(files)})
              ) WHERE text IS NOT NULL GROUP BY text HAVING bool_or(NOT other) ORDER BY text"""
    with connection_beside(Path(folder)) as connection:
        connection.register("removed", _table(units))
        return dict(connection.execute(sql).fetchall())


def messages_with(folder: Path | str, texts: Collection[str]) -> list[tuple[str, str]]:
    """(stage, message) of the rows whose message holds one of these texts anywhere, in the order of stages."""
    sql = f"""SELECT stage, message FROM ({ledger_sql(ledger_files(Path(folder)))}) AS row
              WHERE EXISTS (SELECT 1 FROM removed WHERE contains(row.message, removed.unit)) ORDER BY ALL"""
    with connection_beside(Path(folder)) as connection:
        connection.register("removed", _table(texts))
        return [(stage, message) for stage, message in connection.execute(sql).fetchall()]


def forget_units(folder: Path | str, keys: Keys) -> int:
    """Delete the rows of these units of these stages, under every fingerprint; returns the number of deleted rows.

    Safe to repeat after a kill at any moment. Raises DiskFullError, and RuntimeError when a run is executing one of the
    stages.
    """
    folder, count = Path(folder), 0
    for name in sorted({_name(file) for file in ledger_files(folder)}):
        stage = name.rpartition("-")[0]
        if stage in keys:  # even with no unit left: a takedown that was killed may have left an empty file
            count += _forget(folder, name, keys[stage])
    return count


def _name(file: Path) -> str:
    return file.name.split(".")[0]


def _forget(folder: Path, name: str, units: Collection[str]) -> int:
    stage, _, fingerprint = name.rpartition("-")
    lines = JsonLines(folder / f"{name}.jsonl")
    lines.open()  # exclusive, so that no run appends meanwhile
    try:
        files = ledger_files(folder, stage, fingerprint)
        with connection_beside(folder) as connection:
            connection.register("removed", _table(units))
            rows = ledger_sql(files)
            ((count,),) = connection.execute(f"SELECT count(*) FROM ({rows}) SEMI JOIN removed USING (unit)").fetchall()
            if count:
                merged = folder / f"{name}.parquet"
                remaining = f"SELECT * FROM ({rows}) ANTI JOIN removed USING (unit) ORDER BY unit, input_hash"
                with atomic_write(merged) as temporary:
                    connection.execute(
                        f"COPY ({remaining}) TO {sql_path(temporary)} (FORMAT parquet, COMPRESSION zstd)"
                    )
                for file in set(files) - {merged, lines.path}:
                    file.unlink()
        # An empty file is what opening it has made, now or in a takedown that was killed.
        if count or not lines.path.stat().st_size:
            lines.remove()
    finally:
        lines.close()
    return int(count)


def _table(units: Collection[str]) -> pa.Table:
    return pa.table({"unit": pa.array(sorted(units), pa.string())})
