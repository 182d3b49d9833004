import json
import os
import random
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from common.ledger import store as ledger_module
from common.ledger.store import (
    LEDGER_SCHEMA,
    STATES,
    Last,
    Ledger,
    Outcome,
    StageLedger,
    key_table,
    ledger_line,
    ledger_rows,
)

PATHS = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


def open_log(folder: Path, fingerprint: str = "f1") -> StageLedger:
    return Ledger(folder).open("sync", fingerprint)


def test_every_field_survives_lines_and_compaction(tmp_path: Path) -> None:
    outcome = Outcome(
        "clip-1", "rejected", "off_sync", "said\n\"so\" 'ü' 𝄞", {"sync_c": 1.5, "list": [1, None], "deep": {"a": "b"}}
    )
    outcome2 = Outcome("clip-2", "failed", "", "m", {}, 1.5, 2.5, 0.5, 99.0, "host-a", 3, "MediaError")
    with open_log(tmp_path) as log:
        log.append(("clip-1", "in1"), outcome)
        log.append(("clip-2", "in2"), outcome2)
    expected = {("clip-1", "in1"): outcome, ("clip-2", "in2"): outcome2}
    assert dict(open_log(tmp_path).done()) == expected
    open_log(tmp_path).compact()
    assert [file.suffix for file in tmp_path.iterdir() if file.name != "format.json"] == [".parquet"]
    assert dict(open_log(tmp_path).done()) == expected
    table = ledger_rows(tmp_path)
    assert table.schema == LEDGER_SCHEMA
    row = table.to_pylist()[1]
    assert (row["stage"], row["fingerprint"], row["input_hash"]) == ("sync", "f1", "in2")
    assert (row["gpu_seconds"], row["peak_mb"], row["recorded"].year >= 2024) == (0.5, 99.0, True)


def test_last_attempt_wins_and_is_counted_once(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        for attempt, state in ((1, "failed"), (2, "failed"), (3, "kept")):
            log.append(("a", "in"), Outcome("a", state, attempt=attempt))
        log.append(("a", "other input"), Outcome("a", "rejected"))
        log.append(("p", "in"), Outcome("p", "pending"))
        log.append(("p", "in"), Outcome("p", "kept"))  # the same attempt, later
    states = {key: outcome.state for key, outcome in open_log(tmp_path).done()}
    assert states == {("a", "in"): "kept", ("a", "other input"): "rejected", ("p", "in"): "kept"}
    assert ledger_rows(tmp_path).num_rows == 3


@pytest.mark.parametrize("sealed", [False, True])
def test_what_a_worker_noted_counts_only_where_nothing_later_was_recorded(tmp_path: Path, sealed: bool) -> None:
    with open_log(tmp_path) as log:
        for unit, attempt in (("later", 1), ("noted", 2)):
            line = ledger_line((unit, "in"), "sync", "f1", Outcome(unit, "failed", attempt=attempt))
            with log.journal(1).open("ab") as journal:
                journal.write(line)
        log.append(("later", "in"), Outcome("later", "kept", attempt=2))
        log.append(("noted", "in"), Outcome("noted", "pending", attempt=1))
        if sealed:
            noted = log.journal(1).read_bytes()
            log.take_over()
            log.journal(1).write_bytes(noted)  # as if a kill had come between the segment and the removal
    for _ in range(2):
        assert {key[0]: outcome.state for key, outcome in open_log(tmp_path).done()} == {
            "later": "kept", "noted": "failed"
        }  # fmt: skip
        open_log(tmp_path).compact()


def test_stages_and_fingerprints_are_apart(tmp_path: Path) -> None:
    for stage, fingerprint in (("sync", "f1"), ("sync", "f2"), ("sync_audio", "f1")):
        with Ledger(tmp_path).open(stage, fingerprint) as log:
            log.append(("a", "in"), Outcome("a", "kept", reason=fingerprint))
            log.compact()
    assert dict(open_log(tmp_path, "f2").done())[("a", "in")].reason == "f2"
    assert list(open_log(tmp_path, "f3").done()) == []
    assert ledger_rows(tmp_path).num_rows == 3
    assert set(ledger_rows(tmp_path, "sync")["stage"].to_pylist()) == {"sync"}


def test_a_kill_between_compaction_and_removal_of_the_lines_doubles_nothing(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "kept"))
        log.append(("b", "in"), Outcome("b", "kept"))
    lines = (tmp_path / "sync-f1.jsonl").read_bytes()
    open_log(tmp_path).compact()
    (tmp_path / "sync-f1.jsonl").write_bytes(lines)
    assert ledger_rows(tmp_path).num_rows == 2 == len(list(open_log(tmp_path).done()))
    open_log(tmp_path).compact()
    assert pq.read_table(tmp_path / "sync-f1.parquet").num_rows == 2


def test_torn_last_line(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "kept"))
        log.append(("b", "in"), Outcome("b", "kept"))
    path = tmp_path / "sync-f1.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert set(dict(open_log(tmp_path).done())) == {("a", "in")}
    with open_log(tmp_path) as log:
        log.append(("b", "in"), Outcome("b", "rejected"))
        log.compact()
    assert {row["unit"]: row["state"] for row in ledger_rows(tmp_path).to_pylist()} == {"a": "kept", "b": "rejected"}


WRITER = """
import itertools, sys
from common.ledger.store import Ledger, Outcome
for start in itertools.count():
    with Ledger(sys.argv[1]).open("sync", "f1") as log:
        done = len(list(log.done()))
        for n in range(done, done + 150):
            log.append((f"u{n}", "in"), Outcome(f"u{n}", "kept", outputs={"n": n}))
            print(n, flush=True)
        log.compact()
"""


@pytest.mark.soak
def test_kill_9_at_any_moment_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Rows are acknowledged on a pipe after append; whoever was acknowledged is there, once, after the kill."""
    chance, acknowledged = random.Random(0), -1
    for _ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], env=PATHS, stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(chance.randint(100, 300)):
            acknowledged = int(writer.stdout.readline())
        writer.kill()
        rest = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(rest[-1]) if rest else acknowledged
        rows = ledger_rows(tmp_path).to_pylist()
        numbers = sorted(json.loads(row["outputs"])["n"] for row in rows)
        assert numbers == list(range(len(rows))) and len(rows) in (acknowledged + 1, acknowledged + 2)


def test_text_that_parquet_cannot_hold_keeps_its_row(tmp_path: Path) -> None:
    with open_log(tmp_path) as log:
        log.append(("a", "in"), Outcome("a", "failed", message="file \udcff and \0"))
        log.compact()
    assert dict(open_log(tmp_path).done())[("a", "in")].message == "file \\udcff and "


def test_second_run_and_bad_name_are_clear(tmp_path: Path) -> None:
    first, second = open_log(tmp_path), open_log(tmp_path)
    first.lock()
    with pytest.raises(RuntimeError, match="another run"):
        second.append(("a", "in"), Outcome("a", "kept"))
    with pytest.raises(ValueError, match="Stage name 'a/b'"):
        Ledger(tmp_path).open("a/b", "f")


def test_absent_ledger_is_empty(tmp_path: Path) -> None:
    table = ledger_rows(tmp_path / "none")
    assert table.num_rows == 0 and table.schema == LEDGER_SCHEMA


@pytest.mark.parametrize("key", ["worker_crashes", "deaths"])  # the second is of older ledgers
def test_last_rows_and_outcomes_come_by_position(tmp_path: Path, key: str) -> None:
    with open_log(tmp_path) as log:
        for unit, state in (("a", "kept"), ("b", "rejected"), ("p", "pending")):
            log.append((unit, "in"), Outcome(unit, state))  # type: ignore[arg-type]
        log.append(("f", "in"), Outcome("f", "failed", error_class="KeyError"))
        log.compact()
        log.append(("f", "in"), Outcome("f", "failed", "", "m", {key: 2}, error_class="WorkerDied", attempt=2))
    keys = key_table([("p", "in"), ("new", "in"), ("f", "in"), ("a", "in"), ("a", "other"), ("b", "in")])
    states, unsettled = open_log(tmp_path).last(keys)
    assert [STATES[code] if code >= 0 else "" for code in states] == ["pending", "", "failed", "kept", "", "rejected"]
    assert unsettled == {0: Last("pending", 1), 2: Last("failed", 2, "WorkerDied", 2)}
    assert [outcome.unit for outcome in open_log(tmp_path).outcomes(keys)] == ["p", "f", "a", "b"]


def segments(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.glob("*.parquet") if file.name.count(".") == 2)


def test_long_logs_are_sealed_and_few_new_rows_wait_beside_many_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "SEAL_BYTES", 50_000)
    noise = random.Random(0)
    with open_log(tmp_path) as log:
        for n in range(60):
            log.append((f"u{n:03}", "in"), Outcome(f"u{n:03}", "failed", message=noise.randbytes(1000).hex()))
    assert len(segments(tmp_path)) == 2 and ledger_rows(tmp_path).num_rows == 60
    with open_log(tmp_path) as log:
        log.compact()
        assert segments(tmp_path) == []
        whole = (tmp_path / "sync-f1.parquet").read_bytes()
        monkeypatch.setattr(ledger_module, "SEAL_BYTES", 1_000)
        monkeypatch.setattr(ledger_module, "MERGE_SHARE", 2)
        for attempt, waiting in ((2, 1), (3, 2), (4, 0)):  # when there are too many they are merged
            log.append(("u007", "in"), Outcome("u007", "kept", attempt=attempt))
            log.compact()
            assert len(segments(tmp_path)) == waiting
            assert ((tmp_path / "sync-f1.parquet").read_bytes() == whole) == (waiting > 0)
            assert ledger_rows(tmp_path).num_rows == 60
    rows = {row["unit"]: row for row in ledger_rows(tmp_path).to_pylist()}
    assert len(rows) == 60 and (rows["u007"]["state"], rows["u007"]["attempt"]) == ("kept", 4)


@pytest.mark.parametrize("seed", range(3))
def test_readers_see_the_same_however_rows_are_spread_over_files(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random writes, seals and merges, and the files a kill between writing and removing leaves, against a dict."""
    monkeypatch.setattr(ledger_module, "SEAL_BYTES", 3_000)
    chance, expected = random.Random(seed), {}
    with open_log(tmp_path) as log:
        for n in range(150):
            unit, attempt = f"u{chance.randrange(25)}", n  # later rows have the later attempt
            log.append((unit, "in"), Outcome(unit, "failed", attempt=attempt))
            expected[unit] = attempt
            if chance.random() < 0.04:
                left = {file: file.read_bytes() for file in tmp_path.glob("*.0*.parquet")}
                log.compact()
                for file, content in left.items() if chance.random() < 0.5 else ():
                    file.write_bytes(content)  # killed before they were removed
    assert {row["unit"]: row["attempt"] for row in ledger_rows(tmp_path).to_pylist()} == expected
    assert {key[0]: outcome.attempt for key, outcome in open_log(tmp_path).done()} == expected


def test_two_hundred_thousand_rows_are_read_piece_by_piece(tmp_path: Path) -> None:
    """What Python holds at once is bounded by a batch, not by the ledger."""
    rows = 200_000
    sql = f"""SELECT 'unit-' || lpad(i::VARCHAR, 9, '0') AS unit, 'sync' AS stage, 'f1' AS fingerprint, 'in' AS
        input_hash, ['kept', 'rejected', 'failed', 'pending'][1 + (i % 4)::INT] AS state, '' AS reason, 1::INT AS
        attempt, '' AS error_class, '' AS message, '' AS host, 1.0 AS "seconds", 1.0 AS cpu_seconds, 0.0 AS gpu_seconds,
        1.0 AS peak_mb, '{{"n":' || i || '}}' AS outputs, TIMESTAMP '2026-01-01' AS recorded FROM range({rows}) t(i)"""
    with duckdb.connect() as connection:
        connection.sql(sql).to_parquet(str(tmp_path / "sync-f1.parquet"))
    with open_log(tmp_path) as log:
        log.append(("unit-000000002", "in"), Outcome("unit-000000002", "kept", attempt=2))
        order = np.random.default_rng(0).permutation(rows)
        keys = key_table((f"unit-{n:09}", "in") for n in order)
        before = pa.total_allocated_bytes()
        streamed = log.outcomes(keys)
        heads = [next(streamed).outputs["n"] for _ in range(1000)]
        assert heads == order[:1000].tolist()
        assert pa.total_allocated_bytes() - before < 30e6  # all rows as Arrow are four times that
        streamed.close()
        states, unsettled = log.last(keys)
        assert np.bincount(states).tolist() == [50_001, 50_000, 49_999, 50_000] and len(unsettled) == 99_999
        assert states[order == 2] == STATES.index("kept")
        log.compact()
    table = pq.read_table(tmp_path / "sync-f1.parquet")
    assert table.num_rows == rows and pc.all(pc.greater(table["unit"][1:], table["unit"][:-1])).as_py()
    assert pq.ParquetFile(tmp_path / "sync-f1.parquet").num_row_groups > 1
