"""Difference between two frozen lists: clips added, removed and changed, their hours, and the rules that differ."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from common.ledger.tables import connection_beside, sql_path
from curation.dataset.versions import MS_PER_HOUR, SCHEMA, check_version

COMPARED = [name for name in SCHEMA.names if name not in ("clip_id", "taken_down")]


@dataclass(frozen=True)
class Difference:
    """Difference between two lists. Clips are identified by clip_id, so a clip with other cuts counts as removed and
    added. `fields` counts changes by field among clips in both, `rules` maps changed settings to (old, new)."""

    added: int
    added_hours: float
    removed: int
    removed_hours: float
    taken_down: int  # among the removed
    changed: int
    changed_hours: float
    fields: dict[str, int]
    rules: dict[str, tuple[Any, Any]]

    def lines(self) -> list[str]:
        """The difference as text."""
        rules = [f"rule {name}: {json.dumps(old)} -> {json.dumps(new)}" for name, (old, new) in self.rules.items()]
        fields = ", ".join(f"{name} {count}" for name, count in self.fields.items())
        return [
            f"added    {self.added:8d} clips {self.added_hours:10.2f} h",
            f"removed  {self.removed:8d} clips {self.removed_hours:10.2f} h, {self.taken_down} of them withdrawn",
            f"changed  {self.changed:8d} clips {self.changed_hours:10.2f} h" + (f" ({fields})" if fields else ""),
            *rules,
        ]


def compare(old: Path, new: Path) -> Difference:
    """Difference from one list to another. Raises the errors of `check_version`."""
    before, after = check_version(old), check_version(new)
    different = {name: f"a.{name} IS DISTINCT FROM b.{name}" for name in COMPARED}
    counts = ", ".join(f"count(*) FILTER ({text})" for text in different.values())
    changes = f"SELECT {_totals('b.')}, {counts} FROM a JOIN b USING (clip_id) WHERE {' OR '.join(different.values())}"
    with connection_beside(new.parent) as connection:
        for name, path in (("a", old), ("b", new)):
            rows = f"read_parquet({sql_path(path.with_suffix('.parquet'))})"
            connection.execute(f"CREATE VIEW {name} AS FROM {rows} WHERE taken_down IS NULL")
            connection.execute(f"CREATE VIEW withdrawn_{name} AS FROM {rows} WHERE taken_down IS NOT NULL")
        added, added_hours = _one(connection, f"SELECT {_totals()} FROM b ANTI JOIN a USING (clip_id)")
        removed, removed_hours = _one(connection, f"SELECT {_totals()} FROM a ANTI JOIN b USING (clip_id)")
        (withdrawn,) = _one(connection, "SELECT count(*) FROM a SEMI JOIN withdrawn_b USING (clip_id)")
        changed, hours, *fields = _one(connection, changes)
    fields_changed = {name: count for name, count in zip(COMPARED, fields, strict=True) if count}
    rules = {name: (was, now) for name, was, now in _changes(before["rules"], after["rules"])}
    return Difference(added, added_hours, removed, removed_hours, withdrawn, changed, hours, fields_changed, rules)


def _totals(of: str = "") -> str:
    """SQL for the number of clips and hours of a list."""
    return f"count(*), coalesce(sum(round(1000 * ({of}t_end - {of}t_start))), 0) / {MS_PER_HOUR}"


def _one(connection: duckdb.DuckDBPyConnection, sql: str) -> tuple[Any, ...]:
    (row,) = connection.execute(sql).fetchall()
    return tuple(row)


def _changes(before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    """Settings that differ, by dotted name, with old and new value; None where a list lacks one."""
    old, new = dict(_flat(before)), dict(_flat(after))
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            yield name, old.get(name), new.get(name)


def _flat(rules: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(rules, dict):
        for key, value in rules.items():
            yield from _flat(value, f"{name}.{key}".lstrip("."))
    else:
        yield name, rules
